"""Tests netd with DHCP servers: dnsmasq, Kea, a relay agent, and stand-ins that are wrong,
late or mute, or send NAK.

The contents of netd's own messages are tested in test_dhcp_messages.py."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pytest
from buildroot import Root
from dhcp_defects import LEASE_DEFECTS, OFFER_DEFECTS, READABLE_DEFECTS
from dhcp_packets import address, classless_routes, domain_names
from dhcp_server import Behaviour
from dhcp_site import GOOD, NETD, ROGUE, Site
from roots import kea_root
from simlan.lan import Lan

GAP = 0.03
"""Delay of the good server's OFFER after the bad server's, in seconds."""


@pytest.fixture(scope="module")
def site(root: Root) -> Iterator[Site]:
    """One host for all tests; `Site.begin` resets it."""
    with closing(Site(root)) as site:
        yield site


@pytest.fixture(autouse=True)
def _no_crash(site: Site) -> Iterator[None]:
    """Fails a test during which systemd restarted netd."""
    yield
    assert site.host.unit(NETD, "NRestarts")["NRestarts"] == "0"


# Real servers

_TIMES = ("--dhcp-option=58,3", "--dhcp-option=59,6")
"""dnsmasq's options for T1 of 3 s and T2 of 6 s."""


@dataclass
class RealServer:
    """A real server with T1 of 3 s and T2 of 6 s."""

    start: Callable[[], None]
    stop: Callable[[], None]


@pytest.fixture(params=["dnsmasq", "not authoritative", "Kea", "relay"])
def real_server(
    site: Site, new_lan: Callable[..., Lan], request: pytest.FixtureRequest
) -> Iterator[RealServer]:
    """Starts a real server. The double only listens."""
    site.begin()
    lan = site.lan

    def serve_dnsmasq() -> None:
        lan.serve_dhcp(*_TIMES, lease="2m")

    def serve_dnsmasq_not_authoritative() -> None:
        lan.serve_dhcp(*_TIMES, lease="2m", authoritative=False)

    def serve_kea() -> None:
        lan.serve_kea(kea_root(), lease=120, t1=3, t2=6)

    if request.param == "relay":
        remote = new_lan("203.0.113")
        lan.relay_dhcp(remote)

        def serve_relayed() -> None:
            span = f"{lan.prefix}.100,{lan.prefix}.199,255.255.255.0,2m"
            remote.serve_dhcp(*_TIMES, f"--dhcp-range={span}")

        server = RealServer(serve_relayed, remote.stop_dhcp)
    else:
        serve = {
            "dnsmasq": serve_dnsmasq,
            "not authoritative": serve_dnsmasq_not_authoritative,
            "Kea": serve_kea,
        }
        server = RealServer(serve[request.param], lan.stop_dhcp)
    server.start()
    yield server
    if request.param == "relay":
        lan.stop_relay()
    elif lan.serves_dhcp():
        lan.stop_dhcp()


def test_real_server_renews_lease(site: Site, real_server: RealServer) -> None:
    leased = site.wait_online()
    assert leased.startswith("198.51.100.1")
    assert site.default_gateways() == [site.lan.address]
    site.watch_addresses()
    asked = site.double.wait_received("renewing", count=2)
    assert asked["ciaddr"] == leased
    site.host.wait_for(lambda: site.lifetime() >= 119, "the lease is extended")
    assert site.wait_online() == leased
    assert not site.addresses_removed()


def test_real_server_rebinds_lease(site: Site, real_server: RealServer) -> None:
    leased = site.wait_online()
    site.watch_addresses()
    # The server is down at T1 and up at T2.
    real_server.stop()
    site.double.serve()
    site.double.wait_received("renewing")
    real_server.start()
    asked = site.double.wait_received("rebinding")
    assert (asked["ciaddr"], asked["destination"]) == (leased, "255.255.255.255")
    site.host.wait_for(lambda: site.lifetime() >= 119, "the lease is extended")
    assert site.wait_online() == leased
    assert not site.addresses_removed()


# Wrong servers


