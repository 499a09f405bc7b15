"""Tests what br0 has while no server grants a lease: the static address, or an expired lease."""

from __future__ import annotations

from dhcp_double import DhcpDouble
from dhcp_server import Behaviour
from host import Host
from simlan.lan import Lan

NETD = "buildos-netd.service"
_SETTINGS = "/etc/buildos/netd.conf.d/50-test.toml"


def _origin(host: Host) -> str:
    origin: str = host.bus_property("network1", "AddressOrigin")
    return origin


def test_static_address_is_probed_and_used_until_server_grants_lease(host: Host, lan: Lan) -> None:
    in_use, free = f"{lan.prefix}.77", f"{lan.prefix}.50"
    lan.own_address(in_use)
    host.command_line(f"ip={in_use}:{lan.prefix}.2:{lan.address}:255.255.255.0")
    host.configure("netd", f'static_wait_s = 1\nstatic_dns = ["{lan.address}"]\n')
    host.start([lan])
    host.wait_for(
        lambda: f"{in_use} is in use by" in host.status_text(NETD), "netd finds the other host"
    )
    assert host.addresses("br0") == []
    host.write(
        _SETTINGS,
        f'static = "{free}/24 via {lan.address}"\nstatic_wait_s = 1\n'
        f'static_dns = ["{lan.address}"]\n',
    )
    host.systemctl("reload", NETD)
    assert host.wait_online() == free
    host.wait_for(lambda: _origin(host) == "static", "the origin of the address")
    assert host.bus_property("network1", "Online")
    assert "the static address" in host.status_text(NETD)
    assert f"nameserver {lan.address}\n" in host.read("/run/buildos/netd/resolv.conf")
    assert f"static address {free}/24" in host.run("buildosctl why", check=False)
    # A restart does not interrupt the network.
    with lan.ping(free) as echoes:
        host.systemctl("restart", NETD)
        host.wait_for(lambda: _origin(host) == "static", "netd is back")
    assert echoes.lost() == []
    lan.serve_dhcp()
    host.wait_for(lambda: _origin(host) == "lease", "the lease takes the place")
    addresses = host.addresses("br0")
    assert len(addresses) == 1 and addresses != [f"{free}/24"], addresses


def test_expired_lease_is_kept_until_server_is_back(host: Host, lan: Lan) -> None:
    good = Behaviour(server=lan.address, lease=10)
    double = DhcpDouble(lan, good)
    host.configure("netd", "keep_expired = true\n")
    host.start([lan])
    address = host.wait_online()
    double.serve()
    with lan.ping(address) as echoes:
        host.wait_for(lambda: _origin(host) == "expired-lease", "the end of the lease")
    assert echoes.lost() == []
    assert host.addresses("br0") == [f"{address}/24"]
    assert host.bus_property("network1", "Online")
    assert "expired (keep_expired)" in host.status_text(NETD)
    double.wait_received("DISCOVER")
    double.serve(good)
    host.wait_for(lambda: _origin(host) == "lease", "the server grants a lease")
    assert host.addresses("br0") == [f"{address}/24"]
