"""The machine volume on a disk of a machine in QEMU: containers of the channel."""

from __future__ import annotations

from pathlib import Path

from booted_host import BOOT_SECONDS, Boot
from container import PORT, container, manual_example
from simlan.process import run

_SIZE = 512 << 20
_FILE = "/etc/buildos/agentd.conf.d/50-debian.toml"
_TOP = "/var/lib/machines"


def test_each_start_of_a_container_begins_with_the_current_revision(
    boot_once: Boot, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    with disk.open("wb") as image:
        image.truncate(_SIZE)
    run(["mkfs.btrfs", "--quiet", "--label", "buildos.machines", str(disk)])
    drive = f"if=none,id=machines,file={disk},format=raw"
    host = boot_once(
        "e1000@lan",
        extra=["-drive", drive, "-device", "virtio-blk-pci,drive=machines,serial=machines"],
    )
    host.wait_for_poll()
    shell = host.shell
    mounted = f"findmnt --noheadings --output FSTYPE {_TOP}"
    host.guest.wait_for(
        lambda: shell.run(mounted).output.strip() == "btrfs", "the volume", BOOT_SECONDS
    )
    before = set(host.lan.leases())

    def revision(number: int, text: str) -> None:
        """Makes a revision as buildos-machine-place does: read-only, with a link."""
        path = f"{_TOP}/debian-{number}"
        shell.output(f"btrfs --quiet subvolume create {path}{container(path)}")
        shell.output(
            f"echo {text} >{path}/srv/page; btrfs property set {path} ro true; "
            f"ln -s debian-{number} {_TOP}/link; mv -T {_TOP}/link {_TOP}/debian"
        )

    def page() -> str:
        addresses = [a for mac, a in host.lan.leases().items() if mac not in before]
        url = [f"http://{address}:{PORT}/page" for address in addresses]
        curl = ["curl", "--silent", "--fail", "--max-time", "10", *url]
        return host.lan.run(curl, check=False).strip() if url else ""

    revision(1, "first")
    example = manual_example(f"# {_FILE}")
    shell.output(f"mkdir -p $(dirname {_FILE})\ncat >{_FILE} <<'END'\n{example}END\n")
    shell.output("systemctl reload buildos-agentd")
    host.guest.wait_for(lambda: page() == "first", "the container's page", BOOT_SECONDS)
    revision(2, "second")
    # What the container writes ends with it.
    shell.output("echo changed >/tmp/page; machinectl copy-to --force debian /tmp/page /srv/page")
    assert page() == "changed"
    shell.output("machinectl poweroff debian")
    host.guest.wait_for(lambda: page() == "second", "revision 2", BOOT_SECONDS)
    shell.output("systemctl stop buildos-bslave@debian")
    assert shell.output(f"ls -A {_TOP}").split() == ["debian", "debian-1", "debian-2"]
