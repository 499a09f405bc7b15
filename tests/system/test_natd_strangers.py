"""Tests that a hostile machine harms neither other machines, nor the host, nor the LAN."""

from __future__ import annotations

import subprocess

import pytest
from conftest import NewHost
from host import Host
from machine import HOSTILE_MACHINE, Machine, machine_with_lease
from nat import (
    CLOSED,
    messages,
    packets,
    public_address,
    quiet_journal,
    usage,
    wait_for_status,
    wait_until_ready,
)
from simlan.lan import Lan
from simlan.process import end, start
from simlan.wait import wait_for

_LIMIT = 2048
_LEARNED = 16_384
_CPU = 0.05
"""Share of a CPU that an attack may cost natd and netd. A flapping port cost natd a fifth once."""


def _send(machine: Machine, source: int, address: str, port: int) -> None:
    command = [*HOSTILE_MACHINE, "datagram", str(source), address, str(port)]
    subprocess.run(machine.outside(command), check=True)


def test_machine_cannot_use_dhcp_of_lan(online: Host, lan: Lan) -> None:
    machine = machine_with_lease(online)
    receive = [*HOSTILE_MACHINE, "receive", lan.address, "68", "546", "547"]
    lan.start_server("receive", receive, "listening")
    before = packets(online, "DHCP for the network of the uplink")
    for source, port in ((68, 67), (67, 67), (67, 68), (68, 68), (546, 547), (547, 546)):
        _send(machine, source, lan.address, port)
    # Table bridge buildos drops the datagrams of DHCP over IPv4 between client and server.
    assert packets(online, "DHCP for the network of the uplink") == before + 3
    assert lan.log("receive.log") == "listening\n"


def test_machine_does_not_send_from_system_port_of_host(online: Host, lan: Lan) -> None:
    machine = machine_with_lease(online)
    lan.start_server("receive", [*HOSTILE_MACHINE, "receive", lan.address, "5000"], "listening")
    for source in (53, 68, 1023, 1024, 5001):
        _send(machine, source, lan.address, 5000)
    wait_for(lambda: lan.log("receive.log").count("\n") == 6, "the LAN gets all datagrams")
    received = [line.split() for line in lan.log("receive.log").splitlines()[1:]]
    assert {source for _, source, _ in received} == {public_address(online)}
    ports = [int(port) for _, _, port in received]
    assert min(ports) >= 1024
    # NAT keeps the other ports.
    assert ports[3:] == [1024, 5001]


def test_machine_does_not_reach_link_local_addresses(online: Host, lan: Lan) -> None:
    machine = machine_with_lease(online)
    lan.own_address("169.254.169.254")
    assert online.succeeds("ping -c 1 -W 5 169.254.169.254")
    assert not machine.succeeds("ping -c 1 -W 1 169.254.169.254")
    assert packets(online, "an address that has no meaning outside") == 1


