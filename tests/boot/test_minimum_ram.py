"""A machine with the least RAM that is promised, booted by iPXE over HTTP: what the
operator gets of it, and that nothing takes it down."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import netboot
import pytest
from booted_host import BOOT_SECONDS, Boot, BootedHost
from simlan.boot_lan import ADDRESS, agent_parameters
from simlan.errors import CommandFailed

# Of the shell; the status above it says whom to be to log in, at an address.
PROMPT = "root@build-"
FLOOR = int((Path(__file__).resolve().parents[2] / "image/initrd/minimum-ram").read_text())


@dataclass
class Floor:
    """The machine, and the SSH key that its kernel command line names."""

    trial: BootedHost
    key: Path

    @property
    def address(self) -> str:
        (address,) = self.trial.lan.leases().values()
        return address

    def ssh(self, command: str) -> str:
        options = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
        options += ["-o", "ConnectTimeout=60", "-o", "BatchMode=yes"]
        target = f"root@{self.address}"
        return self.trial.lan.run(["ssh", *options, "-i", str(self.key), target, command], deadline=120)


@pytest.fixture(scope="module")
def host(boot: Boot, tmp_path_factory: pytest.TempPathFactory) -> Floor:
    key = tmp_path_factory.mktemp("ssh") / "key"
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "me", "-f", str(key)], check=True
    )
    public = key.with_suffix(".pub").read_text().strip().replace(" ", ",")
    words = ["console=ttyS0", "buildos.login=ttyS0", f"buildos.ssh_key={public}", netboot.PANIC]
    append = " ".join([*words, agent_parameters()])
    trial = boot("virtio-net-pci@lan", way="ipxe", append=append, memory=FLOOR)
    trial.wait_for_poll()
    return Floor(trial, key)


def test_the_files_came_over_http(host: Floor) -> None:
    mac = host.trial.nics[0].mac
    paths = [visit["path"] for visit in host.trial.lan.visits()]
    # The host has no configuration of its own.
    assert paths[:3] == [
        "/netboot/boot.ipxe",
        f"/netboot/ipxe.cfg/{netboot.configuration_name(mac)}",
        "/netboot/ipxe.cfg/default",
    ]
    cmdline = host.trial.shell.output("cat /proc/cmdline")
    assert f"BOOTIF={netboot.configuration_name(mac)}" in cmdline


def test_the_clock_is_the_lease_s_server_s(host: Floor) -> None:
    assert host.trial.wait_for_systemd() == "running"
    shell = host.trial.shell
    assert shell.output("systemctl is-active time-sync.target") == "active"
    name = "org.freedesktop.timesync1"
    manager = f"{name} /org/freedesktop/timesync1 {name}.Manager"
    assert shell.output(f"busctl get-property {manager} ServerName") == f's "{ADDRESS.ip}"'
    # The kernel's word is enough: another NTP client leaves no such file.
    shell.output("rm /run/systemd/timesync/synchronized; systemctl restart buildos-agentd")
    assert "clock synchronised" in shell.output("buildosctl status")
    agents = "buildosctl agents --json"
    assert "synchronised yet" not in shell.output(agents)


def test_a_shell_opens_where_it_was_asked_for(host: Floor) -> None:
    """And nothing is written into it: the status is for consoles without one."""
    console = host.trial.guest.console
    host.trial.guest.wait_for(lambda: PROMPT in console(), "the prompt", BOOT_SECONDS)
    assert "Why it does not build" not in console().split(PROMPT, 1)[1]


def test_the_key_lets_in_by_ssh(host: Floor) -> None:
    def name() -> str:
        try:
            return host.ssh("hostname").strip()
        except CommandFailed:
            return ""

    assert host.trial.guest.wait_for(name, "a login", BOOT_SECONDS) == host.trial.shell.output(
        "hostname"
    )
    assert "passwordauthentication no" in host.trial.shell.output("sshd -T")


def test_packages_are_told_inside(host: Floor, image: Path) -> None:
    directory = "/usr/share/buildos-image"
    assert host.trial.shell.output(f"cat {directory}/manifest") == (
        (image / "buildos.manifest").read_text().rstrip("\n")
    )
    sums = host.trial.shell.output(f"sha256sum {directory}/spdx.json").split()[0]
    beside = subprocess.check_output(["sha256sum", str(image / "buildos.spdx.json")], text=True)
    assert sums == beside.split()[0]


def test_a_full_root_leaves_the_host_up(host: Floor, figure: Callable[[str], None]) -> None:
    shell = host.trial.shell
    before = len(host.trial.lan.task_requests())
    full = shell.run("dd if=/dev/zero of=/var/tmp/full bs=1M", BOOT_SECONDS)
    assert "No space left on device" in full.output, full.output
    host.trial.guest.wait_for(
        lambda: len(host.trial.lan.task_requests()) > before, "another poll", BOOT_SECONDS
    )
    memory = dict(line.split()[:2] for line in shell.output("cat /proc/meminfo").splitlines())
    figure(f"RAM available at {FLOOR} MiB, root full: {int(memory['MemAvailable:']) // 1024} MiB")
    assert shell.output("journalctl --dmesg --grep 'Out of memory' --quiet || true") == ""
    shell.output("rm /var/tmp/full")
    assert shell.output("systemctl --failed --quiet --no-legend --plain") == ""


def test_the_kernel_s_panic_ends_in_a_boot(host: Floor) -> None:
    assert host.trial.shell.output("sysctl -n kernel.panic kernel.panic_on_oops") == "60\n1"


def test_it_reboots_cleanly(host: Floor) -> None:
    host.trial.shell.output("systemctl --no-block reboot")
    assert host.trial.guest.wait_for_end(BOOT_SECONDS) == 0
    console = host.trial.guest.console()
    assert "reboot: Restarting system" in console
    for trouble in ("Failed unmounting", "Failed to unmount", "timed out"):
        assert trouble not in console.split("Stopped target", 1)[-1]
