"""A host is given one bad operating system after the other, and is back after each of them;
only with --all.

    sudo tests/lane tests/boot --all -k bad_system

Each system is made from the good one, by a change of its root or of its initrd. What the channel
refuses before a system is loaded is in tests/system/test_os_update.py and test_os_handover.py.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from booted_host import BOOT_SECONDS, Boot, BootedHost
from test_kexec import (
    Publisher,
    kernels,
    request,
    start,
    trial_of,
    trust,
    wait_for_load,
)

pytestmark = pytest.mark.long

_DEADLINE_S = 60
"""The shortest that a trial may have."""


@dataclass(frozen=True)
class Broken:
    """A bad system that runs long enough to return by itself."""

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
    Broken("nothing can be written", "dd if=/dev/zero of=/root/fill bs=1M || true", "why-"),
]

# What does not run long enough to return by itself, or has no program that would return.
_DEAD = {
    "init ends": "exit 1",
    "there is no root": "umount -l /root; exec switch_root /root /usr/lib/systemd/systemd",
    "systemd is missing": "rm /root/usr/lib/systemd/systemd",
    "the C library is missing": "rm /root/usr/lib/x86_64-linux-gnu/libc.so.6",
    "all daemons are missing": _without(_DAEMONS),
    "all daemons end at once": _instead(_DAEMONS, "exit 1"),
    "all daemons hang": _instead(_DAEMONS, "exec sleep infinity"),
    "the kernel crashes": "echo c >/root/proc/sysrq-trigger",
}


def _take(host: BootedHost, publisher: Publisher, script: str) -> tuple[str, str]:
    """Gives a bad system to the host, and waits until the host is back. Returns its digests."""
    system = publisher.variant("bad", script)
    digests = system.digests
    trust(host, publisher.key)
    before = kernels(host)
    request(host, publisher, system, before, _DEADLINE_S)
    wait_for_load(host, before + 1)
    host.guest.wait_for(
        lambda: kernels(host) >= before + 2, "the host is back", 2 * BOOT_SECONDS
    )
    assert kernels(host) == before + 2
    publisher.remove(system)
    host.shell.reset()
    host.shell.wait(BOOT_SECONDS)
    return digests


def _wait_for_poll(host: BootedHost) -> None:
    polls = len(host.lan.task_requests())
    host.guest.wait_for(
        lambda: len(host.lan.task_requests()) > polls, "the agent polls again", BOOT_SECONDS
    )


@pytest.fixture(scope="module")
def publisher(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Publisher]:
    publisher = Publisher(tmp_path_factory.mktemp("publisher"), image)
    yield publisher
    publisher.close()


@pytest.fixture(scope="module")
def host(boot: Boot, publisher: Publisher) -> BootedHost:
    return start(boot, publisher, memory=2560, trusts=False)


@pytest.fixture(scope="module")
def uefi_host(boot: Boot, publisher: Publisher) -> BootedHost:
    return start(boot, publisher, memory=2560, trusts=False, uefi=True)


@pytest.mark.parametrize("bad", _BROKEN, ids=lambda bad: bad.name.replace(" ", "-"))
def test_host_returns_from_bad_system(
    host: BootedHost, publisher: Publisher, figure: Callable[[str], None], bad: Broken
) -> None:
    begin = time.monotonic()
    digests = _take(host, publisher, bad.script)
    line = host.shell.output("cat /proc/cmdline")
    assert publisher.good.running in line
    assert f"buildos.returned={bad.code}" in line
    _wait_for_poll(host)
    trial = trial_of(host)
    assert trial["state"] == "returned", trial
    assert (trial["image"], trial["initrd"]) == digests
    assert trial["reason"]
    taken = time.monotonic() - begin
    figure(f"{bad.name}: back after {taken:.0f} s: {trial['reason']}")


@pytest.mark.parametrize("name", _DEAD, ids=lambda name: name.replace(" ", "-"))
def test_host_starts_by_its_boot_server_after_bad_system(
    uefi_host: BootedHost, publisher: Publisher, figure: Callable[[str], None], name: str
) -> None:
    """The firmware remembers which system it was."""
    begin = time.monotonic()
    digests = _take(uefi_host, publisher, _DEAD[name])
    line = uefi_host.shell.output("cat /proc/cmdline")
    assert publisher.good.running in line
    assert "buildos.trial" not in line and "buildos.returned" not in line
    _wait_for_poll(uefi_host)
    trial = trial_of(uefi_host)
    assert trial["state"] == "returned", trial
    assert (trial["image"], trial["initrd"]) == digests
    figure(f"{name}: back after {time.monotonic() - begin:.0f} s")
