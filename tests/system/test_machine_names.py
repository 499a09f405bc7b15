"""Tests names for machines: the search list of the lease, and reverse lookups."""

from __future__ import annotations

from dhcp_double import DhcpDouble
from dhcp_packets import address, domain_names
from dhcp_server import Behaviour
from host import Host
from machine import Machine
from nat import dnsmasq_pid, wait_until_ready
from simlan.lan import Lan

SEARCH = "--dhcp-option=option:domain-search"
ACTIVE = "/run/buildos/dnsmasq/dnsmasq.conf"
"""The configuration that dnsmasq runs with."""
DOMAIN = "lan.example"
"""The domain of the LAN, in which its DNS server knows the name `gateway`."""


def leased(host: Host) -> Machine:
    """Creates a machine with a lease."""
    machine = Machine(host)
    machine.take_lease()
    return machine


def search_list(machine: Machine) -> str:
    """Returns the search list that the machine's lease brought."""
    lines = machine.run("cat /etc/resolv.conf").splitlines()
    return " ".join(line.removeprefix("search ") for line in lines if line.startswith("search "))


def name_of(where: Host | Machine, address: str) -> str:
    """Returns the name that a reverse lookup gives, or the empty text."""
    # Only DNS: the host's own files and its gateway are not the question.
    output = where.run(f"getent --service=hosts:dns hosts {address}", check=False)
    return output.split()[1] if output else ""


def test_machines_have_the_search_list_of_the_host(host: Host, lan: Lan) -> None:
    # A resolver ends its search at a server that refuses a question.
    names = ["--local=/example/", f"--host-record=store.eng.example,{lan.prefix}.9"]
    lan.serve_dhcp(*names)
    host.start([lan])
    wait_until_ready(host)
    # The lease has option 15 only. dnsmasq started with the search list.
    machine = leased(host)
    assert search_list(machine) == DOMAIN
    for where in (host, machine):
        assert lan.address in where.run("getent ahostsv4 gateway")
        assert not where.succeeds("getent ahostsv4 store")
    messages = host.journal("--identifier=buildos-dnsmasq")
    assert not [m for m in messages if "configuration changed" in m["MESSAGE"]]

    lan.stop_dhcp()
    lan.serve_dhcp(*names, f"{SEARCH},eng.example,{DOMAIN}")
    host.run("buildosctl renew")
    host.wait_for(lambda: "eng.example" in host.read(ACTIVE), "dnsmasq has the new list")
    wait_until_ready(host)
    pid = dnsmasq_pid(host)
    machine.take_lease()
    assert search_list(machine) == f"eng.example {DOMAIN}"
    for where in (host, machine):
        for name in ("gateway", "store"):
            assert where.succeeds(f"getent ahostsv4 {name}"), name

    # A renewal with equal options changes nothing.
    host.run("buildosctl renew")
    assert dnsmasq_pid(host) == pid


def test_machines_resolve_private_addresses_as_the_host(host: Host, lan: Lan) -> None:
    lan.serve_dhcp("--host-record=store.far.example,10.3.2.1")
    host.start([lan])
    wait_until_ready(host)
    machine = leased(host)
    for where in (host, machine):
        assert name_of(where, lan.address) == f"gateway.{DOMAIN}"
        assert name_of(where, "10.3.2.1") == "store.far.example"
        assert name_of(where, "10.3.2.2") == ""


def test_server_of_the_lan_does_not_name_machines(host: Host, lan: Lan) -> None:
    """Addresses of br1 mean other hosts, if any, to a server of the LAN."""
    address = "172.23.200.7"
    lan.serve_dhcp(f"--host-record=other.far.example,{address}", "--log-queries")
    host.start([lan])
    wait_until_ready(host)
    machine = leased(host)
    assert name_of(host, address) == "other.far.example"
    asked = lan.log("dnsmasq.log").count("query[PTR] 7.200.23.172")
    assert asked == 1
    assert name_of(machine, address) == ""
    assert lan.log("dnsmasq.log").count("query[PTR] 7.200.23.172") == asked


def test_unusual_search_domains_reach_machines(host: Host, lan: Lan) -> None:
    """dnsmasq does not start with an option that it refuses."""
    long = ".".join(["a" * 63] * 3)
    expected = ["10", "_tcp.example", "-x.example", "1.2.3.4", "fe", long]
    options = {6: address(lan.address), 119: domain_names(*expected, "one-too-many.lan.example")}
    DhcpDouble(lan, Behaviour(lan.address, options=options))
    host.start([lan])
    host.wait_for(lambda: dnsmasq_pid(host), "dnsmasq serves")
    assert host.bus_property("network1", "SearchDomains")[-1] == "one-too-many.lan.example"
    machine = leased(host)
    # 255 bytes have no room for the last.
    assert search_list(machine).split() == expected
