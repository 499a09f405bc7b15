"""Tests netd with cables, DHCP servers and the bus, and its restarts."""

from __future__ import annotations

import ipaddress
import json

import pytest
from conftest import NewLan
from host import Host
from machine import Machine
from simlan.lan import BRIDGE, Lan

NETD = "buildos-netd.service"
_PRIVATE = "7c2f9d1e6b3a4850a1f4c8e7d0b95263"


def test_netd_without_carrier_waits_and_reports(host: Host, lan: Lan) -> None:
    lan.serve_dhcp()
    host.start([lan, lan], plugged=False)
    # The boot ends without a network.
    assert host.wait_for_boot() == "running"
    host.wait_for(lambda: "no carrier on eth0, eth1" in host.status_text(NETD), "netd's status")
    assert host.bus_property("network1", "State") == "no-carrier"
    assert host.addresses("br1") == ["172.23.0.1/16"]

    host.nics[1].plug()
    host.wait_online()
    assert host.link("br0")["address"] == host.nics[1].mac


def test_netd_without_server_waits_and_reports(host: Host, lan: Lan) -> None:
    host.start([lan])
    assert host.wait_for_boot() == "running"
    host.wait_for(lambda: "no lease yet" in host.status_text(NETD), "netd's status")
    assert host.bus_property("network1", "State") == "acquiring"

    lan.serve_dhcp()
    host.wait_online()
    host.wait_for(lambda: host.bus_property("network1", "State") == "online", "the host is online")


def test_nic_with_lease_becomes_uplink(host: Host, lan: Lan, new_lan: NewLan) -> None:
    silent = new_lan("203.0.113", "silent")
    lan.serve_dhcp()
    host.start([silent, lan, silent])
    address = host.wait_online()
    assert lan.leases() == {host.nics[1].mac: address}
    assert host.link("eth1")["master"] == "br0"
    assert "master" not in host.link("eth0")


def test_network_online_target_is_reached_with_lease(host: Host, lan: Lan) -> None:
    host.file(
        "/etc/systemd/system/client.service",
        "[Unit]\nWants=network-online.target\nAfter=network-online.target\n"
        "[Service]\nType=oneshot\nExecStart=ip -4 -brief address show dev br0\n",
    )
    host.file(
        "/etc/systemd/system/multi-user.target.d/client.conf",
        "[Unit]\nWants=client.service\n",
    )
    host.start([lan])
    host.wait_for(lambda: "no lease yet" in host.status_text(NETD), "netd waits for a lease")
    assert not host.journal("--unit=client.service", "_COMM=ip")
    lan.serve_dhcp()
    address = host.wait_online()
    host.wait_for(
        lambda: any(address in str(e["MESSAGE"]) for e in host.journal("--unit=client.service")),
        "the client starts with the address",
    )


def test_netd_killed_restarts_with_address_kept(host: Host, lan: Lan) -> None:
    lan.serve_dhcp()
    host.start([lan])
    address = host.wait_online()
    host.wait_for(lambda: host.active(NETD), "netd is up")
    host.run("ip -4 -o monitor address </dev/null >/run/monitor 2>&1 &")
    before, discovers = host.main_pid(NETD), lan.log("dnsmasq.log").count("DHCPDISCOVER")
    host.systemctl("kill", "--signal=KILL", NETD)
    host.wait_for(
        lambda: host.active(NETD) and host.main_pid(NETD) not in (0, before), "netd is back"
    )
    host.wait_for(lambda: host.bus_property("network1", "Online"), "the host is online")
    assert host.wait_online() == address
    assert "Deleted" not in host.read("/run/monitor")
    assert lan.log("dnsmasq.log").count("DHCPDISCOVER") == discovers, "netd sent a DISCOVER"


def test_netd_restart_cuts_no_traffic(host: Host, lan: Lan) -> None:
    lan.serve_dhcp()
    host.start([lan])
    address = host.wait_online()
    host.wait_for(lambda: host.active(NETD), "netd is up")
    with lan.ping(address) as echoes:
        host.systemctl("restart", NETD)
    assert echoes.lost() == []


def test_lease_is_renewed(host: Host, lan: Lan) -> None:
    lan.serve_dhcp(lease="2m")
    host.start([lan])
    address = host.wait_online()

    def lifetime() -> int:
        show = json.loads(host.run(["ip", "-json", "-4", "address", "show", "dev", "br0"]))
        seconds: int = show[0]["addr_info"][0]["valid_life_time"]
        return seconds

    assert lifetime() <= 120
    # The kernel counts the lifetime down.
    host.wait_for(lambda: lifetime() < 117, "the lifetime decreases")
    host.call("network1", "Renew")
    host.wait_for(lambda: lifetime() >= 118, "the lease is extended")
    assert host.wait_online() == address


