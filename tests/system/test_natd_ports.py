"""Tests table bridge buildos: what a machine, and a container on br0, cannot do on a bridge."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
from conftest import NewHost
from host import Host
from machine import HOSTILE_MACHINE, Machine, machine_with_lease
from nat import packets, public_address, quiet_journal, usage, wait_until_ready
from simlan.lan import Lan
from simlan.process import end, start
from simlan.wait import wait_for

_HOST = "172.23.0.1"
_FOREIGN = "a machine under a foreign address"


def _attack(machine: Machine, *arguments: str) -> None:
    with quiet_journal(machine.host):
        subprocess.run(machine.outside([*HOSTILE_MACHINE, *arguments]), check=True)


@contextmanager
def _attacking(machine: Machine, *arguments: str, quiet: bool = True) -> Iterator[None]:
    """Attacks while the context lasts. With `quiet`, the host must log little meanwhile."""
    with quiet_journal(machine.host) if quiet else nullcontext():
        process = start(machine.outside([*HOSTILE_MACHINE, *arguments]), stdout=subprocess.PIPE)
        try:
            yield
        finally:
            end(process)


def _loses_nothing(machine: Machine, *addresses: str) -> None:
    """Asserts that the machine reaches the addresses and the host's name server."""
    for address in addresses:
        assert " 0% packet loss" in machine.run(
            f"ping -q -i 0.05 -c 40 -W 2 {address}", check=False
        ), address
    assert machine.succeeds("getent ahostsv4 gateway.lan.example")


def _neighbour(machine: Machine, address: str) -> str:
    return machine.run(f"ip neigh show {address} dev eth0").split("lladdr ")[1].split()[0]


def _elements(host: Host, name: str) -> str:
    """Returns the elements of a set, as nft(8) lists them."""
    listed = host.run(f"nft list set bridge buildos {name}")
    return listed.partition("elements")[2]


def test_arp_for_host_is_dropped(online: Host, lan: Lan) -> None:
    attacker, other = machine_with_lease(online), machine_with_lease(online)
    before = packets(online, "a machine under the host's address")
    with _attacking(attacker, "arp", _HOST, "--rate", "50"):
        _loses_nothing(other, _HOST, lan.address)
        counted = packets(online, "a machine under the host's address")
    assert counted > before
    assert _neighbour(other, _HOST) == online.link("br1")["address"]
    _loses_nothing(other, lan.address)


def test_arp_for_other_machine_is_dropped(online: Host) -> None:
    attacker, one, two = (machine_with_lease(online) for _ in range(3))
    before = packets(online, _FOREIGN)
    with _attacking(attacker, "arp", two.address, "--rate", "50"):
        _loses_nothing(one, two.address)
        counted = packets(online, _FOREIGN)
    assert counted > before
    assert _neighbour(one, two.address) == two.mac


def test_machine_is_no_dhcp_server(online: Host) -> None:
    attacker = machine_with_lease(online)
    network = attacker.address.rpartition(".")[0]
    probed = online.bus_property("nat1", "ProbeUSec")
    serve = ["dhcp-server", attacker.address, "--seconds", "60"]
    with _attacking(attacker, *serve):
        for _ in range(4):
            other = machine_with_lease(online)
            assert other.address != f"{network}.200"
            assert f"default via {_HOST}" in other.run("ip route")
    # A restart logs lines.
    with _attacking(attacker, *serve, quiet=False):
        # The probe passes, too.
        online.systemctl("restart", "buildos-dnsmasq.service")
        online.wait_for(lambda: online.bus_property("nat1", "ProbeUSec") > probed, "a probe")
        wait_until_ready(online)
    assert packets(online, "a machine as DHCP server") > 0


