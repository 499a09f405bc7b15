"""Tests that a hostile machine harms neither other machines, nor the host, nor the LAN."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from conftest import NewHost
from host import Host
from machine import Machine
from nat import packets, public_address, usage, wait_until_ready
from simlan.lan import Lan
from simlan.process import end, start
from simlan.wait import wait_for

_STRANGER = [sys.executable, str(Path(__file__).resolve().parents[1] / "lib/stranger.py")]
_LIMIT = 2048


def _machine(host: Host) -> Machine:
    machine = Machine(host)
    machine.take_lease()
    return machine


def _send(machine: Machine, source: int, address: str, port: int) -> None:
    command = [*_STRANGER, "datagram", str(source), address, str(port)]
    subprocess.run(machine.outside(command), check=True)


def test_machine_cannot_use_dhcp_of_lan(online: Host, lan: Lan) -> None:
    machine = _machine(online)
    lan.start_server("receive", [*_STRANGER, "receive", lan.address, "68", "546", "547"], "list")
    before = packets(online, "DHCP for the network of the uplink")
    for source, port in ((68, 67), (67, 67), (67, 68), (68, 68), (546, 547), (547, 546)):
        _send(machine, source, lan.address, port)
    assert packets(online, "DHCP for the network of the uplink") == before + 6
    assert lan.log("receive.log") == "listening\n"


def test_machine_does_not_send_from_system_port_of_host(online: Host, lan: Lan) -> None:
    machine = _machine(online)
    lan.start_server("receive", [*_STRANGER, "receive", lan.address, "5000"], "listening")
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
    machine = _machine(online)
    lan.own_address("169.254.169.254")
    assert online.succeeds("ping -c 1 -W 5 169.254.169.254")
    assert not machine.succeeds("ping -c 1 -W 1 169.254.169.254")
    assert packets(online, "an address that has no meaning outside") == 1


def test_host_does_not_route_between_computers_on_br0(online: Host, lan: Lan) -> None:
    lan.own_address("203.0.113.1")
    lan.run(
        ["ip", "route", "add", "192.0.2.9", "via", public_address(online), "src", "203.0.113.1"]
    )
    lan.run(["ping", "-c", "1", "-W", "1", "192.0.2.9"], check=False)
    assert packets(online, "the host is no router of br0's network") == 1


def test_connections_of_machine_leave_room_for_others(online: Host, lan: Lan) -> None:
    attacker, other = _machine(online), _machine(online)
    url = lan.serve_web("still there\n")
    lan.start_server("accept", [*_STRANGER, "accept", lan.address, "7000"], "listening")
    attack = [*_STRANGER, "connections", lan.address, "7000", str(2 * _LIMIT)]
    process = start(attacker.outside(attack), stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        opened = int(process.stdout.readline())
        assert _LIMIT - 50 <= opened <= _LIMIT
        assert packets(online, "a machine with too many connections to the outside") > 0
        assert usage(online, "TrackedConnections")[0] < _LIMIT + 200
        for _ in range(10):
            assert other.run(["curl", "--silent", "--max-time", "5", url]) == "still there\n"
            assert online.succeeds(["curl", "--silent", "--max-time", "5", url])
        assert online.bus_property("nat1", "Ready")
    finally:
        end(process)


def test_queries_of_machine_leave_room_for_others(online: Host) -> None:
    attacker, other = _machine(online), _machine(online)
    # The host answers nothing there: the connections of unanswered datagrams stay.
    flood = [*_STRANGER, "flows", "172.23.0.1", "69", str(2 * _LIMIT)]
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
    machine = _machine(host)
    lan.start_server("accept", [*_STRANGER, "accept", lan.address, "7000"], "listening")
    connect = [*_STRANGER, "connections", lan.address, "7000", "1"]
    process = start(machine.outside(connect), stdout=subprocess.PIPE)
    try:
        wait_for(lambda: "segment" in lan.log("accept.log"), "the machine is connected")
    finally:
        end(process)
    # 20 bytes of IP, 20 of TCP, 12 of its timestamps.
    assert int(lan.log("accept.log").split()[-1]) <= 1400 - 52
