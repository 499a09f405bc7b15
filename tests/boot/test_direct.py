"""A machine that boots kernel and initrd from QEMU, and the figures of its boot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import netboot
import pytest
from booted_host import BOOT_SECONDS, Boot
from simlan.boot_lan import agent_parameters

MEBIBYTE = 1 << 20


def test_boot_without_parameters_needs_only_a_lease(
    boot: Boot, tmp_path: Path, figure: Callable[[str], None]
) -> None:
    """The console is the screen, no agent is configured, everything else works."""
    host = boot("e1000@lan", append="")
    assert host.wait_for_systemd() == "running"
    host.guest.wait_for(host.lan.leases, "a lease", BOOT_SECONDS)
    assert host.shell.output("cat /proc/cmdline") == ""
    assert "\nroot:*:" in "\n" + host.shell.output("cat /etc/shadow")

    # The status is above the prompt on the screen.
    (address,) = host.lan.leases().values()

    def screen() -> str:
        return host.shell.output(
            "fold --width=$(stty --file=/dev/tty1 size | cut -d ' ' -f 2) /dev/vcs1"
        )

    host.guest.wait_for(
        lambda: f"ssh root@{address}" in screen(), "the status on the screen", BOOT_SECONDS
    )
    assert "login:" in screen().split("buildosctl why")[-1]
    host.guest.screenshot(tmp_path / "screen.png")
    figure(f"the screen: {tmp_path / 'screen.png'}")


def test_direct_boot_reaches_the_first_poll(
    boot: Boot, image: Path, figure: Callable[[str], None]
) -> None:
    host = boot("e1000@lan")
    host.wait_for_poll()

    # Without a name from DHCP: the last ten digits of the NIC's MAC address.
    digits = host.nics[0].mac.replace(":", "")[-10:]
    assert host.shell.output("hostname") == f"build-{digits}"

    assert host.wait_for_systemd() == "running"
    seconds = host.lan.task_requests()[0]["time"] - host.guest.kernel_start()
    assert seconds > 0

    for name in ("buildos-image", "buildos-initrd"):
        figure(f"{name}: {(image / name).stat().st_size / MEBIBYTE:.1f} MiB")
    figure(f"kernel start to the agent's first poll: {seconds:.1f} s")
    memory = dict(line.split()[:2] for line in host.shell.output("cat /proc/meminfo").splitlines())
    used = int(memory["MemTotal:"]) - int(memory["MemAvailable:"])
    figure(f"RAM used after boot: {used / 1024:.0f} MiB of {int(memory['MemTotal:']) / 1024:.0f}")
    figure(host.shell.output("systemd-analyze time").splitlines()[0])


@pytest.mark.long
def test_real_machine_loads_kvm_before_udev_coldplugs(boot_once: Boot) -> None:
    """A CPU without the flag `hypervisor` passes for a physical one. If QEMU uses KVM, the
    test needs nested KVM."""
    parameters = agent_parameters().replace(" buildos.agentd.bbot.default.kvm=waived", "")
    assert "kvm" not in parameters
    append = f"console=ttyS0 {netboot.PANIC} {parameters}"
    host = boot_once("e1000@lan", append=append, extra=["-cpu", "max,-hypervisor"])
    host.wait_for_poll()
    coldplug = "systemctl show --value -p InactiveExitTimestampMonotonic systemd-udev-trigger"
    started = "systemctl show --value -p ActiveEnterTimestampMonotonic buildos-bbot@default"
    assert 0 < int(host.shell.output(started)) < int(host.shell.output(coldplug))