def test_machine_cannot_fail_probe_by_its_hardware_address(online: Host) -> None:
    attacker = Machine(online)
    probe = "02:bd:00:50:52:42"
    attacker.run(f"ip link set eth0 address {probe}")
    attacker.run("udhcpc -i eth0 -s /bin/true -n -q -f -t 2 -T 1", check=False)
    assert packets(online, "the hardware address of the host") > 0
    probed = online.bus_property("nat1", "ProbeUSec")
    online.systemctl("restart", "buildos-dnsmasq.service")
    online.wait_for(lambda: online.bus_property("nat1", "ProbeUSec") > probed, "a probe")
    wait_until_ready(online)


def test_router_advertisements_are_dropped(online: Host) -> None:
    attacker, other = machine_with_lease(online), machine_with_lease(online)
    other.run("sysctl -q -w net.ipv6.conf.eth0.accept_ra=2")
    before = packets(online, "a machine without IPv4")
    _attack(attacker, "router-advertisements", "--seconds", "1")
    assert "2001:db8:bad" not in other.run("ip -6 address; ip -6 route")
    assert packets(online, "a machine without IPv4") >= before + 40


@pytest.mark.parametrize("owns_mac", [True, False])
def test_machine_cannot_send_as_other_machine(online: Host, lan: Lan, *, owns_mac: bool) -> None:
    attacker, other = machine_with_lease(online), machine_with_lease(online)
    lan.start_server("receive", [*HOSTILE_MACHINE, "receive", lan.address, "7000"], "listening")
    assert attacker.succeeds(f"ping -c 1 -W 5 {_HOST}")
    before = packets(online, _FOREIGN)
    mac = [] if owns_mac else ["--mac", other.mac]
    _attack(attacker, "forge", other.address, lan.address, "7000", "10", *mac)
    assert lan.log("receive.log") == "listening\n"
    assert packets(online, _FOREIGN) == before + 10
    _loses_nothing(other, _HOST)


def test_new_port_is_isolated_without_natd(host: Host, lan: Lan) -> None:
    host.configure("natd", "isolate_machines = true")
    lan.serve_dhcp()
    host.start([lan])
    wait_until_ready(host)
    one = machine_with_lease(host)
    host.run(f"kill -STOP {host.main_pid('buildos-natd.service')}")
    for _ in range(10):
        two = machine_with_lease(host)
        assert not two.succeeds(f"ping -c 2 -i 0.1 -W 0.2 {one.address}")
    _loses_nothing(two, lan.address)
    host.run(f"kill -CONT {host.main_pid('buildos-natd.service')}")
    assert packets(host, "machines are kept apart") > 0


def test_hardware_addresses_without_lease_are_not_learned(online: Host) -> None:
    attacker, other = machine_with_lease(online), machine_with_lease(online)
    _attack(attacker, "hardware-addresses", "50000")
    assert online.run("bridge fdb show br br1").count("\n") < 50
    _loses_nothing(other, _HOST)
    assert machine_with_lease(online).address


def test_arp_does_not_fill_table_of_neighbours(online: Host) -> None:
    attacker, other = machine_with_lease(online), machine_with_lease(online)
    _attack(attacker, "neighbours", "172.23", "5000")
    assert online.run("ip neigh show dev br1").count("\n") < 20
    _loses_nothing(other, _HOST)


def test_requested_leases_of_port_are_limited(online: Host, lan: Lan) -> None:
    attacker, other = Machine(online), machine_with_lease(online)
    _attack(attacker, "leases", "172.23", "3000")
    # The attacker has eight, and at most one more after a minute.
    leases = len(usage(online, "Machines"))
    assert leases <= 11, leases
    assert packets(online, "a machine with too many DHCP requests") > 2000
    began = time.monotonic()
    assert machine_with_lease(online).address
    assert time.monotonic() - began < 5
    _loses_nothing(other, lan.address)
    assert online.bus_property("nat1", "Ready")


