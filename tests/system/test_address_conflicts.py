"""Tests address conflicts: another host on the LAN uses br0's address (RFC 5227)."""

from __future__ import annotations

from collections.abc import Callable
from subprocess import Popen

import pytest
from host import Host
from machine import HOSTILE_MACHINE, Machine
from simlan.lan import BRIDGE, MAC, Lan
from simlan.process import end, start

_IN_USE = "198.51.100.150"
_LOST = "5e1c9b7f8a0240b6b2c4d09e3f7a1d58"
_REFUSED = "e0b3c8d1a7f94c5cb6d2f1e4a9078b63"
_CONTESTED = "b4c30b76a4764c599b011671668df086"
_MAC = "02:bd:00:00:00:55"
_LONG = ("--rate", "20", "--seconds", "60")
_PROXY_ARP = "597ab9d38d844c758b8f3ce1c77c4858"
_CLAIMANT = "02:55:00:00:00:01"


def _serve_address_in_use(lan: Lan) -> None:
    """Starts a DHCP server that offers an address which the LAN's bridge already has."""
    lan.run(["ip", "address", "add", f"{_IN_USE}/24", "dev", BRIDGE])
    lan.serve_dhcp(f"--dhcp-host={_MAC},{_IN_USE}")


def test_address_in_use_is_declined_and_replaced(host: Host, lan: Lan) -> None:
    _serve_address_in_use(lan)
    host.start([lan], macs=[_MAC])
    host.wait_for(lambda: f"DHCPDECLINE({BRIDGE}) {_IN_USE}" in lan.log("dnsmasq.log"), "DECLINE")
    address = host.wait_for(lambda: host.addresses("br0"), "a different address")[0]
    assert address != f"{_IN_USE}/24"
    logged = host.journal(f"MESSAGE_ID={_LOST}") + host.journal(f"MESSAGE_ID={_REFUSED}")
    assert any("is in use by" in str(entry["MESSAGE"]) for entry in logged)
    assert any("in use" in (e["reason"] or "") for e in host.history())


def test_conflict_detection_disabled_keeps_address(host: Host, lan: Lan) -> None:
    _serve_address_in_use(lan)
    host.configure("netd", "detect_conflicts = false\n")
    host.start([lan], macs=[_MAC])
    assert host.wait_online() == _IN_USE
    assert "DHCPDECLINE" not in lan.log("dnsmasq.log")


def test_address_in_use_is_kept_and_defended_while_a_neighbour_claims_it(
    host: Host, lan: Lan
) -> None:
    lan.serve_dhcp()
    lan.watch_arp()
    host.start([lan])
    address = host.wait_online()
    # netd has finished its announcements before the first claim.
    host.wait_for(lambda: lan.announcements(address) >= 2, "two announcements")
    before = lan.announcements(address)
    claims = ["claims", address, "--interface", BRIDGE, "--rate", "10", "--seconds", "1"]
    lan.run([*HOSTILE_MACHINE, *claims])
    host.wait_for(lambda: lan.announcements(address) > before, "the address is defended")
    (entry,) = host.wait_for(lambda: host.journal(f"MESSAGE_ID={_CONTESTED}"), "a message")
    assert entry["BUILDOS_MAC"] == _CLAIMANT
    reason = str(host.bus_property("network1", "Reason"))
    assert f"{_CLAIMANT} claims this address, too" in reason
    assert host.bus_property("network1", "State") == "online"
    assert host.addresses("br0") == [f"{address}/24"]
    assert "DHCPDECLINE" not in lan.log("dnsmasq.log")


def _start_while_claimed(host: Host, lan: Lan, start: Callable[[], Popen[str]]) -> None:
    """Starts the host without a DHCP server. Serves DHCP while `start` claims the address."""
    host.start([lan], macs=[_MAC])
    host.wait_for(lambda: host.bus_property("network1", "State") == "acquiring", "DISCOVERs")
    process = start()
    lan.serve_dhcp(f"--dhcp-host={_MAC},{_IN_USE}")
    host.wait_online()
    host.wait_for(
        lambda: lan.announcements(_IN_USE, _MAC) >= 2 or _declines(lan), "the end of probing"
    )
    assert process.poll() is None, "the claims ended too early"
    end(process)