@pytest.mark.parametrize("kind", OFFER_DEFECTS)
def test_bad_offer_does_not_prevent_good_offer(site: Site, kind: str) -> None:
    mute = frozenset() if kind in READABLE_DEFECTS else frozenset({"selecting"})
    rogue = Behaviour(ROGUE, first=200, defect=kind, silent=mute)
    site.begin(rogue, Behaviour(GOOD, delay={"discover": GAP}))
    leased = site.wait_online(deadline=10)
    assert leased == "198.51.100.100" or (kind in READABLE_DEFECTS and leased == "198.51.100.200")
    assert site.host.addresses("br0") == [f"{leased}/24"]
    if kind not in READABLE_DEFECTS:
        chosen = site.double.received("selecting")
        assert {bytes.fromhex(e["options"]["54"]) for e in chosen} == {bytes([198, 51, 100, 1])}


def test_priority_tag_of_answers_is_accepted_at_first_and_when_renewing(site: Site) -> None:
    site.begin(Behaviour(GOOD, vlan=0, lease=120, t1=3, t2=60))
    assert site.wait_online(deadline=10) == "198.51.100.100"
    site.double.wait_received("renewing", count=2)
    site.host.wait_for(lambda: site.lifetime() >= 119, "the lease is extended")
    assert not site.double.received("rebinding")


def test_answers_in_other_vlan_are_ignored(site: Site) -> None:
    site.begin(Behaviour(ROGUE, first=200, vlan=20), Behaviour(GOOD, delay={"discover": GAP}))
    assert site.wait_online(deadline=10) == "198.51.100.100"


@pytest.mark.parametrize("kind", LEASE_DEFECTS)
def test_impossible_lease_is_refused(site: Site, kind: str) -> None:
    rogue = Behaviour(ROGUE, first=200, defect=kind)
    site.begin(rogue, Behaviour(GOOD, delay={"discover": GAP}))
    assert site.wait_online(deadline=10) == "198.51.100.100"
    assert site.host.addresses("br0") == ["198.51.100.100/24"]
    assert site.default_gateways() == [GOOD]


def test_server_without_acks_delays_lease_at_most_five_seconds(site: Site) -> None:
    rogue = Behaviour(ROGUE, first=200, silent=frozenset({"selecting"}))
    site.begin(rogue, Behaviour(GOOD, delay={"discover": GAP}))
    ack = site.double.wait_sent("ACK", server=GOOD, deadline=20)
    assert ack["time"] - site.double.received("DISCOVER")[0]["time"] <= 5
    assert site.wait_online() == "198.51.100.100"
    # netd remembers the server and requests from the other server first.
    site.double.serve(rogue, Behaviour(GOOD, delay={"discover": GAP}, nak=frozenset({"renewing"})))
    site.host.call("network1", "Renew")
    ack = site.double.wait_sent("ACK", server=GOOD, deadline=20)
    discover = site.double.received("DISCOVER")[0]
    assert ack["time"] - discover["time"] <= 2
    assert site.double.received("selecting")[0]["options"]["54"] == "c6336401"


@pytest.mark.parametrize("seconds", [0.5, 1.5, 3])
def test_slow_server_grants_lease(site: Site, seconds: float) -> None:
    slow = Behaviour(GOOD, delay={"discover": seconds, "selecting": seconds})
    site.begin(slow)
    assert site.wait_online(deadline=30) == "198.51.100.100"


# Servers that send NAK


@pytest.mark.parametrize("by", ["broadcast", "unicast"])
def test_nak_while_renewing_ends_lease_at_once(site: Site, by: str) -> None:
    times: dict[str, Any] = {"lease": 60, "t1": 3, "t2": 40}
    site.begin(Behaviour(GOOD, **times))
    leased = site.wait_online()
    site.double.serve(Behaviour(GOOD, **times, nak=frozenset({"renewing"}), nak_by=by))
    nak = site.double.wait_sent("NAK")
    discover = site.double.wait_received("DISCOVER")
    assert discover["time"] - nak["time"] < 1
    assert discover["ciaddr"] == "0.0.0.0"
    # netd acquires the lease again.
    site.double.serve(Behaviour(GOOD))
    assert site.wait_online() == leased


@pytest.mark.parametrize("by", ["broadcast", "unicast"])
def test_nak_while_rebinding_ends_lease_at_once(site: Site, by: str) -> None:
    times: dict[str, Any] = {"lease": 60, "t1": 2, "t2": 4}
    site.begin(Behaviour(GOOD, **times))
    site.wait_online()
    mute = frozenset({"renewing"})
    site.double.serve(
        Behaviour(GOOD, **times, silent=mute, nak=frozenset({"rebinding"}), nak_by=by)
    )
    nak = site.double.wait_sent("NAK")
    assert site.double.wait_received("DISCOVER")["time"] - nak["time"] < 1
    site.double.serve(Behaviour(GOOD))
    site.wait_online()