def test_port_does_not_fill_small_network(host: Host, lan: Lan) -> None:
    host.configure("netd", 'private = "192.168.213.1/28"')
    lan.serve_dhcp()
    host.start([lan])
    wait_until_ready(host)
    attacker = Machine(host)
    _attack(attacker, "leases", "192.168.213", "50")
    host.wait_for(lambda: _elements(host, "full_ports"), "the port is full")
    # A quarter of 12 addresses.
    assert len(usage(host, "Machines")) <= 3
    dropped = packets(host, "a machine with too many leases")

    def is_refused() -> bool:
        # At first the limit of the rate can drop all of them.
        _attack(attacker, "leases", "192.168.213", "50")
        return packets(host, "a machine with too many leases") > dropped

    host.wait_for(is_refused, "messages of the full port are dropped")
    for _ in range(9):
        assert machine_with_lease(host).address
    # The addresses become free with the port.
    host.run(f"ip link delete {attacker.name}")
    host.wait_for(lambda: not _elements(host, "full_ports"), "the port is forgotten")


def test_number_of_leases_of_port_is_a_setting(host: Host, lan: Lan) -> None:
    host.configure("natd", "machine_leases = 1")
    lan.serve_dhcp()
    host.start([lan])
    wait_until_ready(host)
    machine = machine_with_lease(host)
    _attack(machine, "leases", "172.23", "5")
    assert [found[0] for found in usage(host, "Machines")] == [machine.address]
    host.run("rm /etc/buildos/natd.conf.d/50-test.toml")
    host.systemctl("reload", "buildos-natd.service")
    host.wait_for(lambda: not _elements(host, "full_ports"), "the port has room")
    other = Machine(host)
    _attack(other, "leases", "172.23", "3")
    host.wait_for(lambda: len(usage(host, "Machines")) == 4, "further leases")


def test_refused_dhcp_messages_are_not_logged(online: Host) -> None:
    attacker = machine_with_lease(online)
    _attack(attacker, "refused-dhcp", _HOST, attacker.address, "--seconds", "1")
    # The machine gave up its address, and gets another.
    assert attacker.take_lease()


def test_leases_are_learned_without_natd(online: Host, lan: Lan) -> None:
    online.run(f"kill -STOP {online.main_pid('buildos-natd.service')}")
    machine = machine_with_lease(online)
    _loses_nothing(machine, _HOST, lan.address)
    online.run(f"kill -CONT {online.main_pid('buildos-natd.service')}")


@pytest.mark.parametrize(
    "damage",
    [
        "nft flush ruleset",
        "nft delete table bridge buildos",
        "nft flush chain bridge buildos prerouting",
        "systemctl kill --signal=KILL buildos-natd.service; nft flush ruleset",
    ],
)
def test_machine_keeps_its_lease_when_table_is_replaced(
    online: Host, lan: Lan, damage: str
) -> None:
    machine = machine_with_lease(online)
    _loses_nothing(machine, lan.address)
    # natd has read the lease.
    online.run("ip link add event type bridge && ip link del event")
    since = online.bus_property("nat1", "ProbeUSec")
    online.run(damage)
    online.wait_for(
        lambda: machine.mac in online.run("nft list table bridge buildos", check=False),
        "the table is back with the lease",
    )
    online.wait_for(lambda: online.bus_property("nat1", "ProbeUSec") > since, "the next probe")
    wait_until_ready(online)
    _loses_nothing(machine, _HOST, lan.address)


def test_idle_machine_keeps_its_lease_when_table_is_flushed_without_natd(
    online: Host, lan: Lan
) -> None:
    machine = machine_with_lease(online)
    online.wait_for(
        lambda: machine.mac in online.read("/run/buildos/natd/bindings.json"), "natd has the lease"
    )
    # The machine sends nothing by itself.
    machine.run("sysctl -q -w net.ipv6.conf.eth0.disable_ipv6=1")
    online.systemctl("stop", "buildos-natd.service")
    online.run("nft flush ruleset; ip link set br1 type bridge fdb_flush")
    assert machine.mac not in online.run("bridge fdb show br br1 dynamic")
    online.systemctl("start", "buildos-natd.service")
    online.wait_for(
        lambda: machine.address in _elements(online, "addresses"), "the table has the lease"
    )
    wait_until_ready(online)
    _loses_nothing(machine, _HOST, lan.address)


