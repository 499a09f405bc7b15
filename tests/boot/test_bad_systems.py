"""A host is given one bad operating system after the other, and is back after each of them;
only with --all.

    sudo tests/lane tests/boot --all -k bad_system

Each system is made from the good one, by a change of its root or of its initrd. What the channel
refuses before a system is loaded is in tests/system/test_os_update.py and test_os_handover.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from booted_host import BOOT_SECONDS, Boot, BootedHost
from test_kexec import (
    Publisher,
    System,
    kernels,
    publisher,
    request,
    start,
    trial_of,
    trust,
    wait_for_load,
)

pytestmark = pytest.mark.long

__all__ = ["publisher"]

_DEADLINE_S = 60
"""The shortest that a trial may have."""

_WATCHDOG = ["-device", "i6300esb", "-action", "watchdog=reset"]


@dataclass(frozen=True)
class Broken:
    """A system that runs, and is to blame: it returns by itself."""

    name: str
    script: str
    """Runs in the initrd before its root is PID 1."""
    code: str
    """The reason, as on the kernel command line of the system to which the host returns."""


def _without(*paths: str) -> str:
    return "rm -r " + " ".join(f"/root/{path}" for path in paths)


def _instead(path: str, script: str) -> str:
    """Puts a shell script in the place of a program."""
    return (
        f"rm -f /root/{path}; printf '#!/bin/sh\\n{script}\\n' >/root/{path}; "
        f"chmod 755 /root/{path}"
    )


def _module(name: str) -> str:
    return f"find /root/usr/lib/modules -name '{name}.ko*' -delete; rmmod {name} || true"


_DAEMONS = "usr/libexec/buildos-daemons"

_BROKEN = [
    Broken("natd is missing", _without("usr/sbin/buildos-natd"), "why-10"),
    Broken("netd is missing", _without("usr/sbin/buildos-netd"), "why-10"),
    Broken("hostnamed is missing", _without("usr/sbin/buildos-hostnamed"), "why-10"),
    Broken("agentd is missing", _without("usr/sbin/buildos-agentd"), "why-10"),
    Broken("all daemons are missing", _without(_DAEMONS), "why-10"),
    Broken("all daemons end at once", _instead(_DAEMONS, "exit 1"), "why-10"),
    Broken("no daemon gets ready", _instead(_DAEMONS, "exec sleep infinity"), "why-10"),
    Broken("buildosctl is missing", _without("usr/bin/buildosctl"), "why-"),
    Broken("buildosctl never ends", _instead("usr/bin/buildosctl", "exec sleep infinity"), "why-"),
    Broken("the agent is missing", _without("usr/bin/bbot-agent"), "why-18"),
    Broken("the agent ends at once", _instead("usr/bin/bbot-agent", "exit 1"), "why-18"),
    Broken("the driver of the NIC is missing", _module("e1000"), "why-11"),
    Broken("the kernel has no bridges", _module("bridge"), "why-"),
    Broken("the kernel has no nftables", _module("nf_tables"), "why-15"),
    Broken("dnsmasq is missing", _without("usr/sbin/dnsmasq"), "why-15"),
    Broken("dnsmasq ends at once", _instead("usr/sbin/dnsmasq", "exit 1"), "why-15"),
    Broken("there is no bus", _without("usr/bin/dbus-daemon"), "why-"),
    Broken("the agent's user is missing", "sed -i /^build:/d /root/etc/passwd", "why-"),
    Broken("the agents are masked", "ln -s /dev/null /root/etc/systemd/system/bbot@.service", "why-"),
    Broken("udev is missing", _without("usr/bin/udevadm"), "why-"),
    Broken(
        "netd's configuration is invalid",
        "mkdir -p /root/etc/buildos && echo nonsense >/root/etc/buildos/netd.toml",
        "why-",
    ),
    Broken("nothing can be written", "dd if=/dev/zero of=/root/fill bs=1M || true", "why-"),
]

# What does not run long enough to return by itself: a script in place of the last line of init.
_DEAD = {
    "init ends": "exit 1",
    "there is no root": "umount -l /root; exec switch_root /root /usr/lib/systemd/systemd",
    "systemd is missing": "rm /root/usr/lib/systemd/systemd",
    "the C library is missing": "rm /root/usr/lib/x86_64-linux-gnu/libc.so.6",
    "init hangs": "while :; do sleep 60; done",
    "the kernel crashes": "echo c >/root/proc/sysrq-trigger",
}


def _take(
    host: BootedHost, publisher: Publisher, system: System, serial: int
) -> None:
    """Gives the system to the host, and waits until the host is back."""
    before = kernels(host)
    request(host, publisher, system, serial, _DEADLINE_S)
    wait_for_load(host, before + 1)
    host.guest.wait_for(
        lambda: kernels(host) >= before + 2, "the host is back", 2 * BOOT_SECONDS
    )
    assert kernels(host) == before + 2
    host.shell.reset()
    host.shell.wait(BOOT_SECONDS)


def _wait_for_poll(host: BootedHost) -> None:
    polls = len(host.lan.task_requests())
    host.guest.wait_for(
        lambda: len(host.lan.task_requests()) > polls, "the agent polls again", BOOT_SECONDS
    )


def test_host_returns_from_each_bad_system(
    boot_once: Boot, publisher: Publisher, figure: Callable[[str], None]
) -> None:
    host = start(boot_once, publisher, memory=2560)
    for serial, bad in enumerate(_BROKEN, 1):
        begin = time.monotonic()
        system = publisher.variant("bad", bad.script)
        _take(host, publisher, system, serial)
        line = host.shell.output("cat /proc/cmdline")
        assert publisher.good.running in line, bad.name
        assert f"buildos.returned={bad.code}" in line, (bad.name, line)
        _wait_for_poll(host)
        trial = trial_of(host)
        assert trial["state"] == "returned", (bad.name, trial)
        assert (trial["image"], trial["initrd"]) == system.digests, bad.name
        assert trial["reason"], bad.name
        taken = time.monotonic() - begin
        figure(f"{bad.name}: back after {taken:.0f} s: {trial['reason']}")
        publisher.remove(system)
        trust(host, publisher.key)


def test_host_starts_by_its_boot_server_after_bad_system_that_does_not_run(
    boot_once: Boot, publisher: Publisher, figure: Callable[[str], None]
) -> None:
    """The firmware remembers which system it was."""
    host = start(boot_once, publisher, memory=2560, uefi=True, extra=_WATCHDOG)
    for serial, (name, script) in enumerate(_DEAD.items(), 1):
        begin = time.monotonic()
        system = publisher.variant("bad", script)
        _take(host, publisher, system, serial)
        line = host.shell.output("cat /proc/cmdline")
        assert publisher.good.running in line, name
        assert "buildos.trial" not in line and "buildos.returned" not in line, (name, line)
        _wait_for_poll(host)
        trial = trial_of(host)
        assert trial["state"] == "returned", (name, trial)
        assert (trial["image"], trial["initrd"]) == system.digests, name
        figure(f"{name}: back after {time.monotonic() - begin:.0f} s")
        publisher.remove(system)
        trust(host, publisher.key)