def test_nak_after_restart_ends_resumed_lease(site: Site) -> None:
    site.begin(Behaviour(GOOD))
    site.wait_online()
    site.double.serve(Behaviour(GOOD, first=150, nak=frozenset({"init-reboot"})))
    site.host.systemctl("restart", NETD)
    asked = site.double.wait_received("init-reboot")
    assert bytes.fromhex(asked["options"]["50"]) == bytes([198, 51, 100, 100])
    nak = site.double.wait_sent("NAK")
    assert site.double.wait_received("DISCOVER")["time"] - nak["time"] < 1
    site.host.wait_for(lambda: site.host.addresses("br0") == ["198.51.100.150/24"], "a new lease")


def test_nak_of_offered_address_leads_to_other_server(site: Site) -> None:
    fickle = Behaviour(ROGUE, first=200, nak=frozenset({"selecting"}))
    site.begin(fickle, Behaviour(GOOD, delay={"discover": GAP}))
    ack = site.double.wait_sent("ACK", server=GOOD, deadline=20)
    assert ack["time"] - site.double.received("DISCOVER")[0]["time"] <= 5
    assert site.wait_online() == "198.51.100.100"


# Leases that end


@pytest.mark.parametrize("running", [True, False], ids=["netd runs", "netd is dead"])
def test_address_is_removed_when_lease_expires(site: Site, running: bool) -> None:
    site.begin(Behaviour(GOOD, lease=16))
    site.wait_online()
    granted = site.double.sent("ACK")[-1]["time"]
    if not running:
        site.host.systemctl("kill", "--signal=KILL", NETD)
        site.host.systemctl("stop", NETD)
    site.double.serve()
    site.host.wait_for(lambda: not site.host.addresses("br0"), "the address is removed", 40)
    assert 15 <= time.monotonic() - granted <= 18
    assert site.default_gateways() == []


# Options of leases


def test_lease_options_of_every_encoding_are_applied(site: Site) -> None:
    many = [(f"10.{number}.0.0/16", GOOD) for number in range(40)]
    routes = classless_routes(("0.0.0.0/0", GOOD), ("192.0.2.0/24", "198.51.100.7"), *many)
    assert len(routes) > 255
    names = domain_names("lan.example", "eng.lan.example", "example")
    options = {
        3: address("198.51.100.9"),
        6: address("198.51.100.53", "198.51.100.54"),
        15: b"lan.example",
        26: (1400).to_bytes(2, "big"),
        42: address("198.51.100.123"),
        119: names,
        121: routes,
    }
    site.begin(Behaviour(GOOD, options=options, file=(6, 119), sname=(15,)))
    site.wait_online()
    # Option 121 replaces option 3 (RFC 3442) and is longer than 255 bytes (RFC 3396).
    assert site.default_gateways() == [GOOD]
    shown = site.routes()
    assert {route["dst"] for route in shown} >= {destination for destination, _ in many}
    assert any(r["dst"] == "192.0.2.0/24" and r["gateway"] == "198.51.100.7" for r in shown)
    resolv = site.host.read("/run/buildos/netd/resolv.conf")
    assert "nameserver 198.51.100.53\nnameserver 198.51.100.54\n" in resolv
    assert "eng.lan.example" in resolv
    mtu = [*(metrics.get("mtu") for r in shown for metrics in r.get("metrics", []))]
    assert 1400 in (*mtu, site.host.link("br0")["mtu"])


def test_lease_with_host_mask_reaches_gateway(site: Site) -> None:
    routes = classless_routes((f"{GOOD}/32", "0.0.0.0"), ("0.0.0.0/0", GOOD))
    site.begin(
        Behaviour(GOOD, network="198.51.100.100/32", first=0, router="", options={121: routes})
    )
    assert site.wait_online() == "198.51.100.100"
    assert site.host.addresses("br0") == ["198.51.100.100/32"]
    assert site.default_gateways() == [GOOD]
    assert site.host.succeeds(["ping", "-c", "1", "-W", "5", GOOD])
