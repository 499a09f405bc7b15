"""Tests the DHCP and ARP messages that netd sends in each state, as the double received
them.

# Sources

RFC 2131, section 4.4 and table 5; RFC 5227, section 2."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from buildroot import Root
from dhcp_double import Entry
from dhcp_packets import address
from dhcp_server import Behaviour
from dhcp_site import GOOD, NETD, ROGUE, Site

_UNSPECIFIED, _BROADCAST = "0.0.0.0", "255.255.255.255"
_BROADCAST_MAC = "ff:ff:ff:ff:ff:ff"


@pytest.fixture(scope="module")
def site(root: Root) -> Iterator[Site]:
    """One host for all tests."""
    with closing(Site(root)) as site:
        yield site


def option(entry: Entry, code: int) -> bytes | None:
    value = entry["options"].get(str(code))
    return None if value is None else bytes.fromhex(value)


def check_common(site: Site, entry: Entry) -> None:
    """Checks the fields that are the same in every message."""
    mac = site.host.nics[0].mac
    assert entry["op"] == 1
    assert entry["chaddr"] == entry["ethernet_source"] == mac
    assert entry["giaddr"] == _UNSPECIFIED
    # Relays drop shorter messages (RFC 1542, section 2.1).
    assert entry["size"] >= 300
    assert entry["udp_checksum"] in ("ok", "offloaded")
    # The PXE ROM sends the same client identifier, so the server assigns the same address.
    assert option(entry, 61) == b"\x01" + bytes.fromhex(mac.replace(":", ""))


def check_requested_options(entry: Entry) -> None:
    """Checks maximum size and parameter request list of DISCOVER and REQUEST."""
    size = option(entry, 57)
    assert size is not None and 576 <= int.from_bytes(size, "big") <= 1500
    wanted = option(entry, 55)
    assert wanted is not None
    assert {1, 3, 6, 12, 15, 26, 42, 119, 121} <= set(wanted)
    # Classless routes come before the routes that they replace (RFC 3442).
    assert wanted.index(121) < wanted.index(3)


def check_broadcast(entry: Entry) -> None:
    assert (entry["source"], entry["destination"]) == (_UNSPECIFIED, _BROADCAST)
    assert entry["ethernet_destination"] == _BROADCAST_MAC
    assert entry["udp_checksum"] == "ok"


def test_discover_and_request_have_required_fields(site: Site) -> None:
    site.begin(Behaviour(GOOD))
    leased = site.wait_online()
    discover, request = site.double.received("discover", "selecting")[:2]
    for entry in (discover, request):
        check_common(site, entry)
        check_requested_options(entry)
        check_broadcast(entry)
        assert entry["ciaddr"] == _UNSPECIFIED
    assert option(discover, 54) is None and option(discover, 50) is None
    assert discover["flags"] == 0
    assert discover["secs"] <= 1
    assert option(request, 54) == address(GOOD)
    assert option(request, 50) == address(leased)
    # The REQUEST has the secs of the DISCOVER and the xid of the OFFER (section 4.4.1).
    assert request["secs"] == discover["secs"]
    assert request["xid"] == discover["xid"] == site.double.sent("OFFER")[0]["xid"]


def test_renewing_is_unicast_and_rebinding_is_broadcast(site: Site) -> None:
    # A changed host name would cause an additional renewal.
    site.host.systemctl("stop", "buildos-hostnamed")
    times: dict[str, Any] = {"lease": 60, "t1": 2, "t2": 5}
    site.begin(Behaviour(GOOD, **times, silent=frozenset({"renewing"})))
    leased = site.wait_online()
    renewing = site.double.wait_received("renewing")
    assert (renewing["source"], renewing["destination"]) == (leased, GOOD)
    assert not renewing["broadcast"]
    rebinding = site.double.wait_received("rebinding")
    assert (rebinding["source"], rebinding["destination"]) == (leased, _BROADCAST)
    assert rebinding["broadcast"]
    for entry in (renewing, rebinding):
        check_common(site, entry)
        check_requested_options(entry)
        assert entry["ciaddr"] == leased
        assert option(entry, 50) is None and option(entry, 54) is None
    # T1 and T2 count from the transmission of the REQUEST.
    assert 2.5 <= rebinding["time"] - renewing["time"] <= 4
    site.double.wait_sent("ACK")
    assert site.wait_online() == leased


def test_init_reboot_requests_address_without_server_identifier(site: Site) -> None:
    site.begin(Behaviour(GOOD))
    leased = site.wait_online()
    site.double.serve(Behaviour(GOOD))
    site.host.systemctl("restart", NETD)
    rebooting = site.double.wait_received()
    assert rebooting["state"] == "init-reboot"
    check_common(site, rebooting)
    check_requested_options(rebooting)
    assert rebooting["destination"] == _BROADCAST and rebooting["broadcast"]
    assert rebooting["ciaddr"] == _UNSPECIFIED
    assert option(rebooting, 50) == address(leased) and option(rebooting, 54) is None
    site.double.wait_sent("ACK")
    assert not site.double.received("DISCOVER")


def test_decline_has_address_and_server_identifier(site: Site) -> None:
    site.begin(Behaviour(GOOD, addresses_in_use=frozenset({"198.51.100.100"})))
    decline = site.double.wait_received("DECLINE")
    check_common(site, decline)
    assert decline["destination"] == _BROADCAST and decline["broadcast"]
    assert decline["ciaddr"] == _UNSPECIFIED
    assert option(decline, 50) == address("198.51.100.100")
    assert option(decline, 54) == address(GOOD)
    # DECLINE has neither maximum size nor parameter request list (table 5).
    assert option(decline, 55) is None and option(decline, 57) is None
    # The client waits ten seconds before the next DISCOVER (section 3.1, step 5).
    again = site.double.wait_received("DISCOVER", count=2)
    assert again["time"] - decline["time"] >= 9.9
    site.host.wait_for(
        lambda: site.host.addresses("br0") == ["198.51.100.101/24"], "the next address"
    )


def test_address_is_probed_and_announced(site: Site) -> None:
    site.begin(Behaviour(GOOD))
    leased = site.wait_online()
    mac = site.host.nics[0].mac

    def seen(sender: str) -> list[Entry]:
        return [
            e
            for e in site.double.arps()
            if e["sender_mac"] == mac and e["sender"] == sender and e["target"] == leased
        ]

    site.host.wait_for(lambda: seen(_UNSPECIFIED), "a probe (RFC 5227, section 2.1.1)")
    site.host.wait_for(lambda: len(seen(leased)) >= 2, "two announcements (section 2.3)")


def test_discover_unanswered_is_repeated_with_increasing_secs(site: Site) -> None:
    site.begin()
    site.double.wait_received("DISCOVER", count=4)
    discovers = site.double.received("DISCOVER")[:4]
    for entry in discovers:
        check_common(site, entry)
        check_broadcast(entry)
    seconds = [entry["secs"] for entry in discovers]
    assert seconds == sorted(seconds) and seconds[-1] > seconds[0]
    passed = [entry["time"] - discovers[0]["time"] for entry in discovers]
    assert all(abs(s - p) <= 1.1 for s, p in zip(seconds, passed, strict=True))


def test_discover_unanswered_sets_broadcast_flag(site: Site) -> None:
    site.begin()
    site.host.wait_for(
        lambda: any(e["flags"] == 0x8000 for e in site.double.received("DISCOVER")),
        "a DISCOVER with the broadcast flag",
    )
    site.double.serve(Behaviour(GOOD))
    site.wait_online()
    offer = site.double.sent("OFFER")[0]
    assert offer["broadcast"] == bool(offer["flags"])


def test_request_unanswered_is_repeated_unchanged(site: Site) -> None:
    rogue = Behaviour(ROGUE, first=200, silent=frozenset({"selecting"}))
    site.begin(rogue)
    site.double.wait_received("selecting", count=2)
    first, second = site.double.received("selecting")[:2]
    for code in (50, 54):
        assert option(first, code) == option(second, code)
    assert first["xid"] == second["xid"]
    assert second["time"] - first["time"] >= 0.5
