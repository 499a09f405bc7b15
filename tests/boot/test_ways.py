"""Other ways to boot, other NICs, and failures; only with --all."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import netboot
import pytest
from booted_host import BOOT_SECONDS, Boot
from simlan.boot_lan import QUERY, agent_parameters
from simlan.wait import wait_for

pytestmark = pytest.mark.long

TOP = Path(__file__).resolve().parents[2]
CONSOLE = "console=ttyS0"
SMALL = 256
"""RAM in MiB that is too small to unpack the root."""


def test_uefi_boots_by_ipxe_over_http(boot_once: Boot) -> None:
    host = boot_once("virtio-net-pci@lan", way="uefi")
    host.wait_for_poll()
    assert host.wait_for_systemd() == "running"
    host.shell.output("test -d /sys/firmware/efi")
    paths = [visit["path"] for visit in host.lan.visits()]
    assert paths[0] == "/netboot/boot.ipxe"
    assert "/netboot/buildos/buildos-initrd" in paths
    # iPXE and the kernel pass the query string unchanged.
    assert host.lan.task_requests()[0]["path"] == f"/{QUERY}"


def test_nic_with_dhcp_server_of_three_becomes_uplink(boot_once: Boot) -> None:
    """One NIC has no carrier, one no DHCP server."""
    host = boot_once("e1000@lan", "virtio-net-pci@quiet", "e1000@lan")
    host.guest.set_cable(0, plugged=False)
    host.wait_for_poll()
    assert set(host.lan.leases()) == {host.nics[2].mac}
    assert host.wait_for_systemd() == "running"


def test_carrier_after_the_boot_brings_lease_and_clock(boot_once: Boot) -> None:
    host = boot_once("virtio-net-pci@lan")
    host.guest.set_cable(0, plugged=False)

    def status() -> str:
        return host.shell.run("systemctl show --value -p StatusText buildos-netd").output

    host.shell.wait(BOOT_SECONDS)
    host.guest.wait_for(lambda: "carrier" in status(), "no carrier in netd's STATUS=", BOOT_SECONDS)
    assert host.lan.leases() == {}
    # The boot does not wait for a synchronised clock.
    assert host.wait_for_systemd() == "running"
    time = "systemctl show --value --property=ActiveState time-sync.target"
    assert host.shell.output(time) == "inactive"
    host.guest.set_cable(0, plugged=True)
    host.wait_for_poll()
    host.guest.wait_for(
        lambda: host.shell.output(time) == "active", "a synchronised clock", BOOT_SECONDS
    )
    assert host.shell.output("systemctl --failed --quiet --no-legend --plain") == ""


def test_too_little_ram_is_reported_on_the_console(boot_once: Boot) -> None:
    host = boot_once("e1000@lan", memory=SMALL)
    assert host.guest.wait_for_end(BOOT_SECONDS) == 0
    console = host.guest.console()
    assert "RAM is too small, or buildos-initrd was cut short" in console
    assert "MiB are needed. Booting again in 60 seconds" in console
    assert "were unpacked" in console


def test_failed_boot_is_reported_and_reboots(boot_once: Boot) -> None:
    host = boot_once("e1000@lan", append=f"{CONSOLE} systemd.unit=emergency.target")
    assert host.guest.wait_for_end(BOOT_SECONDS) == 0
    assert "buildos: this boot failed:" in host.guest.console()


def test_crash_reboots_and_is_in_the_next_journal(boot_once: Boot, tmp_path: Path) -> None:
    store = tmp_path / "erst"
    store.write_bytes(bytes(1 << 16))
    memory = f"memory-backend-file,id=erst,mem-path={store},size=64K,share=on"
    host = boot_once(
        "e1000@lan",
        append=f"{CONSOLE} {netboot.PANIC} {agent_parameters()}",
        reboots=True,
        extra=["-object", memory, "-device", "acpi-erst,memdev=erst", "-device", "i6300esb"],
    )
    assert host.wait_for_systemd() == "running"
    # systemd has opened the hardware watchdog.
    host.guest.wait_for(
        lambda: "i6300ESB" in host.shell.output("journalctl --boot --grep 'watchdog' --output=cat"),
        "the watchdog",
        BOOT_SECONDS,
    )
    assert host.shell.output("systemctl show --value -p WatchdogDevice") == "/dev/watchdog0"
    first = host.shell.output("cat /proc/sys/kernel/random/boot_id")
    # Shortens the minute before the reboot.
    host.shell.output("sysctl -w kernel.panic=2")
    host.shell.output("(sleep 3; echo c >/proc/sysrq-trigger) >/dev/null 2>&1 &")
    host.guest.wait_for(
        lambda: host.guest.console().count("Linux version") > 1, "another boot", BOOT_SECONDS
    )
    host.shell.reset()
    assert host.wait_for_systemd() == "running"
    assert host.shell.output("cat /proc/sys/kernel/random/boot_id") != first
    crash = host.shell.output(
        "journalctl --boot --unit=systemd-pstore --output=cat --output-fields=FILE --all"
    )
    assert "sysrq" in crash and "panic" in crash.lower()


SITE = "etc/buildos/agentd.conf.d/site.toml"

AS_DAEMON = """\
mount --bind "$1" /etc/subuid
mount --bind "$1" /etc/subgid
shift
exec setpriv --reuid=daemon --regid=daemon --clear-groups "$@"
"""
"""Executes a program as the user daemon, with the subordinate uids of the file $1."""


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory for the user daemon. The parents of tmp_path are closed to that user."""
    with tempfile.TemporaryDirectory(dir="/var/tmp", prefix="buildos-home.") as name:
        yield Path(name)


