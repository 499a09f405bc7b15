"""What netd makes of cables, servers and its own death."""

from __future__ import annotations

import json

from conftest import NewLan
from host import Host
from lan import Lan
from machine import Machine

NETD = "buildos-netd.service"


def test_without_carrier_it_waits_and_says_so(host: Host, lan: Lan) -> None:
    lan.serve_dhcp()
    host.start([lan, lan], plugged=False)
    # Boot is over without a network.
    assert host.wait_for_boot() == "running"
    host.wait_for(lambda: "no carrier on eth0, eth1" in host.status_text(NETD), "the status")
    assert host.bus_property("network1", "State") == "no-carrier"
    assert host.addresses("br1") == ["172.23.0.1/16"]

    host.nics[1].plug()
    host.wait_online()
    assert host.link("br0")["address"] == host.nics[1].mac


def test_without_a_server_it_waits_and_says_so(host: Host, lan: Lan) -> None:
    host.start([lan])
    assert host.wait_for_boot() == "running"
    host.wait_for(lambda: "no lease yet" in host.status_text(NETD), "the status")
    assert host.bus_property("network1", "State") == "acquiring"

    lan.serve_dhcp()
    host.wait_online()
    host.wait_for(lambda: host.bus_property("network1", "State") == "online", "it is online")


def test_the_nic_that_gets_a_lease_is_the_uplink(host: Host, lan: Lan, new_lan: NewLan) -> None:
    silent = new_lan("203.0.113", "silent")
    lan.serve_dhcp()
    host.start([silent, lan, silent])
    address = host.wait_online()
    assert lan.leases() == {host.nics[1].mac: address}
    assert host.link("eth1")["master"] == "br0"
    assert "master" not in host.link("eth0")


def test_who_waits_for_the_network_gets_it(host: Host, lan: Lan) -> None:
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
    host.wait_for(lambda: "no lease yet" in host.status_text(NETD), "netd waits")
    assert not host.journal("--unit=client.service", "_COMM=ip")
    lan.serve_dhcp()
    address = host.wait_online()
    host.wait_for(
        lambda: any(address in str(e["MESSAGE"]) for e in host.journal("--unit=client.service")),
        "the client started with the address",
    )


def test_killed_it_comes_back_and_the_address_never_leaves(host: Host, lan: Lan) -> None:
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
    host.wait_for(lambda: host.bus_property("network1", "Online"), "it is online")
    assert host.wait_online() == address
    assert "Deleted" not in host.read("/run/monitor")
    assert lan.log("dnsmasq.log").count("DHCPDISCOVER") == discovers, "it asked for another lease"


def test_restarted_it_cuts_no_traffic(host: Host, lan: Lan) -> None:
    lan.serve_dhcp()
    host.start([lan])
    address = host.wait_online()
    host.wait_for(lambda: host.active(NETD), "netd is up")
    with lan.ping(address) as echoes:
        host.systemctl("restart", NETD)
    assert echoes.lost() == []


def test_the_lease_is_renewed(host: Host, lan: Lan) -> None:
    lan.serve_dhcp(lease="2m")
    host.start([lan])
    address = host.wait_online()

    def lifetime() -> int:
        show = json.loads(host.run(["ip", "-json", "-4", "address", "show", "dev", "br0"]))
        seconds: int = show[0]["addr_info"][0]["valid_life_time"]
        return seconds

    assert lifetime() <= 120
    # netd does not write the seconds that pass by themselves.
    host.wait_for(lambda: lifetime() < 117, "the lease ages")
    host.call("network1", "Renew")
    host.wait_for(lambda: lifetime() >= 118, "the lease is young again")
    assert host.wait_online() == address


def test_the_kernel_command_line_configures(host: Host, lan: Lan) -> None:
    lan.serve_dhcp()
    host.command_line("quiet buildos.netd.private=10.99.0.1/24 buildos.hostname=chosen")
    host.start([lan])
    host.wait_for(lambda: host.addresses("br1") == ["10.99.0.1/24"], "the private network")
    host.wait_for(lambda: host.run(["hostname"]).strip() == "chosen", "the name")
    host.wait_for(lambda: host.bus_property("nat1", "Ready"), "ready for machines")
    assert Machine(host).take_lease().startswith("10.99.0.")