@pytest.mark.parametrize("authoritative", [True, False])
def test_lease_that_server_lost_is_renewed_or_replaced(
    host: Host, lan: Lan, authoritative: bool
) -> None:
    lan.serve_dhcp(authoritative=authoritative)
    host.start([lan])
    address = host.wait_online()
    host.wait_for(lambda: host.active(NETD), "netd is up")
    host.run("ip -4 -o monitor address </dev/null >/run/monitor 2>&1 &")
    lan.lose_leases(authoritative=authoritative)
    host.call("network1", "Renew")
    mac = host.link("br0")["address"]
    granted = host.wait_for(lambda: lan.leases().get(mac), "the server has a lease for the host")
    host.wait_for(lambda: host.addresses("br0") == [f"{granted}/24"], "br0 has its address")
    host.wait_for(lambda: host.bus_property("network1", "Online"), "the host is online")
    # Only an authoritative server grants a lease that it does not know.
    assert ("DHCPNAK" in lan.log("dnsmasq.log")) == (not authoritative)
    if authoritative:
        assert granted == address
        assert "Deleted" not in host.read("/run/monitor")


@pytest.mark.parametrize("authoritative", [True, False])
def test_restarted_netd_keeps_lease_that_server_lost(
    host: Host, lan: Lan, authoritative: bool
) -> None:
    lan.serve_dhcp(authoritative=authoritative)
    host.start([lan])
    address = host.wait_online()
    host.wait_for(
        lambda: host.state()["gateway_reachability"] == "reachable", "the gateway answers"
    )
    host.run("ip -4 -o monitor address </dev/null >/run/monitor 2>&1 &")
    lan.lose_leases(authoritative=authoritative)
    discovers = lan.log("dnsmasq.log").count("DHCPDISCOVER")
    host.systemctl("restart", NETD)
    host.wait_for(lambda: host.bus_property("network1", "Online"), "the host is online")
    if authoritative:
        host.wait_for(lambda: list(lan.leases().values()) == [address], "the lease is confirmed")
    else:
        # The server is silent. After the fourth REQUEST, a search would begin, but the
        # gateway confirms the network.
        host.wait_for(
            lambda: any(
                entry["decision"] == "sent REQUEST" and entry["times"] >= 6
                for entry in host.history()
            ),
            "the server does not answer",
        )
    assert host.addresses("br0") == [f"{address}/24"]
    assert "Deleted" not in host.read("/run/monitor")
    assert lan.log("dnsmasq.log").count("DHCPDISCOVER") == discovers, "netd sent a DISCOVER"


def test_kernel_command_line_configures_netd(host: Host, lan: Lan) -> None:
    lan.serve_dhcp()
    host.command_line("quiet buildos.netd.private=10.99.0.1/24 buildos.hostname=chosen")
    host.start([lan])
    host.wait_for(
        lambda: host.addresses("br1") == ["10.99.0.1/24"], "br1 has the configured address"
    )
    host.wait_for(lambda: host.run(["hostname"]).strip() == "chosen", "the host has the name")
    host.wait_for(lambda: host.bus_property("nat1", "Ready"), "natd is ready for machines")
    assert Machine(host).take_lease().startswith("10.99.0.")


def test_network_comes_up_without_bus(host: Host, lan: Lan) -> None:
    lan.serve_dhcp()
    host.file("/etc/systemd/system/dbus.service.d/slow.conf", "[Unit]\nConditionPathExists=/go\n")
    host.start([lan])
    address = host.wait_online()
    assert host.active(NETD), "READY does not wait for the bus"
    assert address in host.status_text(NETD)
    assert host.addresses("br1") == ["172.23.0.1/16"]
    assert host.state()["state"] == "online"
    host.run("touch /go")
    # Connections to the bus have failed to start it, up to the limit of systemd, and can
    # again reach the limit of the socket before the bus takes it over.
    start = "systemctl reset-failed dbus.socket dbus.service; systemctl start dbus.service"
    host.wait_for(lambda: host.succeeds(start), "the bus starts")
    host.wait_for(lambda: host.bus_property("network1", "Online"), "netd joins the bus")


def test_netd_rejoins_restarted_bus(host: Host, lan: Lan) -> None:
    lan.serve_dhcp()
    host.start([lan])
    address = host.wait_online()
    host.wait_for(lambda: host.bus_property("network1", "Online"), "netd is on the bus")
    pid = host.main_pid(NETD)
    with lan.ping(address) as echoes:
        host.systemctl("restart", "dbus.service")
        host.wait_for(lambda: host.bus_property("network1", "Online"), "netd is back on the bus")
    assert echoes.lost() == []
    assert host.main_pid(NETD) == pid