def leftovers_of_daemon() -> list[str]:
    """Returns temporary directories of image/build that belong to the user daemon."""
    find = ["find", "/var/tmp", "-maxdepth", "1", "-user", "daemon", "-name", "buildos-image.*"]
    return subprocess.check_output(find, text=True).splitlines()


def test_rebuilt_image_has_the_same_bytes(tmp_path: Path, home: Path) -> None:
    """The second build has the record, and a different directory, time and user.
    Options add and remove files."""
    for file in ("image", "debian/changelog", "build/debs", "build/cache"):
        (home / file).parent.mkdir(parents=True, exist_ok=True)
        subprocess.run(["cp", "-R", str(TOP / file), str(home / file)], check=True)
    (home / "subordinate").write_text("daemon:1000000:65536\n")
    site = home / "site" / SITE
    site.parent.mkdir(parents=True)
    site.write_text("# nothing\n")
    prune = home / "prune"
    prune.write_text("path-exclude=/usr/share/qemu/keymaps/*\n")

    def start(top: Path, *more: str | Path) -> subprocess.Popen[str]:
        command = [str(top / "image/build"), "--package", "buildos-doubles", "--level", "1"]
        command += ["--append", "console=ttyS1", "--tree", str(home / "site")]
        command += ["--prune", str(prune), *map(str, more)]
        if top == home:
            subprocess.run(["chown", "-R", "daemon:daemon", str(home)], check=True)
            sandbox = ["unshare", "--mount", "sh", "-euc", AS_DAEMON, "sh"]
            command = [*sandbox, str(home / "subordinate"), *command]
        return subprocess.Popen(
            ["sh", "-c", 'umask 077; TZ=Asia/Tokyo exec "$@"', "sh", *command],
            cwd=home,
            text=True,
            stderr=subprocess.PIPE,
        )

    def build(top: Path, *more: str | Path) -> tuple[int, str]:
        with start(top, *more) as process:
            _, errors = process.communicate()
        return process.returncode, errors

    first = tmp_path / "first"
    status, errors = build(TOP, "--output", first)
    assert status == 0, errors
    assert (first / "buildos.cmdline").read_text() == "console=ttyS1\n"
    initrd = first / "buildos-initrd"
    # The magic number of a squashfs.
    offset = initrd.read_bytes().index(b"hsqs")
    listing = ["unsquashfs", "-o", str(offset), "-l", "-d", "", str(initrd)]
    names = set(subprocess.check_output(listing, text=True).splitlines())
    assert f"/{SITE}" in names
    assert "/usr/share/qemu" in names
    assert not [name for name in names if name.startswith("/usr/share/qemu/keymaps/")]

    record = home / "record"
    record.write_text((first / "buildos.manifest").read_text())
    status, errors = build(home, "--record", record)
    assert status == 0, errors
    sums = (home / "build/image/SHA256SUMS").read_text()
    assert sums == (first / "SHA256SUMS").read_text()

    record.write_text(record.read_text().replace("\nbtrfs-progs ", "\nbtrfs-progs 0+"))
    status, errors = build(home, "--record", record)
    assert status == 1
    assert "btrfs-progs is" in errors and "but 0+" in errors

    status, errors = build(home, "--cache", TOP / "build/cache")
    assert status == 1
    assert "daemon may not write to" in errors and "--cache" in errors
    assert not leftovers_of_daemon()

    with start(home) as process:
        wait_for(
            lambda: [
                at for at in leftovers_of_daemon() if list(Path(at).glob("mmdebstrap.*/usr/bin"))
            ],
            "a partial root of mmdebstrap",
            300,
        )
        process.terminate()
        _, errors = process.communicate()
    assert process.returncode == 130, errors
    assert not leftovers_of_daemon()
