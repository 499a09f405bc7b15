"""Tests the election of the uplink, and changes of cables, NICs and configuration."""

from __future__ import annotations

import re
import subprocess

import pytest
from conftest import NewLan
from connections import hold
from host import Host
from machine import Machine
from nat import wait_until_ready
from simlan.lan import BRIDGE, Lan, Nic

NETD = "buildos-netd.service"
# See units/systemd/catalog/buildos-netd.catalog.
_REPAIRED = "0f6b7a52e9c84d31b4a05d8e2c71f396"
_GRACE = "carrier_grace_s = 1\n"


def _port(host: Host) -> str | None:
    """Returns the NIC that is a port of br0."""
    ports = [link["ifname"] for link in host.links() if link.get("master") == "br0"]
    assert len(ports) <= 1, ports
    return ports[0] if ports else None


def _reason(host: Host, nic: str) -> str:
    """Returns netd's reason for the state of a NIC."""
    (link,) = [entry for entry in host.state()["links"] if entry["name"] == nic]
    reason: str = link["reason"]
    return reason


def test_boot_nic_is_preferred(host: Host, lan: Lan, new_lan: NewLan) -> None:
    other = new_lan("203.0.113", "other")
    lan.serve_dhcp()
    other.serve_dhcp()
    mac = "02:bd:00:00:00:b1"
    host.command_line(f"BOOTIF=01-{mac.replace(':', '-')}")
    host.start([other, other, lan], macs=["02:bd:00:00:00:b2", "02:bd:00:00:00:b3", mac])
    host.wait_online()
    assert _port(host) == "eth2"
    assert other.leases() == {}


def test_boot_nic_without_server_does_not_become_uplink(
    host: Host, lan: Lan, new_lan: NewLan
) -> None:
    silent = new_lan("203.0.113", "silent")
    lan.serve_dhcp()
    mac = "02:bd:00:00:00:b1"
    host.command_line(f"BOOTIF={mac} buildos.netd.bootif_head_start_ms=500")
    host.start([lan, silent], macs=["02:bd:00:00:00:b2", mac])
    host.wait_online()
    assert _port(host) == "eth0"


def test_link_local_lease_is_replaced_by_later_boot_nic(
    host: Host, lan: Lan, new_lan: NewLan
) -> None:
    controller = new_lan("169.254.95", "controller")
    controller.serve_dhcp("--dhcp-option=3", "--dhcp-option=6")
    lan.serve_dhcp()
    mac = "02:bd:00:00:00:b1"
    host.command_line(f"BOOTIF={mac}")
    host.start([controller], macs=["02:bd:00:00:00:b2"])
    host.wait_for(
        lambda: host.bus_property("network1", "State") == "no-default-route",
        "the controller's network is used",
    )
    assert host.bus_property("network1", "Provisional") is False, "there is no other NIC"
    assert not host.bus_property("network1", "Online")
    private = host.addresses("br1")
    host.plug_in(lan, "eth7", mac)
    host.wait_for(lambda: host.bus_property("network1", "Online"), "the better network is used")
    assert _port(host) == "eth7"
    assert all(a.startswith(f"{lan.prefix}.") for a in host.addresses("br0"))
    assert host.addresses("br1") == private


def test_only_boot_nic_becomes_uplink(host: Host, lan: Lan, new_lan: NewLan) -> None:
    other = new_lan("203.0.113", "other")
    other.serve_dhcp()
    mac = "02:bd:00:00:00:b1"
    host.command_line(f"BOOTIF={mac} buildos.netd.bootif=only")
    host.start([other, lan], macs=["02:bd:00:00:00:b2", mac])
    host.wait_for(lambda: "DISCOVER" in host.status_text(NETD), "the boot NIC is asked")
    assert 'bootif is "only"' in _reason(host, "eth0")
    lan.serve_dhcp()
    host.wait_online()
    assert _port(host) == "eth1"
    assert other.leases() == {}


