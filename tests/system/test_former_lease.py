"""A host asks for the lease that it had in the boot before (RFC 2131, sections 3.2 and 4.3.2)."""

from __future__ import annotations

import json

import pytest
from conftest import NewHost
from dhcp_double import DhcpDouble
from dhcp_server import Behaviour
from host import Host
from simlan.lan import Lan

MAC = "02:bd:00:00:00:01"
SERVER = "198.51.100.1"
# buildos-state puts the state of the boot before here.
FORMER = "/run/buildos/state/netd.json"


@pytest.fixture
def double(lan: Lan) -> DhcpDouble:
    return DhcpDouble(lan, Behaviour(SERVER))


@pytest.fixture
def former(new_host: NewHost, lan: Lan, double: DhcpDouble) -> str:
    """The state file of a boot in which the host got a lease."""
    host = new_host("former")
    host.start([lan], macs=[MAC])
    online(host)
    path = "/run/buildos/netd/state.json"
    state = host.wait_for(lambda: with_lease(host.read(path)), "the lease is saved")
    host.stop()
    # Hosts in namespaces share the machine's boot.
    state["resume"]["boot_id"] = "another boot"
    return json.dumps(state)


def with_lease(text: str) -> dict[str, dict[str, str]]:
    state: dict[str, dict[str, str]] = json.loads(text)
    assert state["resume"] is not None
    return state


def online(host: Host) -> list[str]:
    return host.wait_for(lambda: host.addresses("br0"), "br0 has an address")


def test_former_lease_is_asked_for_after_the_first_discover(
    new_host: NewHost, lan: Lan, double: DhcpDouble, former: str
) -> None:
    # Only a host that asks for its lease gets one.
    double.serve(Behaviour(SERVER, silent=frozenset({"discover"})))
    host = new_host()
    host.file(FORMER, former)
    host.start([lan], macs=[MAC])
    assert online(host) == ["198.51.100.100/24"]
    first, *others = double.received()
    second = next(entry for entry in others if entry["kind"] == "REQUEST")
    assert (first["kind"], second["state"]) == ("DISCOVER", "init-reboot")
    # 54 would name a server, which only selects an OFFER.
    assert "54" not in second["options"] and second["ciaddr"] == "0.0.0.0"


def test_former_lease_that_is_found_late_is_asked_for(
    new_host: NewHost, lan: Lan, double: DhcpDouble, former: str
) -> None:
    double.serve(Behaviour(SERVER, silent=frozenset({"discover"})))
    host = new_host()
    host.start([lan], macs=[MAC])
    double.wait_received("DISCOVER", count=2)
    assert host.addresses("br0") == []
    host.write(FORMER, former)
    assert online(host) == ["198.51.100.100/24"]


def test_former_lease_that_is_denied_costs_nothing(
    new_host: NewHost, lan: Lan, double: DhcpDouble, former: str
) -> None:
    moved = Behaviour("203.0.113.1", "203.0.113.0/24", nak=frozenset({"init-reboot"}))
    double.serve(moved)
    host = new_host()
    host.file(FORMER, former)
    host.start([lan], macs=[MAC])
    assert online(host) == ["203.0.113.100/24"]
    kinds = [entry["kind"] for entry in double.received()]
    # Retransmissions apart, the search is the one that a host without a former lease makes. The
    # kernel can deliver the two first messages in either order.
    requests = [entry["state"] for entry in double.received() if entry["kind"] == "REQUEST"]
    assert "DISCOVER" in kinds[:2], kinds
    assert requests.count("selecting") == 1, requests