def test_hardware_address_moves_with_machine_to_new_port(online: Host) -> None:
    machine = machine_with_lease(online)
    assert machine.mac in _elements(online, "hardware_addresses")
    online.run(f"ip link del {machine.name}")
    online.wait_for(
        lambda: machine.mac not in _elements(online, "hardware_addresses"), "the port is forgotten"
    )
    # natd changes one set after the other.
    online.wait_for(
        lambda: machine.address not in _elements(online, "addresses"), "its lease is forgotten"
    )
    again = Machine(online)
    again.run(f"ip link set eth0 address {machine.mac}")
    assert again.take_lease() == machine.address


def test_released_address_is_closed(online: Host) -> None:
    machine = machine_with_lease(online)
    # udhcpc(8) releases its lease at this signal.
    machine.run("timeout -s USR2 -k 1 5 udhcpc -i eth0 -s /bin/true -n -f", check=False)
    online.wait_for(
        lambda: machine.address not in online.read("/run/buildos/dnsmasq/leases"), "a release"
    )
    online.wait_for(lambda: machine.address not in _elements(online, "addresses"), "it is closed")
    assert not machine.succeeds(f"ping -c 1 -W 1 {_HOST}")


def test_static_address_needs_setting(host: Host, lan: Lan) -> None:
    host.configure("natd", "require_lease = false")
    lan.serve_dhcp()
    host.start([lan])
    wait_until_ready(host)
    machine, dynamic = Machine(host), machine_with_lease(host)
    machine.run(
        f"ip address add 172.23.0.99/16 dev eth0; ip route add default via {_HOST}",
    )
    assert machine.succeeds(f"ping -c 1 -W 5 {lan.address}")
    assert machine.succeeds(f"ping -c 1 -W 5 {dynamic.address}")
    with _attacking(machine, "arp", _HOST, "--rate", "50"):
        assert " 0% packet loss" in dynamic.run(f"ping -q -i 0.05 -c 40 -W 2 {_HOST}", check=False)
    host.run("rm /etc/buildos/natd.conf.d/50-test.toml")
    host.systemctl("reload", "buildos-natd.service")
    host.wait_for(
        lambda: not machine.succeeds(f"ping -c 1 -W 1 {lan.address}"),
        "the static address is closed",
    )
    _loses_nothing(dynamic, lan.address)


def test_container_on_br0_cannot_take_part_of_lan(online: Host, lan: Lan) -> None:
    container = Machine(online, "br0")
    container.run("ip address add 198.51.100.222/24 dev eth0")
    online.wait_for(
        lambda: container.succeeds(f"ping -c 1 -W 1 {lan.address}"), "the container is on the LAN"
    )
    receive = [*HOSTILE_MACHINE, "receive", lan.address, "68", "7000"]
    lan.start_server("receive", receive, "listening")
    for source, port in ((67, 68), (5000, 7000)):
        _attack(container, "datagram", str(source), lan.address, str(port))
    wait_for(lambda: "7000 " in lan.log("receive.log"), "the LAN gets the other datagram")
    assert lan.log("receive.log").count("\n") == 2
    assert packets(online, "a DHCP server behind the host") == 1
    _attack(container, "arp", public_address(online), "--seconds", "1")
    assert packets(online, "the host's address on br0") >= 40
    assert online.bus_property("network1", "Online")


def test_isolation_flag_of_older_version_is_cleared(new_host: NewHost, lan: Lan) -> None:
    host = new_host()
    lan.serve_dhcp()
    host.start([lan])
    wait_until_ready(host)
    one, two = machine_with_lease(host), machine_with_lease(host)
    host.run(f"ip link set {one.name} type bridge_slave isolated on")
    host.run(f"ip link set {two.name} type bridge_slave isolated on")
    host.wait_for(lambda: one.succeeds(f"ping -c 1 -W 1 {two.address}"), "the flag is cleared")