def test_lease_survives_short_carrier_loss(host: Host, lan: Lan) -> None:
    lan.serve_dhcp()
    host.start([lan])
    address = host.wait_online()
    host.run("ip -4 -o monitor address dev br0 </dev/null >/run/monitor 2>&1 &")
    requests = lan.log("dnsmasq.log").count("DHCPREQUEST")
    host.nics[0].unplug()
    host.wait_for(
        lambda: host.bus_property("network1", "State") == "carrier-lost", "netd notices the loss"
    )
    host.wait_for(lambda: f"br0 keeps {address}/24" in host.status_text(NETD), "netd's status")
    host.nics[0].plug()
    host.wait_for(lambda: host.bus_property("network1", "State") == "online", "the host is online")
    host.wait_for(
        lambda: lan.log("dnsmasq.log").count("DHCPREQUEST") > requests, "the lease is confirmed"
    )
    assert host.addresses("br0") == [f"{address}/24"]
    assert "Deleted" not in host.read("/run/monitor")


@pytest.mark.parametrize("authoritative", [True, False])
def test_cable_moved_to_other_network_leads_to_its_lease(
    host: Host, lan: Lan, new_lan: NewLan, authoritative: bool
) -> None:
    other = new_lan("203.0.113", "other")
    lan.serve_dhcp()
    other.serve_dhcp(authoritative=authoritative)
    host.start([lan])
    host.wait_online()
    lan.move(host.nics[0], other)
    host.wait_for(
        lambda: [a.startswith("203.0.113.") for a in host.addresses("br0")] == [True],
        "br0 has a lease of the other network only",
    )


def test_silent_gateway_is_reported_and_replaced_by_nic_whose_gateway_answers(
    host: Host, lan: Lan, new_lan: NewLan
) -> None:
    second = new_lan("203.0.113", "second")
    gateway = f"{lan.prefix}.250"
    lan.own_address(gateway)
    lan.serve_dhcp(f"--dhcp-option=3,{gateway}")
    host.start([lan, second])
    host.wait_online()
    assert _port(host) == "eth0"

    def reachability() -> object:
        return host.bus_property("network1", "GatewayReachability")

    host.wait_for(lambda: reachability() == "reachable", "the gateway answers")
    lan.run(["ip", "address", "del", f"{gateway}/32", "dev", BRIDGE])
    host.wait_for(lambda: reachability() == "unreachable", "the gateway is silent", 60)
    assert f"gateway {gateway} does not answer" in host.status_text(NETD)
    assert host.bus_property("network1", "Online")
    second.serve_dhcp()
    host.wait_for(lambda: _port(host) == "eth1", "the second NIC is the uplink", 90)
    host.wait_for(lambda: reachability() == "reachable", "its gateway answers")


def test_second_nic_takes_over_and_machine_keeps_address(
    host: Host, lan: Lan, new_lan: NewLan
) -> None:
    second = new_lan("203.0.113", "second")
    lan.serve_dhcp()
    url = second.serve_web("from the second LAN\n")
    host.configure("netd", _GRACE)
    host.start([lan, second])
    host.wait_online()
    host.wait_for(lambda: host.bus_property("nat1", "Ready"), "natd is ready for machines")
    machine = Machine(host)
    address = machine.take_lease()
    bridge = host.link("br0")["ifindex"]
    second.serve_dhcp()

    host.nics[0].unplug()
    host.wait_for(lambda: _port(host) == "eth1", "the second NIC is the uplink")
    host.wait_for(
        lambda: [a.startswith("203.0.113.") for a in host.addresses("br0")] == [True],
        "br0 has the lease of the second LAN only",
    )
    br0 = host.link("br0")
    assert br0["ifindex"] == bridge, "br0 was made again"
    assert br0["address"] == host.nics[1].mac
    # Packets of the machine leave by the new uplink.
    host.wait_for(
        lambda: machine.succeeds(f"curl --silent --fail --max-time 2 {url}"),
        "the machine reaches the LAN",
    )
    assert machine.run("ip -4 -brief address show dev eth0").split()[2].startswith(f"{address}/")
    assert second.web_clients()[-1] == host.addresses("br0")[0].split("/")[0]

    # The second NIC stays the uplink when the first has carrier again.
    host.nics[0].plug()
    host.wait_for(
        lambda: "carrier" in _reason(host, "eth0"), "netd notices carrier on the first NIC"
    )
    assert _port(host) == "eth1"


