"""Tests that resources which machines use up are named, and become free when machines end."""

from __future__ import annotations

import subprocess
import time

from host import Host
from machine import HOSTILE_MACHINE, Machine, machine_with_lease
from nat import messages, now, usage, wait_for_status, wait_until_ready
from simlan.lan import Lan
from simlan.process import end, start

_CONNECTIONS = 500

# See units/systemd/catalog/buildos-natd.catalog.
_SHORTAGE = "8fda1a6e3dce499ca8a5c9b2bffe5cde"
_OVER = "8138e073c57647cab7466fd24e2b5f95"


def _shortages(host: Host) -> dict[str, str]:
    return dict(host.bus_property("nat1", "Shortages"))


def _release(machine: Machine) -> None:
    release = ["timeout", "3", "udhcpc", "-i", "eth0", "-f", "-R", "-s", "/bin/true"]
    machine.run(release, check=False)


def test_used_up_addresses_are_named(host: Host, lan: Lan) -> None:
    host.configure("netd", 'private = "192.168.213.1/28"')
    host.configure("natd", "probe_interval_s = 10")
    lan.serve_dhcp()
    host.start([lan])
    wait_until_ready(host)
    assert ",120\n" in host.read("/run/buildos/dnsmasq/dnsmasq.conf")
    machines = [machine_with_lease(host) for _ in range(10)]
    assert _shortages(host) == {}
    machines += [machine_with_lease(host) for _ in range(2)]
    host.wait_for(lambda: "addresses" in _shortages(host), "the shortage is published")
    wait_for_status(host, "short of addresses: nine tenths of the 12 addresses")
    assert "note nat         short of addresses" in host.run("buildosctl why", check=False)
    assert 'buildos_nat_shortage{resource="addresses"} 1' in host.run("buildosctl metrics")
    assert len(messages(host, _SHORTAGE)) == 1

    # One more gets no address. dnsmasq does not log each refused request.
    began = now(host)
    late = Machine(host)
    assert not late.succeeds("udhcpc -i eth0 -s /bin/true -n -q -f -t 30 -T 0 2>/dev/null")
    lines = host.journal(f"--since=@{began}", "--unit=buildos-dnsmasq.service")
    assert len(lines) <= 10

    # The probe has an address of its own.
    probed = host.bus_property("nat1", "ProbeUSec")
    host.wait_for(lambda: host.bus_property("nat1", "ProbeUSec") > probed, "the next probe")
    assert host.bus_property("nat1", "Ready")

    for machine in machines[:4]:
        _release(machine)
    host.wait_for(lambda: _shortages(host) == {}, "the shortage is over")
    assert len(messages(host, _OVER)) == 1
    assert late.take_lease()


def _accept(lan: Lan) -> None:
    lan.start_server("accept", [*HOSTILE_MACHINE, "accept", lan.address, "7000"], "listening")


def _connect(lan: Lan, machine: Machine) -> subprocess.Popen[str]:
    """Opens connections that stay."""
    attack = [*HOSTILE_MACHINE, "connections", lan.address, "7000", str(_CONNECTIONS)]
    process = start(machine.outside(attack), stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert int(process.stdout.readline()) == _CONNECTIONS
    return process


def _wait_until_removed(host: Host) -> None:
    host.wait_for(
        lambda: usage(host, "TrackedConnections")[0] < _CONNECTIONS / 2,
        "the connections are removed",
    )


def test_connections_end_with_port_of_machine(online: Host, lan: Lan) -> None:
    machine, other = machine_with_lease(online), machine_with_lease(online)
    _accept(lan)
    other_process = _connect(lan, other)
    process = _connect(lan, machine)
    try:
        assert usage(online, "TrackedConnections")[0] >= 2 * _CONNECTIONS
        # natd looks at the ports every two seconds.
        seen = time.monotonic() + 5
        online.wait_for(lambda: time.monotonic() > seen, "natd has seen the port")
        online.run(f"ip link delete {machine.name}")
        online.wait_for(
            lambda: usage(online, "TrackedConnections")[0] < 1.5 * _CONNECTIONS,
            "the connections are removed",
        )
        # Those of another machine stay.
        assert usage(online, "TrackedConnections")[0] >= _CONNECTIONS
    finally:
        end(process)
        end(other_process)


def test_connections_end_with_lease_of_machine(online: Host, lan: Lan) -> None:
    machine = machine_with_lease(online)
    _accept(lan)
    process = _connect(lan, machine)
    try:
        assert usage(online, "TrackedConnections")[0] >= _CONNECTIONS
        _release(machine)
        _wait_until_removed(online)
    finally:
        end(process)


def test_readers_of_many_leases_share_memory(online: Host) -> None:
    pid = online.main_pid("buildos-natd.service")

    def memory(name: str) -> int:
        status = online.run(f"grep {name} /proc/{pid}/status")
        return int(status.split()[1])

    # dnsmasq rewrites the file at the next change of a lease only.
    lease = '"1895683600 02:bd:01:00:%02x:%02x 172.23.%d.%d * *\\n", a, b, a, b'
    loop = "for (a = 0; a < 255; a++) for (b = 0; b < 255; b++)"
    online.run(
        ["sh", "-ec", f"awk 'BEGIN {{ {loop} printf {lease} }}' >/run/buildos/dnsmasq/leases"]
    )
    read = (
        "busctl get-property org.build2.buildos.nat1 /org/build2/buildos/nat1"
        " org.build2.buildos.nat1.Usage Machines | wc -w"
    )
    readers = f"for reader in 0 1 2 3 4 5 6 7 8 9; do {read} & done; wait"
    counts = {int(count) for count in online.run(readers).split()}
    # Three words for each machine, signature and length.
    assert len(counts) == 1 and counts.pop() > 3 * 60_000
    assert memory("VmHWM") < 96 << 10
    online.wait_for(lambda: memory("VmRSS") < 32 << 10, "natd returns the memory")
