"""A machine with the documented minimum of RAM, booted by iPXE over HTTP: access for the
operator, and survival of a full root."""

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

# The shell's prompt. The status names root at an address.
PROMPT = "root@build-"
MINIMUM_RAM = int((Path(__file__).resolve().parents[2] / "image/initrd/minimum-ram").read_text())


@dataclass
class SmallHost:
    """The machine, and the SSH key of its kernel command line."""

    booted: BootedHost
    key: Path

    @property
    def address(self) -> str:
        (address,) = self.booted.lan.leases().values()
        return address

    def ssh(self, command: str) -> str:
        options = ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"]
        options += ["-o", "ConnectTimeout=60", "-o", "BatchMode=yes"]
        target = f"root@{self.address}"
        return self.booted.lan.run(
            ["ssh", *options, "-i", str(self.key), target, command], deadline=120
        )


@pytest.fixture(scope="module")
def host(boot: Boot, tmp_path_factory: pytest.TempPathFactory) -> SmallHost:
    key = tmp_path_factory.mktemp("ssh") / "key"
    subprocess.run(
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "me", "-f", str(key)], check=True
    )
    public = key.with_suffix(".pub").read_text().strip().replace(" ", ",")
    parameters = [
        "console=ttyS0",
        "buildos.login=ttyS0",
        f"buildos.ssh_key={public}",
        netboot.PANIC,
    ]
    append = " ".join([*parameters, agent_parameters()])
    booted = boot("virtio-net-pci@lan", way="ipxe", append=append, memory=MINIMUM_RAM)
    booted.wait_for_poll()
    return SmallHost(booted, key)


def test_ipxe_fetches_script_and_default_configuration_over_http(host: SmallHost) -> None:
    mac = host.booted.nics[0].mac
    paths = [visit["path"] for visit in host.booted.lan.visits()]
    # There is no configuration for this host alone.
    assert paths[:3] == [
        "/netboot/boot.ipxe",
        f"/netboot/ipxe.cfg/{netboot.configuration_name(mac)}",
        "/netboot/ipxe.cfg/default",
    ]
    cmdline = host.booted.shell.output("cat /proc/cmdline")
    assert f"BOOTIF={netboot.configuration_name(mac)}" in cmdline


def test_clock_is_set_by_the_ntp_server_of_the_lease(host: SmallHost) -> None:
    assert host.booted.wait_for_systemd() == "running"
    shell = host.booted.shell
    assert shell.output("systemctl is-active time-sync.target") == "active"
    name = "org.freedesktop.timesync1"
    manager = f"{name} /org/freedesktop/timesync1 {name}.Manager"
    assert shell.output(f"busctl get-property {manager} ServerName") == f's "{ADDRESS.ip}"'
    # Other NTP clients make no such file: the kernel's state is enough for agentd.
    shell.output("rm /run/systemd/timesync/synchronized; systemctl restart buildos-agentd")
    assert "clock synchronised" in shell.output("buildosctl status")
    assert "synchronised yet" not in shell.output("buildosctl agents --json")


def test_buildos_login_opens_shell_without_status_text(host: SmallHost) -> None:
    """The status is written to consoles without a shell only."""
    console = host.booted.guest.console
    host.booted.guest.wait_for(lambda: PROMPT in console(), "the prompt", BOOT_SECONDS)
    assert "Why it does not build" not in console().split(PROMPT, 1)[1]


def test_ssh_key_of_the_command_line_allows_login(host: SmallHost) -> None:
    def name() -> str:
        try:
            return host.ssh("hostname").strip()
        except CommandFailed:
            return ""

    assert host.booted.guest.wait_for(name, "a login", BOOT_SECONDS) == host.booted.shell.output(
        "hostname"
    )
    assert "passwordauthentication no" in host.booted.shell.output("sshd -T")
    scan = f"ssh-keyscan -t ed25519 {host.address} 2>/dev/null | ssh-keygen -l -f -"
    fingerprint = host.booted.lan.run(["sh", "-c", scan]).split()[1]
    assert f"ED25519 {fingerprint}" in host.booted.shell.output("buildosctl status")
    issue = "cat /run/issue.d/50-buildos.issue"
    host.booted.guest.wait_for(
        lambda: f"ED25519 {fingerprint}" in host.booted.shell.output(issue),
        "the fingerprint on the console",
        BOOT_SECONDS,
    )


def test_manifest_and_sbom_are_in_the_image(host: SmallHost, image: Path) -> None:
    directory = "/usr/share/buildos-image"
    assert host.booted.shell.output(f"cat {directory}/manifest") == (
        (image / "buildos.manifest").read_text().rstrip("\n")
    )
    sums = host.booted.shell.output(f"sha256sum {directory}/spdx.json").split()[0]
    beside = subprocess.check_output(["sha256sum", str(image / "buildos.spdx.json")], text=True)
    assert sums == beside.split()[0]


def test_full_root_leaves_agent_and_units_running(
    host: SmallHost, figure: Callable[[str], None]
) -> None:
    shell = host.booted.shell
    before = len(host.booted.lan.task_requests())
    full = shell.run("dd if=/dev/zero of=/var/tmp/full bs=1M", BOOT_SECONDS)
    assert "No space left on device" in full.output, full.output
    host.booted.guest.wait_for(
        lambda: len(host.booted.lan.task_requests()) > before, "another poll", BOOT_SECONDS
    )
    memory = dict(line.split()[:2] for line in shell.output("cat /proc/meminfo").splitlines())
    figure(
        f"RAM available at {MINIMUM_RAM} MiB, root full: {int(memory['MemAvailable:']) // 1024} MiB"
    )
    assert shell.output("journalctl --dmesg --grep 'Out of memory' --quiet || true") == ""
    shell.output("rm /var/tmp/full")
    assert shell.output("systemctl --failed --quiet --no-legend --plain") == ""


def test_kernel_panic_reboots_after_a_minute(host: SmallHost) -> None:
    assert host.booted.shell.output("sysctl -n kernel.panic kernel.panic_on_oops") == "60\n1"


def test_reboot_unmounts_without_errors(host: SmallHost) -> None:
    host.booted.shell.output("systemctl --no-block reboot")
    assert host.booted.guest.wait_for_end(BOOT_SECONDS) == 0
    console = host.booted.guest.console()
    assert "reboot: Restarting system" in console
    for trouble in ("Failed unmounting", "Failed to unmount", "timed out"):
        assert trouble not in console.split("Stopped target", 1)[-1]
