"""Tests settings of netd that change br0: MTU, metric, IPv6."""

from __future__ import annotations

from host import Host
from simlan.lan import Lan

NETD = "buildos-netd.service"
# See units/systemd/catalog/buildos-netd.catalog.
_REPAIRED = "0f6b7a52e9c84d31b4a05d8e2c71f396"


def _mtu(host: Host, link: str) -> int:
    mtu: int = host.link(link)["mtu"]
    return mtu


def test_mtu_is_that_of_setting_and_never_above_that_of_port(host: Host, lan: Lan) -> None:
    lan.serve_dhcp("--dhcp-option=option:mtu,1300")
    host.configure("netd", "mtu = 1450\n")
    host.start([lan])
    host.wait_online()
    host.wait_for(lambda: (_mtu(host, "eth0"), _mtu(host, "br0")) == (1450, 1450), "the MTU")
    # As an agent adds a container.
    host.run("ip link add ve-slave mtu 1400 type veth peer name inside mtu 1400")
    host.run("ip link set ve-slave master br0 up")
    host.wait_for(lambda: _mtu(host, "br0") == 1400, "br0 has the MTU of the smaller port")
    host.run("ip link del ve-slave")
    host.wait_for(lambda: _mtu(host, "br0") == 1450, "br0 has the MTU of the setting again")
    # netd has processed all changes before it logs this one.
    host.run("ip route del default")
    host.wait_for(lambda: bool(host.journal(f"MESSAGE_ID={_REPAIRED}")), "netd logs the repair")
    repairs = [entry["MESSAGE"] for entry in host.journal(f"MESSAGE_ID={_REPAIRED}")]
    assert not any("MTU" in repair for repair in repairs), repairs


def test_metric_and_ipv6_are_those_of_settings(host: Host, lan: Lan) -> None:
    lan.serve_dhcp()
    host.configure("netd", 'route_metric = 77\nipv6 = "off"\n')
    host.start([lan])
    host.wait_online()

    def default_route() -> str:
        return host.run("ip -4 route show default").strip()

    host.wait_for(lambda: default_route().endswith("metric 77"), "the route has the metric")
    assert host.run("ip -6 address show dev br0") == ""
    assert host.read("/proc/sys/net/ipv6/conf/br0/disable_ipv6").strip() == "1"
    host.write("/etc/buildos/netd.conf.d/50-test.toml", "route_metric = 78\n")
    host.systemctl("reload", NETD)
    host.wait_for(lambda: default_route().endswith("metric 78"), "the route has the new metric")
    host.wait_for(lambda: "fe80::" in host.run("ip -6 address show dev br0"), "br0 has IPv6")
    assert host.journal(f"MESSAGE_ID={_REPAIRED}") == []