@pytest.mark.parametrize("bridge", ["br1", "br0"])
def test_machine_does_not_reach_host_past_the_bridge(online: Host, bridge: str) -> None:
    machine = Machine(online, bridge)
    host_address = online.addresses(bridge)[0].partition("/")[0]
    host = online.network("/proc/1/ns/net")
    receive = [*HOSTILE_MACHINE, "receive", "0.0.0.0", "5555"]
    process = start([*host, *receive], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "listening\n"
        before = packets(online, "past a bridge")
        for destination in (host_address, "255.255.255.255", "224.0.0.1"):
            attack = ["past-bridge", destination, "172.23.0.77", "5555", "32"]
            subprocess.run(machine.outside([*HOSTILE_MACHINE, *attack]), check=True)
        own = ["datagram", "4000", "127.0.0.1", "5555"]
        subprocess.run([*host, *HOSTILE_MACHINE, *own], check=True)
        assert process.stdout.readline() == "5555 127.0.0.1 4000\n"
        assert "198.18." not in online.run("ip neigh show")
        assert packets(online, "past a bridge") > before
    finally:
        end(process)


def test_host_does_not_route_between_computers_on_br0(online: Host, lan: Lan) -> None:
    lan.own_address("203.0.113.1")
    lan.run(
        ["ip", "route", "add", "192.0.2.9", "via", public_address(online), "src", "203.0.113.1"]
    )
    lan.run(["ping", "-c", "1", "-W", "1", "192.0.2.9"], check=False)
    assert packets(online, "the host is no router of br0's network") == 1


def test_connections_of_machine_leave_room_for_others(online: Host, lan: Lan) -> None:
    attacker, other = machine_with_lease(online), machine_with_lease(online)
    url = lan.serve_web("still there\n")
    lan.start_server("accept", [*HOSTILE_MACHINE, "accept", lan.address, "7000"], "listening")
    attack = [*HOSTILE_MACHINE, "connections", lan.address, "7000", str(2 * _LIMIT)]
    process = start(attacker.outside(attack), stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        opened = int(process.stdout.readline())
        # The kernel counts in 16 groups.
        assert _LIMIT * 0.75 < opened <= _LIMIT
        assert packets(online, "a machine with too many connections to the outside") > 0
        assert usage(online, "TrackedConnections")[0] < _LIMIT + 200
        for _ in range(10):
            assert other.run(["curl", "--silent", "--max-time", "5", url]) == "still there\n"
            assert online.succeeds(["curl", "--silent", "--max-time", "5", url])
        assert online.bus_property("nat1", "Ready")
    finally:
        end(process)


def test_queries_of_machine_leave_room_for_others(online: Host) -> None:
    attacker, other = machine_with_lease(online), machine_with_lease(online)
    # The host answers nothing there: the connections of unanswered datagrams stay.
    flood = [*HOSTILE_MACHINE, "flows", "172.23.0.1", "69", str(2 * _LIMIT)]
    subprocess.run(attacker.outside(flood), check=True)
    assert packets(online, "a machine with too many connections to the host") > _LIMIT // 2
    assert usage(online, "TrackedConnections")[0] < _LIMIT + 200
    assert not attacker.succeeds("ping -c 1 -W 1 172.23.0.1")
    assert other.succeeds("ping -c 1 -W 5 172.23.0.1")
    assert other.succeeds("getent ahostsv4 gateway.lan.example")


def test_segments_to_machine_fit_mtu_of_uplink(lan: Lan, new_host: NewHost) -> None:
    host = new_host()
    lan.serve_dhcp("--dhcp-option=option:mtu,1400")
    host.start([lan])
    wait_until_ready(host)
    machine = machine_with_lease(host)
    lan.start_server("accept", [*HOSTILE_MACHINE, "accept", lan.address, "7000"], "listening")
    connect = [*HOSTILE_MACHINE, "connections", lan.address, "7000", "1"]
    process = start(machine.outside(connect), stdout=subprocess.PIPE)
    try:
        wait_for(lambda: "segment" in lan.log("accept.log"), "the machine is connected")
    finally:
        end(process)
    # 20 bytes of IP, 20 of TCP, 12 of its timestamps.
    assert int(lan.log("accept.log").split()[-1]) <= 1400 - 52


def test_page_arrives_through_uplink_that_drops_larger_frames(
    lan: Lan, new_host: NewHost
) -> None:
    host = new_host()
    lan.serve_dhcp("--dhcp-option=option:mtu,1400")
    url = lan.serve_web(200_000 * "x")
    host.start([lan])
    wait_until_ready(host)
    # A bridge drops frames above the MTU of the port without an error message. The second
    # command keeps the LAN's own kernel from sending several segments in one frame.
    lan.run(["ip", "link", "set", host.nics[0].cable, "mtu", "1400"])
    lan.run(["ip", "link", "set", "lan0", "mtu", "1500", "gso_max_segs", "1"])
    machine = machine_with_lease(host)
    page = machine.run(["curl", "--silent", "--max-time", "20", url])
    assert len(page) == 200_000


def test_bridges_learn_limited_number_of_addresses(online: Host) -> None:
    for bridge in ("br0", "br1"):
        assert online.link(bridge)["linkinfo"]["info_data"]["fdb_max_learned"] == _LEARNED


def test_kernel_limits_are_restored(online: Host) -> None:
    timeout = "/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established"
    assert online.read(timeout).strip() == "7440"
    online.run(f"echo 432000 >{timeout}; ip link set br1 type bridge fdb_max_learned 0")
    # An event: a changed sysctl causes none.
    online.run("ip link add event type bridge && ip link del event")
    online.wait_for(lambda: online.read(timeout).strip() == "7440", "the timeout is restored")
    # A stricter value stays.
    online.run(f"echo 600 >{timeout}; ip link add event type bridge && ip link del event")
    online.wait_for(
        lambda: online.link("br1")["linkinfo"]["info_data"]["fdb_max_learned"] == _LEARNED,
        "the limit of br1 is restored",
    )
    assert online.read(timeout).strip() == "600"


def test_kernel_that_refuses_each_table_is_reported(online: Host) -> None:
    own = "delete table inet buildos; add table inet buildos { flags owner; };"
    own += "add table inet buildos_closed { flags owner; }"
    online.run(
        ["systemd-run", "--unit=owner", "sh", "-c", f"(echo '{own}'; sleep infinity) | nft -i"]
    )
    # The kernel of this lane cannot filter VLANs. tests/boot has one that can.
    status = wait_for_status(online, "machines reach all ports of the host")
    assert "no VLAN filtering" in status
    online.systemctl("stop", "owner.service")
    wait_until_ready(online)
    assert "buildos_closed" not in online.run("nft list tables")


def test_table_of_another_owner_closes_forwarding(online: Host, lan: Lan) -> None:
    machine = machine_with_lease(online)
    assert machine.succeeds(f"ping -c 1 -W 5 {lan.address}")
    online.run("systemd-run --unit=secret busybox httpd -f -p 8001 -h /usr/lib")
    fetch = "curl --silent --max-time 2 http://172.23.0.1:8001/os-release"
    online.wait_for(lambda: online.succeeds(fetch), "the closed port answers the host")
    # nft owns the table until it ends.
    own = "delete table inet buildos; add table inet buildos { flags owner; }"
    online.run(
        ["systemd-run", "--unit=owner", "sh", "-c", f"(echo '{own}'; sleep infinity) | nft -i"]
    )
    forwarding = "/proc/sys/net/ipv4/conf/{}/forwarding"
    for bridge in ("br0", "br1"):
        online.wait_for(
            lambda bridge=bridge: online.read(forwarding.format(bridge)).strip() == "0",
            f"{bridge} no longer forwards",
        )
    status = wait_for_status(online, "no NAT, and nothing is forwarded")
    assert "table inet buildos" in status
    assert len(messages(online, CLOSED)) == 1
    assert not machine.succeeds(f"ping -c 1 -W 1 {lan.address}")
    assert not online.bus_property("nat1", "Ready")
    online.wait_for(lambda: not machine.succeeds(fetch), "the port is closed")
    # What the host offers stays.
    assert machine.succeeds("getent ahostsv4 gateway.lan.example")
    online.systemctl("stop", "owner.service")
    wait_until_ready(online)
    assert not machine.succeeds(fetch)
    assert "buildos_closed" not in online.run("nft list tables")
    assert machine.succeeds(f"ping -c 1 -W 5 {lan.address}")


def test_flapping_port_costs_daemons_little_processor_time(online: Host) -> None:
    machine = machine_with_lease(online)

    def spent() -> dict[str, float]:
        units = {name: f"buildos-{name}.service" for name in ("natd", "netd")}
        return {
            name: int(online.unit(unit, "CPUUsageNSec")["CPUUsageNSec"]) / 1e9
            for name, unit in units.items()
        }

    seconds = 5
    with quiet_journal(online):
        before = spent()
        flap = [*HOSTILE_MACHINE, "flap", "--rate", "200", "--seconds", str(seconds)]
        subprocess.run(machine.outside(flap), check=True)
        after = spent()
    shares = {name: (after[name] - before[name]) / seconds for name in before}
    assert max(shares.values()) <= _CPU, shares
    wait_until_ready(online)
    assert machine.succeeds("ping -c 1 -W 10 172.23.0.1")