_CONNECTIONS = 200


def test_nic_on_same_lan_takes_over_with_address_and_connections(host: Host, lan: Lan) -> None:
    lan.serve_dhcp()
    host.start([lan, lan])
    address = host.wait_online()
    wait_until_ready(host)
    first = _port(host)
    assert first is not None
    before = host.link("br0")
    index = [nic.name for nic in host.nics].index(first)
    machine = Machine(host)
    machine.take_lease()
    host.run("ip -4 -o monitor address dev br0 </dev/null >/run/monitor 2>&1 &")
    with hold(machine, lan, _CONNECTIONS) as connections:
        for number, port in enumerate([1 - index, index]):
            unplugged, other = host.nics[1 - port], host.nics[port]
            unplugged.unplug()
            host.wait_for(lambda nic=other: _port(host) == nic.name, "the other NIC is the uplink")
            assert connections.alive() == _CONNECTIONS, number
            # The former NIC has carrier again, with the hardware address of br0.
            unplugged.plug()
            host.wait_for(
                lambda nic=unplugged: "carrier" in _reason(host, nic.name), "it has carrier again"
            )
            with lan.ping(address) as echoes:
                assert connections.alive() == _CONNECTIONS, number
            assert echoes.lost() == []
            assert lan.answers_for(address) == [before["address"]]
    assert host.addresses("br0") == [f"{address}/24"]
    assert host.link("br0")["address"] == before["address"]
    assert list(lan.leases().values()) == [address]
    assert "Deleted" not in host.read("/run/monitor")
    # netd restarts with the identity, and renews the lease with it.
    host.nics[index].unplug()
    host.wait_for(lambda: _port(host) == host.nics[1 - index].name, "the other NIC is the uplink")
    host.systemctl("restart", NETD)
    host.call("network1", "Renew")
    host.wait_for(lambda: host.bus_property("network1", "Online"), "the host is online")
    assert host.bus_property("network1", "UplinkAddress") == before["address"]
    assert host.link("br0")["address"] == before["address"]
    assert list(lan.leases().values()) == [address]


def test_lease_without_default_route_names_host(host: Host, lan: Lan) -> None:
    lan.serve_dhcp("--dhcp-option=3", "--dhcp-host=02:bd:00:00:*:*,rack7")
    host.start([lan])
    host.wait_for(
        lambda: host.bus_property("network1", "State") == "no-default-route", "br0 has a lease"
    )
    host.wait_for(lambda: host.run(["hostname"]).strip() == "rack7", "the host has its name")


def test_nic_plugged_in_later_becomes_uplink(host: Host, lan: Lan) -> None:
    lan.serve_dhcp()
    host.start([])
    host.wait_for(lambda: "no Ethernet NIC" in host.status_text(NETD), "netd's status")
    host.plug_in(lan, "eth7", "02:bd:00:00:00:77")
    host.wait_online()
    assert _port(host) == "eth7"


def test_nic_unplugged_is_replaced(host: Host, lan: Lan) -> None:
    lan.serve_dhcp()
    host.start([lan, lan])
    host.wait_online()
    first = _port(host)
    assert first is not None
    other = "eth1" if first == "eth0" else "eth0"
    host.run(["ip", "link", "delete", first])
    host.wait_for(lambda: _port(host) == other, "the other NIC is the uplink")
    mac = host.link(other)["address"]
    host.wait_for(
        lambda: host.addresses("br0") == [f"{lan.leases().get(mac)}/24"],
        "br0 has the lease of the other NIC",
    )


