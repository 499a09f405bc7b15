"""The other ways to boot, other NICs, and failures: with --all."""

from __future__ import annotations

import subprocess
import tempfile
from pathlib import Path

import pytest
from simlan import agents, netboot
from trial import BOOT_SECONDS, Boot

pytestmark = pytest.mark.long

TOP = Path(__file__).resolve().parents[2]
CONSOLE = "console=ttyS0"
SMALL = 256
"""MiB with which the root cannot even be unpacked."""


def test_uefi(boot_once: Boot) -> None:
    host = boot_once("virtio-net-pci@lan", way="uefi")
    host.wait_for_poll()
    assert host.wait_for_systemd() == "running"
    host.shell.output("test -d /sys/firmware/efi")
    paths = [visit["path"] for visit in host.lan.visits()]
    assert paths[0] == "/netboot/boot.ipxe"
    assert "/netboot/buildos/buildos-initrd" in paths


def test_three_nics(boot_once: Boot) -> None:
    """One without a cable, one on a network without a server."""
    host = boot_once("e1000@lan", "virtio-net-pci@quiet", "e1000@lan")
    host.guest.set_cable(0, plugged=False)
    host.wait_for_poll()
    assert {lease.mac for lease in host.lan.leases()} == {host.nics[2].mac}
    assert host.wait_for_systemd() == "running"


def test_cable_after_the_boot(boot_once: Boot) -> None:
    host = boot_once("virtio-net-pci@lan")
    host.guest.set_cable(0, plugged=False)

    def status() -> str:
        return host.shell.run("systemctl show --value -p StatusText buildos-netd").output

    host.shell.wait(BOOT_SECONDS)
    host.guest.wait_for("netd's word", BOOT_SECONDS, lambda: "carrier" in status())
    assert host.lan.leases() == []
    # The boot is over, although nobody has told the time.
    assert host.wait_for_systemd() == "running"
    time = "systemctl show --value --property=ActiveState time-sync.target"
    assert host.shell.output(time) == "inactive"
    host.guest.set_cable(0, plugged=True)
    host.wait_for_poll()
    host.guest.wait_for("the time", BOOT_SECONDS, lambda: host.shell.output(time) == "active")
    assert host.shell.output("systemctl --failed --quiet --no-legend --plain") == ""


def test_too_little_ram_is_said(boot_once: Boot) -> None:
    host = boot_once("e1000@lan", memory=SMALL)
    assert host.guest.wait_for_end(BOOT_SECONDS) == 0
    console = host.guest.console()
    assert "RAM is too small, or buildos-initrd was cut short" in console
    assert "MiB are needed. Booting again in 60 seconds" in console
    assert "were unpacked" in console


def test_a_failed_boot_is_tried_again(boot_once: Boot) -> None:
    host = boot_once("e1000@lan", append=f"{CONSOLE} systemd.unit=emergency.target")
    assert host.guest.wait_for_end(BOOT_SECONDS) == 0
    assert "buildos: this boot failed:" in host.guest.console()


def test_a_crash_ends_in_a_boot_that_tells_of_it(boot_once: Boot, tmp_path: Path) -> None:
    store = tmp_path / "erst"
    store.write_bytes(bytes(1 << 16))
    memory = f"memory-backend-file,id=erst,mem-path={store},size=64K,share=on"
    host = boot_once(
        "e1000@lan",
        append=f"{CONSOLE} {netboot.PANIC} {agents.parameters()}",
        reboots=True,
        extra=["-object", memory, "-device", "acpi-erst,memdev=erst", "-device", "i6300esb"],
    )
    assert host.wait_for_systemd() == "running"
    # The hardware's watchdog is systemd's.
    host.guest.wait_for(
        "the watchdog",
        BOOT_SECONDS,
        lambda: "i6300ESB" in host.shell.output("journalctl --boot --grep 'watchdog' --output=cat"),
    )
    assert host.shell.output("systemctl show --value -p WatchdogDevice") == "/dev/watchdog0"
    first = host.shell.output("cat /proc/sys/kernel/random/boot_id")
    # For the test's sake not a minute.
    host.shell.output("sysctl -w kernel.panic=2")
    host.shell.output("(sleep 3; echo c >/proc/sysrq-trigger) >/dev/null 2>&1 &")
    host.guest.wait_for(
        "another boot", BOOT_SECONDS, lambda: host.guest.console().count("Linux version") > 1
    )
    host.shell.begin_again()
    assert host.wait_for_systemd() == "running"
    assert host.shell.output("cat /proc/sys/kernel/random/boot_id") != first
    told = host.shell.output(
        "journalctl --boot --unit=systemd-pstore --output=cat --output-fields=FILE --all"
    )
    assert "sysrq" in told and "panic" in told.lower()


SITE = "etc/buildos/agentd.conf.d/site.toml"


def test_rebuilt_image_is_the_same(tmp_path: Path) -> None:
    """From the record, in another directory, at another time. An image of one's own,
    which has in it what the options say."""
    tree = tmp_path / "elsewhere"
    (tree / "debian").mkdir(parents=True)
    subprocess.run(["cp", "-R", str(TOP / "image"), str(tree)], check=True)
    subprocess.run(["cp", str(TOP / "debian/changelog"), str(tree / "debian")], check=True)
    site = tmp_path / "site" / SITE
    site.parent.mkdir(parents=True)
    site.write_text("# nothing\n")
    prune = tmp_path / "prune"
    prune.write_text("path-exclude=/usr/share/qemu/keymaps/*\n")

    def build(top: Path, *more: str | Path) -> tuple[subprocess.CompletedProcess[str], Path]:
        options = ["--package", "buildos-doubles", "--level", "1", "--append", "console=ttyS1"]
        options += ["--tree", str(tmp_path / "site"), "--prune", str(prune), *map(str, more)]
        options += ["--debs", str(TOP / "build/debs"), "--cache", str(TOP / "build/cache")]
        output = Path(tempfile.mkdtemp(dir=tmp_path))
        command = [str(top / "image/build"), *options, "--output", str(output)]
        done = subprocess.run(
            ["sh", "-c", 'umask 077; TZ=Asia/Tokyo exec "$@"', "sh", *command],
            text=True,
            capture_output=True,
            check=False,
        )
        return done, output

    done, first = build(TOP)
    assert done.returncode == 0, done.stderr
    assert (first / "buildos.cmdline").read_text() == "console=ttyS1\n"
    initrd = first / "buildos-initrd"
    # The root begins as a squashfs does.
    offset = initrd.read_bytes().index(b"hsqs")
    listing = ["unsquashfs", "-o", str(offset), "-l", "-d", "", str(initrd)]
    names = set(subprocess.check_output(listing, text=True).splitlines())
    assert f"/{SITE}" in names
    assert "/usr/share/qemu" in names
    assert not [name for name in names if name.startswith("/usr/share/qemu/keymaps/")]

    record = first / "buildos.manifest"
    done, second = build(tree, "--record", record)
    assert done.returncode == 0, done.stderr
    assert (second / "SHA256SUMS").read_text() == (first / "SHA256SUMS").read_text()

    other = tmp_path / "record"
    other.write_text(record.read_text().replace("\nbtrfs-progs ", "\nbtrfs-progs 0+"))
    done, _ = build(tree, "--record", other)
    assert done.returncode == 1
    assert "btrfs-progs is" in done.stderr and "in the record 0+" in done.stderr
