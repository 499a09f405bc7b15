"""Tests a host on networks that have router advertisements only."""

from __future__ import annotations

import ipaddress
import sys

from conftest import NewLan
from host import Host
from simlan.lan import Lan

NETD = "buildos-netd.service"
_PREFIX = "2001:db8:7::"
_PORT = 7022
# Two NICs are tried one after the other, for 15 s each.
_PATIENCE = 120


def _global(host: Host) -> list[str]:
    """Returns the global IPv6 addresses of br0, without their prefixes."""
    addresses = host.bus_property("network1", "IPv6Addresses")
    return [a.split("/")[0] for a in addresses if not a.startswith("fe80:")]


def _connects(lan: Lan, address: str) -> bool:
    """Returns true if a TCP connection from the LAN to the host is answered."""
    program = (
        "import socket, sys\n"
        "with socket.create_connection((sys.argv[1], int(sys.argv[2])), 10) as connection:\n"
        "    connection.sendall(b'hello')\n"
        "    sys.exit(connection.recv(5) != b'hello')\n"
    )
    lan.run([sys.executable, "-c", program, address, str(_PORT)])
    return True


def test_host_without_dhcp_is_reached_by_ipv6(host: Host, lan: Lan, new_lan: NewLan) -> None:
    silent = new_lan("203.0.113", "silent")
    lan.advertise_ipv6(_PREFIX)
    host.start([silent, lan])
    host.wait_for(lambda: host.active(NETD), "netd is up")
    host.wait_for(lambda: _global(host) != [], "br0 has a global address", _PATIENCE)
    (address,) = _global(host)
    assert ipaddress.ip_address(address) in ipaddress.ip_network(f"{_PREFIX}/64")
    assert host.bus_property("network1", "Uplink") == "eth1"
    assert host.bus_property("network1", "State") == "acquiring"
    assert not host.bus_property("network1", "Online")
    host.wait_for(
        lambda: f"br0 has {address} by eth1, for IPv6 only" in host.status_text(NETD), "STATUS="
    )
    host.run(
        "systemd-run --quiet --unit=echo systemd-socket-activate --accept --inetd "
        f"--listen=[::]:{_PORT} cat"
    )
    host.wait_for(lambda: f":{_PORT}" in host.run("ss -ltn"), "a server listens")
    assert _connects(lan, address)
    assert address in host.run("buildosctl status", check=False)
    assert f"reached by IPv6: {address}" in host.run("buildosctl why", check=False)
    # The search for a lease goes on, and its end does not change the address.
    lan.serve_dhcp()
    host.wait_online()
    assert _global(host) == [address]
    assert _connects(lan, address)