def test_nic_renamed_stays_uplink(host: Host, lan: Lan) -> None:
    lan.serve_dhcp()
    host.start([lan])
    address = host.wait_online()
    host.wait_for(lambda: host.active(NETD), "netd is up")
    host.run("ip link set eth0 name eth9")
    host.wait_for(
        lambda: host.bus_property("network1", "Uplink") == "eth9", "netd has the new name"
    )
    assert host.addresses("br0") == [f"{address}/24"]
    host.call("network1", "Renew")
    host.wait_for(lambda: f"{address}/24 by eth9" in host.status_text(NETD), "netd's status")


def test_nic_in_bridge_of_other_program_is_left_alone(
    host: Host, lan: Lan, new_lan: NewLan
) -> None:
    lan.serve_dhcp()
    other = new_lan("203.0.113", "other")
    host.file(
        "/etc/systemd/system/other-bridge.service",
        "[Unit]\nDefaultDependencies=no\nBefore=buildos-netd.service\n"
        "[Service]\nType=oneshot\nExecStart=sh -c 'ip link add other-bridge type bridge && "
        "ip link set eth1 master other-bridge'\n[Install]\nWantedBy=buildos-netd.service\n",
    )
    host.file(
        "/etc/systemd/system/buildos-netd.service.d/other-bridge.conf",
        "[Unit]\nWants=other-bridge.service\n",
    )
    host.start([lan, other])
    host.wait_online()
    assert host.link("eth1")["master"] == "other-bridge"
    assert re.search(r"port of link \d+, which buildos does not manage", _reason(host, "eth1"))
    assert host.link("other-bridge")["operstate"] == "DOWN", "netd set it up"


def test_servers_and_networks_can_be_restricted(host: Host, lan: Lan, new_lan: NewLan) -> None:
    rogue, wrong = new_lan("192.168.7", "rogue"), new_lan("203.0.113", "wrong")
    for each in (rogue, wrong):
        each.serve_dhcp()
    host.configure(
        "netd",
        f'allow_servers = ["{lan.address}", "{rogue.address}"]\n'
        'deny_networks = ["192.168.0.0/16"]\n',
    )
    host.start([rogue, wrong, lan])

    def refused() -> set[str]:
        return {e["server"] for e in host.history() if e["decision"] == "refused"}

    host.wait_for(
        lambda: refused() == {rogue.address, wrong.address}, "the history has both refusals"
    )
    lan.serve_dhcp()
    host.wait_online()
    assert _port(host) == "eth2"
    assert rogue.leases() == {} == wrong.leases()


def test_reload_excluding_spare_nic_loses_no_packet(host: Host, lan: Lan) -> None:
    lan.serve_dhcp()
    host.start([lan, lan])
    address = host.wait_online()
    host.wait_for(lambda: host.active(NETD), "netd is up")
    uplink = _port(host)
    other = "eth1" if uplink == "eth0" else "eth0"
    host.write("/etc/buildos/netd.conf.d/60-reload.toml", f'exclude = ["{other}"]\nexlude = []\n')
    with lan.ping(address) as echoes:
        host.systemctl("reload", NETD)
    assert echoes.lost() == []
    assert host.addresses("br0") == [f"{address}/24"]
    assert "excluded by" in _reason(host, other)
    # STATUS= names the misspelt key and the nearest valid key.
    status = host.status_text(NETD)
    assert "degraded" in status and "exlude" in status and "exclude" in status, status
    assert not host.succeeds("buildos-netd --check")
    host.write("/etc/buildos/netd.conf.d/60-reload.toml", "")
    host.call("network1", "Reconfigure")
    host.wait_for(lambda: "degraded" not in host.status_text(NETD), "the configuration is valid")
    assert host.succeeds("buildos-netd --check")


def test_reload_can_exclude_uplink(host: Host, lan: Lan, new_lan: NewLan) -> None:
    other = new_lan("203.0.113", "other")
    lan.serve_dhcp()
    host.start([lan, other])
    host.wait_online()
    host.wait_for(lambda: host.active(NETD), "netd is up")
    host.write("/etc/buildos/netd.conf.d/60-reload.toml", 'exclude = ["eth0"]\n')
    host.systemctl("reload", NETD)
    host.wait_for(lambda: _port(host) is None, "br0 has no port")
    assert host.addresses("br0") == []
    other.serve_dhcp()
    host.wait_online()
    assert _port(host) == "eth1"