def test_br0_has_ipv6_of_router_advertisements(host: Host, lan: Lan) -> None:
    lan.run(["ip", "address", "add", "2001:db8:7::1/64", "dev", BRIDGE, "nodad"])
    lan.serve_dhcp("--enable-ra", "--dhcp-range=2001:db8:7::,ra-only")
    host.start([lan, lan])
    host.wait_online()
    # The addresses derive from the NIC's MAC address, not from an earlier one of br0.
    mac = [int(part, 16) for part in host.link("br0")["address"].split(":")]
    eui = f"{mac[0] ^ 2:02x}{mac[1]:02x}:{mac[2]:02x}ff:fe{mac[3]:02x}:{mac[4]:02x}{mac[5]:02x}"
    expected = {
        str(ipaddress.ip_interface(f"fe80::{eui}/64")),
        str(ipaddress.ip_interface(f"2001:db8:7::{eui}/64")),
    }
    host.wait_for(
        lambda: set(host.bus_property("network1", "IPv6Addresses")) == expected,
        "br0 has both addresses",
    )
    assert "default via fe80::" in host.run("ip -6 route show dev br0")
    for nic in ("eth0", "eth1"):
        assert host.run(f"ip -6 address show dev {nic}") == ""
    # With 2 the kernel accepts router advertisements even when IPv6 is forwarded.
    assert host.read("/proc/sys/net/ipv6/conf/br0/accept_ra") == "2\n"


def test_private_network_overlapping_uplink_is_replaced(host: Host, new_lan: NewLan) -> None:
    lan = new_lan("172.23.5", "overlapping")
    url = lan.serve_web("page\n")
    lan.serve_dhcp()
    host.start([lan])
    assert host.wait_online().startswith("172.23.5.")
    host.wait_for(
        lambda: host.addresses("br1") == ["172.29.0.1/16"], "br1 has a different private network"
    )
    host.wait_for(lambda: host.bus_property("nat1", "Ready"), "natd is ready for machines")
    machine = Machine(host)
    assert machine.take_lease().startswith("172.29.")
    assert machine.run(f"curl --silent --max-time 20 {url}") == "page\n"


def test_private_network_overlapping_later_lease_is_replaced(
    host: Host, lan: Lan, new_lan: NewLan
) -> None:
    lan.serve_dhcp()
    host.configure("netd", "carrier_grace_s = 0\n")
    other = new_lan("172.23.5", "overlapping")
    host.start([lan, other])
    host.wait_online()
    host.wait_for(lambda: host.addresses("br1") == ["172.23.0.1/16"], "br1 has the default address")
    other.serve_dhcp()
    host.nics[0].unplug()
    host.wait_for(
        lambda: host.addresses("br1") == ["172.29.0.1/16"], "br1 has a different private network"
    )
    assert host.journal(f"MESSAGE_ID={_PRIVATE}")


@pytest.mark.parametrize(("how", "option"), [("hostname", "client provides name"), ("none", None)])
def test_server_receives_host_name_unless_disabled(
    host: Host, lan: Lan, how: str, option: str | None
) -> None:
    lan.serve_dhcp("--dhcp-fqdn", "--domain=lan.example")
    host.command_line(f"buildos.hostname=chosen buildos.netd.send_name={how}")
    host.start([lan])
    host.wait_online()
    host.wait_for(lambda: host.run(["hostname"]).strip() == "chosen", "the host has the name")
    if option is None:
        host.call("network1", "Renew")
        host.wait_for(lambda: lan.log("dnsmasq.log").count("DHCPACK") > 1, "the lease is renewed")
        assert "chosen" not in lan.log("dnsmasq.log")
    else:
        host.wait_for(
            lambda: f"{option}: chosen" in lan.log("dnsmasq.log"), "the server receives the name"
        )
        host.wait_for(
            lambda: host.run("getent ahostsv4 chosen.lan.example || true"), "the DNS has the name"
        )


def test_lease_on_bus_has_times(host: Host, lan: Lan) -> None:
    lan.serve_dhcp("--dhcp-option=option:ntp-server,192.0.2.123")
    host.start([lan])
    address = host.wait_online()
    host.wait_for(lambda: host.bus_property("network1", "Online"), "the host is online")
    lease = {k: v["data"] for k, v in host.bus_property("network1", "Lease").items()}
    assert (lease["Address"], lease["PrefixLength"], lease["LeaseSeconds"]) == (address, 24, 3600)
    seconds = 1_000_000
    assert lease["ExpiresUSec"] == lease["AcquiredUSec"] + 3600 * seconds
    assert lease["AcquiredUSec"] < lease["RenewUSec"] < lease["RebindUSec"] < lease["ExpiresUSec"]
    assert lease["Option42"] == [192, 0, 2, 123]
    assert host.bus_property("network1", "NTP") == ["192.0.2.123"]
    assert host.bus_property("network1", "PublicPorts") == ["eth0"]
    decisions = [entry["decision"] for entry in host.history()]
    assert decisions[:2] == ["sent DISCOVER", "offered"] and "bound" in decisions
