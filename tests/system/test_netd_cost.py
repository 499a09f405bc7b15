"""Tests what netd costs: system calls of a renewal, memory after a burst of links."""

from __future__ import annotations

import subprocess
from pathlib import Path

from host import Host
from simlan.lan import Lan

NETD = "buildos-netd.service"
_RENEWALS = 4
_CALLS = 36
"""Limit of system calls of a renewal while the daemons follow netd on the bus."""
_LINKS = 300
_GROWTH = 2048
"""Limit of the memory that remains after a burst of links, in kB."""


def test_renewal_takes_few_system_calls(host: Host, lan: Lan, tmp_path: Path) -> None:
    lan.serve_dhcp("--dhcp-option=option:T1,3s", "--dhcp-option=option:T2,100s", lease="2m")
    host.start([lan])
    host.wait_online()
    host.wait_for_boot()
    # The console follows netd, too.
    assert host.systemctl("is-active", "buildos-console.service").strip() == "active"

    def acknowledged() -> int:
        return lan.log("dnsmasq.log").count("DHCPACK")

    trace = tmp_path / "trace"
    command = ["strace", "-f", "-qq", "--signal=none", f"--output={trace}"]
    with subprocess.Popen([*command, f"--attach={host.outside_pid(NETD)}"]) as strace:
        first = acknowledged()
        # The first renewal might not be traced from its start.
        host.wait_for(lambda: acknowledged() >= first + _RENEWALS + 2, "renewals")
        # strace detaches.
        strace.terminate()
    counts: list[int] = []
    for line in trace.read_text().splitlines():
        if " resumed>" in line:
            continue
        if "sendto(" in line and "htons(67)" in line:
            counts.append(0)
        if counts:
            counts[-1] += 1
    # The last one might not be traced to its end.
    assert len(counts) > _RENEWALS
    print(f"system calls of renewals: {counts}")
    # Other events, such as a changed hostname of any host, add calls to some renewals.
    assert min(counts[:-1]) <= _CALLS, counts


def test_memory_is_returned_after_burst_of_links(host: Host, lan: Lan) -> None:
    lan.serve_dhcp()
    host.start([lan])
    host.wait_online()
    host.wait_for_boot()
    before = host.resident(NETD)
    pairs = range(_LINKS // 2)

    def apply(commands: list[str]) -> None:
        host.write("/run/links", "".join(f"link {command}\n" for command in commands))
        host.run("ip -batch /run/links")

    def known() -> set[str]:
        return set(host.bus_property("network1", "Links"))

    # The port of natd's probe comes and goes meanwhile.
    others = known()
    apply([f"add a{i} type veth peer name b{i}" for i in pairs])
    host.wait_for(lambda: len(known() - others) >= _LINKS, "netd knows the links")
    apply([f"del a{i}" for i in pairs])
    host.wait_for(lambda: len(known() - others) <= 1, "netd has forgotten the links")
    host.wait_for(
        lambda: host.resident(NETD) <= before + _GROWTH, "netd returns the memory", 60
    )