def test_first_nic_takes_over_again_after_second_fails(
    host: Host, lan: Lan, new_lan: NewLan
) -> None:
    second = new_lan("203.0.113", "second")
    lan.serve_dhcp()
    host.configure("netd", _GRACE)
    host.start([lan, second])
    host.wait_online()
    second.serve_dhcp()
    host.nics[0].unplug()
    host.wait_for(lambda: _port(host) == "eth1", "the second NIC is the uplink")
    host.nics[0].plug()
    host.nics[1].unplug()
    host.wait_for(lambda: _port(host) == "eth0", "the first NIC is the uplink")
    host.wait_for(
        lambda: [a.startswith("198.51.100.") for a in host.addresses("br0")] == [True],
        "br0 has the lease of the first LAN only",
    )


def test_reload_changes_private_network(host: Host, lan: Lan) -> None:
    lan.serve_dhcp()
    host.start([lan])
    host.wait_for(lambda: host.addresses("br1") == ["172.23.0.1/16"], "br1 has the default address")
    host.wait_for(lambda: host.active(NETD), "netd is up")
    host.write("/etc/buildos/netd.conf.d/60-reload.toml", 'private = "10.5.0.1/16"\n')
    host.systemctl("reload", NETD)
    host.wait_for(
        lambda: host.addresses("br1") == ["10.5.0.1/16"], "br1 has the configured address"
    )


def test_mtu_too_small_for_ipv6_causes_no_loop(host: Host, lan: Lan) -> None:
    lan.serve_dhcp("--dhcp-option=option:mtu,1000")
    host.start([lan])
    host.wait_online()
    host.wait_for(lambda: host.link("br0")["mtu"] == 1000, "br0 has the MTU of the lease")
    host.wait_for(lambda: host.bus_property("network1", "Online"), "the host is online")
    # netd is idle now. It repairs and logs the next change.
    host.run("ip route del default")
    host.wait_for(lambda: host.journal(f"MESSAGE_ID={_REPAIRED}"), "netd logs the repair")
    assert "default via" in host.run("ip -4 route")


def _burst(nic: Nic) -> None:
    nic.unplug()
    nic.plug()


def test_flapping_carrier_keeps_lease(host: Host, lan: Lan) -> None:
    lan.serve_dhcp()
    host.start([lan])
    address = host.wait_online()
    for _ in range(20):
        _burst(host.nics[0])
    host.wait_for(lambda: host.bus_property("network1", "State") == "online", "the host is online")
    assert host.addresses("br0") == [f"{address}/24"]
    assert subprocess.run(lan.command(["ping", "-c", "1", "-W", "10", address])).returncode == 0


def test_flapping_carrier_writes_few_journal_lines(host: Host, lan: Lan) -> None:
    lan.serve_dhcp()
    host.start([lan])
    wait_until_ready(host)
    host.wait_for(lambda: not host.run("systemctl list-jobs --quiet --no-legend"), "the boot ends")
    cursor = host.journal("--lines=1")[-1]["__CURSOR"]

    def logged() -> list[str]:
        return [str(line["MESSAGE"]) for line in host.journal(f"--after-cursor={cursor}")]

    flaps = 10
    for _ in range(flaps):
        host.nics[0].unplug()
        host.wait_for(
            lambda: host.bus_property("network1", "State") == "carrier-lost", "netd notices"
        )
        host.nics[0].plug()
        host.wait_for(
            lambda: host.bus_property("network1", "State") == "online", "the host is online"
        )
    held = re.compile(r"eth0: carrier \(the last of \d+ such messages in \d+ s\)")
    host.wait_for(lambda: any(held.fullmatch(line) for line in logged()), "the rest is reported")
    wait_until_ready(host)
    lines = logged()
    # Each change is a line of netd and one of natd. On a loaded machine, the link is quiet for
    # some seconds now and then, which is reported each time.
    assert len(lines) <= 2 * flaps, lines
