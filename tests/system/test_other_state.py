"""Tests that netd leaves the state of administrators and other programs alone, and reports
what it cannot change."""

from __future__ import annotations

from host import Host
from simlan.lan import Lan

NETD = "buildos-netd.service"
_LOST = "5e1c9b7f8a0240b6b2c4d09e3f7a1d58"
_KERNEL = "d95b0e3c7a1f4268be90f2d4c6a8173e"


def _before_netd(host: Host, *commands: str) -> None:
    """Runs commands as root before netd starts."""
    lines = "".join(f"ExecStartPre=+/bin/sh -c '{command}'\n" for command in commands)
    path = "/etc/systemd/system/buildos-netd.service.d/50-test.conf"
    host.file(path, f"[Service]\n{lines}")


def _reason(host: Host, nic: str) -> str:
    """Returns netd's reason for the state of a NIC."""
    (link,) = [entry for entry in host.state()["links"] if entry["name"] == nic]
    reason: str = link["reason"]
    return reason


def test_default_route_of_administrator_is_kept(host: Host, lan: Lan) -> None:
    route = "default via 203.0.113.1 dev admin0 proto static metric 1024"
    _before_netd(
        host,
        "ip link add admin0 type veth peer name admin1 || true",
        "ip link set admin0 up; ip link set admin1 up",
        "ip address add 203.0.113.9/24 dev admin0 || true",
        f"ip route add {route} || true",
    )
    lan.serve_dhcp(lease="2m")
    host.start([lan])
    host.wait_online()

    def default_routes() -> list[str]:
        return [line.strip() for line in host.run("ip route show default").splitlines()]

    host.wait_for(lambda: bool(host.journal(f"MESSAGE_ID={_KERNEL}")), "netd reports the route")
    assert default_routes() == [route]
    assert "cannot add the route to 0.0.0.0/0 on br0" in host.status_text(NETD)
    host.nics[0].unplug()
    host.systemctl("restart", NETD)
    assert default_routes() == [route]


def test_nic_with_address_of_other_program_is_left_alone(host: Host, lan: Lan) -> None:
    address = f"{lan.prefix}.77/24"
    _before_netd(host, f"ip address add {address} dev eth0; ip link set eth0 up")
    lan.serve_dhcp()
    host.start([lan])
    host.wait_for(lambda: address in _reason(host, "eth0"), "netd excludes the NIC")
    assert host.addresses("eth0") == [address]
    assert "master" not in host.link("eth0")
    host.run(f"ip address del {address} dev eth0")
    host.wait_online()
    assert host.link("eth0")["master"] == "br0"


def test_link_with_name_of_bridge_is_reported(host: Host, lan: Lan) -> None:
    _before_netd(host, "ip link add br0 type veth peer name other0")
    lan.serve_dhcp()
    host.start([lan])
    host.wait_for(lambda: "not a bridge" in host.status_text(NETD), "netd reports the link")
    assert len(host.journal(f"MESSAGE_ID={_KERNEL}")) == 1
    host.run("ip link del br0")
    host.wait_online()


def test_ipv6_disabled_by_administrator_stays_disabled(host: Host, lan: Lan) -> None:
    settings = [f"/proc/sys/net/ipv6/conf/{links}/disable_ipv6" for links in ("all", "default")]
    _before_netd(host, *(f"echo 1 >{setting}" for setting in settings))
    lan.serve_dhcp()
    host.start([lan])
    host.wait_online()
    host.wait_for(lambda: host.bus_property("network1", "Online"), "the host is online")
    assert host.read("/proc/sys/net/ipv6/conf/br0/disable_ipv6").strip() == "1"


def test_name_of_renamed_uplink_is_published(host: Host, lan: Lan) -> None:
    lan.serve_dhcp()
    host.start([lan])
    host.wait_online()
    host.run("ip link set eth0 name eth9")
    host.wait_for(lambda: host.bus_property("network1", "Uplink") == "eth9", "the uplink's name")
    host.wait_for(lambda: "by eth9 " in host.status_text(NETD), "netd's status")
    assert "by eth9 " in host.bus_property("network1", "Reason")
    # Its exit status is 1 until NAT is ready, too.
    status = host.run("buildosctl status", check=False)
    assert "eth9" in status
    assert "eth0" not in status
    assert host.journal(f"MESSAGE_ID={_LOST}") == []


def test_lease_lost_with_its_nic_is_reported(host: Host, lan: Lan) -> None:
    lan.serve_dhcp()
    host.start([lan])
    address = host.wait_online()
    host.run("ip link del eth0")
    host.wait_for(lambda: bool(host.journal(f"MESSAGE_ID={_LOST}")), "netd reports the loss")
    (message,) = host.journal(f"MESSAGE_ID={_LOST}")
    assert message["INTERFACE"] == "eth0"
    assert address in message["MESSAGE"]
    host.wait_for(
        lambda: any(e["decision"] == "lost" for e in host.history()), "the history has the loss"
    )
