"""Tests that netd repairs changes by other programs, and recovers after missed events and
SIGKILL."""

from __future__ import annotations

import signal

import pytest
from host import Host
from machine import Machine
from simlan.lan import Lan

NETD = "buildos-netd.service"
_RENEWED = "b7a65f0a3d554dd3a6b7f5c2e8c61f0d"
_REPAIRED = "0f6b7a52e9c84d31b4a05d8e2c71f396"


def _network(host: Host) -> tuple[list[str], list[str], str, str | None]:
    """Returns the addresses of both bridges, the default route and the bridge of eth0."""
    links = {link["ifname"]: link for link in host.links()}
    return (
        host.addresses("br0"),
        host.addresses("br1"),
        host.run("ip -4 route show default"),
        links["eth0"].get("master"),
    )


@pytest.mark.parametrize(
    "damage",
    [
        "ip address flush dev br0",
        "ip address flush dev br1",
        "ip route del default",
        "ip link set eth0 nomaster",
        "ip link set eth0 down",
        "ip link set br0 down",
        "ip link delete br0",
        "ip link delete br1",
        "ip link set br0 address 02:00:00:00:00:01",
        "ip link set br0 type bridge stp_state 1 forward_delay 400",
        "ip link set br0 mtu 1280",
    ],
)
def test_manual_change_is_repaired_and_logged(online: Host, damage: str) -> None:
    before, mac = _network(online), online.link("br0")["address"]
    online.run(damage)

    def repaired() -> bool:
        br0 = online.link("br0")
        settings = br0["linkinfo"]["info_data"]
        return (
            _network(online) == before
            and "UP" in br0["flags"]
            and (br0["address"], br0["mtu"]) == (mac, 1500)
            and (settings["stp_state"], settings["forward_delay"]) == (0, 0)
        )

    online.wait_for(repaired, "netd repairs the network")
    logged = online.wait_for(
        lambda: online.journal(f"MESSAGE_ID={_REPAIRED}"), "netd logs the repair"
    )
    # The kernel names the process that changes addresses and routes, but not links.
    known = [int(str(e["BUILDOS_CHANGED_BY"])) for e in logged if "BUILDOS_CHANGED_BY" in e]
    assert known or damage.startswith("ip link"), logged
    assert online.main_pid(NETD) not in known
    # The lease continues after the repair.
    assert online.bus_property("network1", "Online")
    renewals = len(online.journal(f"MESSAGE_ID={_RENEWED}"))
    online.call("network1", "Renew")
    online.wait_for(
        lambda: len(online.journal(f"MESSAGE_ID={_RENEWED}")) > renewals, "the lease is renewed"
    )


def test_addresses_routes_and_ports_of_other_programs_are_kept(online: Host) -> None:
    online.run(
        "ip address add 192.0.2.77/32 dev br0; ip route add 192.0.2.128/25 dev br0;"
        "ip link add other type veth peer name other-peer;"
        "ip link set other master br0; ip link set other up"
    )
    online.systemctl("restart", NETD)
    online.call("network1", "Renew")
    online.wait_for(lambda: online.bus_property("network1", "Online"), "the host is online")
    assert "192.0.2.77/32" in online.addresses("br0")
    assert "192.0.2.128/25" in online.run("ip -4 route")
    assert online.link("other")["master"] == "br0"
    assert online.bus_property("network1", "PublicPorts") == ["eth0", "other"]


def _drops(host: Host) -> int:
    """Returns the number of notifications that the kernel could not deliver to rtnetlink
    sockets."""
    lines = [line.split() for line in host.read("/proc/net/netlink").splitlines()[1:]]
    return sum(int(fields[8]) for fields in lines if fields[1] == "0")


def test_lost_kernel_notifications_are_recovered(online: Host) -> None:
    pid = online.main_pid(NETD)
    online.run(["kill", "-STOP", str(pid)])
    # The notifications exceed the buffer of netd's socket. The last one is the removed route.
    online.run(
        "for i in $(seq 2000); do echo address add 192.0.2.9/32 dev lo;"
        "echo address del 192.0.2.9/32 dev lo; done | ip -batch -; ip route del default"
    )
    assert _drops(online) > 0
    assert "default" not in online.run("ip -4 route")
    online.run(["kill", "-CONT", str(pid)])
    online.wait_for(lambda: "default via" in online.run("ip -4 route"), "the route is back")
    assert online.main_pid(NETD) == pid


def test_netd_killed_repeatedly_loses_no_packet_and_no_address(online: Host, lan: Lan) -> None:
    url = lan.serve_web("page\n")
    machine = Machine(online)
    machine.take_lease()
    online.run("ip -4 -o monitor address dev br0 </dev/null >/run/monitor 2>&1 &")
    with lan.ping(online.addresses("br0")[0].split("/")[0]) as echoes:
        for _ in range(5):
            pid = online.wait_for(lambda: online.main_pid(NETD), "netd runs")
            online.systemctl("kill", f"--signal={signal.SIGKILL.name}", NETD)
            online.wait_for(lambda pid=pid: online.main_pid(NETD) not in (0, pid), "netd is back")
            assert machine.run(f"curl --silent --max-time 10 {url}") == "page\n"
    assert echoes.lost() == []
    assert "Deleted" not in online.read("/run/monitor")


@pytest.mark.parametrize("moment", ["before the lease", "while renewing", "without carrier"])
def test_netd_killed_in_each_state_recovers(host: Host, lan: Lan, moment: str) -> None:
    if moment != "before the lease":
        lan.serve_dhcp(lease="2m")
    host.start([lan])
    if moment == "before the lease":
        host.wait_for(lambda: "no lease yet" in host.status_text(NETD), "netd waits for a lease")
    else:
        address = host.wait_online()
        # The test needs the bus, for which netd does not wait.
        host.wait_for_boot()
    if moment == "while renewing":
        lan.stop_dhcp()
        host.call("network1", "Renew")
        host.wait_for(lambda: "RENEWING" in host.read("/run/buildos/netd/state.json"), "RENEWING")
    if moment == "without carrier":
        host.nics[0].unplug()
        host.wait_for(
            lambda: "no carrier" in host.status_text(NETD), "netd notices the loss of carrier"
        )
    pid = host.main_pid(NETD)
    host.systemctl("kill", "--signal=KILL", NETD)
    host.wait_for(lambda: host.main_pid(NETD) not in (0, pid), "netd is back")
    if moment != "before the lease":
        assert host.addresses("br0") == [f"{address}/24"]
    if moment == "without carrier":
        host.nics[0].plug()
    else:
        lan.serve_dhcp(lease="2m")
    host.wait_for(lambda: host.bus_property("network1", "Online"), "the host is online")
    if moment != "before the lease":
        assert host.addresses("br0") == [f"{address}/24"]