def _declines(lan: Lan) -> int:
    return lan.log("dnsmasq.log").count("DHCPDECLINE")


def test_claim_by_container_on_br0_is_not_believed(host: Host, lan: Lan) -> None:
    lan.watch_arp()

    def claim() -> Popen[str]:
        container = Machine(host, "br0")
        return start(container.outside([*HOSTILE_MACHINE, "claims", _IN_USE, *_LONG]))

    _start_while_claimed(host, lan, claim)
    assert (host.addresses("br0"), _declines(lan)) == ([f"{_IN_USE}/24"], 0)


@pytest.mark.parametrize(("vlan", "believed"), [("20", False), ("0", True)])
def test_claim_in_other_vlan_is_not_believed(
    host: Host, lan: Lan, vlan: str, believed: bool
) -> None:
    lan.watch_arp()
    claims = [*HOSTILE_MACHINE, "claims", _IN_USE, "--vlan", vlan, "--interface", BRIDGE, *_LONG]
    _start_while_claimed(host, lan, lambda: lan.start(claims, "claims.log"))
    assert bool(_declines(lan)) == believed
    assert (host.addresses("br0") != [f"{_IN_USE}/24"]) == believed


def test_router_with_proxy_arp_costs_no_address(host: Host, lan: Lan) -> None:
    for name in ("forwarding", "proxy_arp"):
        lan.run(["sysctl", "-q", "-w", f"net.ipv4.conf.{BRIDGE}.{name}=1"])
    # Linux answers for addresses that it routes to a different link.
    for half in ("0/25", "128/25"):
        lan.run(["ip", "route", "add", f"{lan.prefix}.{half}", "dev", "chain"])
    lan.watch_arp()
    lan.serve_dhcp()
    host.start([lan])
    address = host.wait_online()
    (entry,) = host.wait_for(lambda: host.journal(f"MESSAGE_ID={_PROXY_ARP}"), "a message")
    assert entry["BUILDOS_MAC"] == MAC
    host.wait_for(lambda: lan.announcements(address) >= 2, "two announcements")
    assert "detect_conflicts" in str(host.bus_property("network1", "Reason"))
    assert (host.addresses("br0"), _declines(lan)) == ([f"{address}/24"], 0)


@pytest.mark.parametrize("nics", [2, 4])
def test_several_nics_on_one_lan_make_no_loop_and_br0_answers_arp(
    host: Host, lan: Lan, nics: int
) -> None:
    lan.serve_dhcp()
    lan.watch_arp()
    host.start([lan] * nics)
    address = host.wait_online()
    host.wait_for(lambda: lan.announcements(address) >= 2, "the address is announced")
    assert host.addresses("br0") == [f"{address}/24"], "netd took its own NIC for a conflict"
    assert lan.answers_for(address) == [host.link("br0")["address"]]
    ports = [link["ifname"] for link in host.links() if link.get("master") == "br0"]
    assert len(ports) == 1


def test_arp_of_excluded_nic_is_no_conflict(host: Host, lan: Lan) -> None:
    lan.serve_dhcp()
    host.configure("netd", 'exclude = ["eth1"]\n')
    host.start([lan, lan])
    address = host.wait_online()
    # By default Linux answers ARP for br0's address on eth1, too.
    host.run("ip link set eth1 up")
    host.wait_for(lambda: len(lan.answers_for(address)) == 2, "both NICs answer")
    # When carrier returns, netd probes the address, and eth1 answers.
    lan.watch_arp()
    host.nics[0].unplug()
    host.wait_for(
        lambda: host.bus_property("network1", "State") == "carrier-lost",
        "netd notices the loss of carrier",
    )
    host.nics[0].plug()
    host.wait_for(lambda: lan.announcements(address) >= 2, "the address is announced")
    assert host.addresses("br0") == [f"{address}/24"]
    assert "DHCPDECLINE" not in lan.log("dnsmasq.log")
