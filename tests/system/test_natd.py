"""Tests the network of machines on br1: access, NAT, and repair of the table."""

from __future__ import annotations

import ipaddress
import statistics
from pathlib import Path

import pytest
from host import Host
from machine import Machine
from nat import (
    AGENT_TFTP,
    INSTALLED,
    RESTORED,
    dnsmasq_pid,
    messages,
    now,
    packets,
    public_address,
    table_handle,
    usage,
    wait_until_ready,
)
from simlan.errors import CommandFailed
from simlan.lan import Lan

_GOLDEN = Path(__file__).resolve().parents[2] / "crates/buildos-natd/tests/golden"
_TABLE = (_GOLDEN / "ruleset.nft").read_text()


def _forwarding(host: Host, interface: str) -> str:
    return host.read(f"/proc/sys/net/ipv4/conf/{interface}/forwarding").strip()


def test_machine_gets_address_dns_and_internet(online: Host, lan: Lan) -> None:
    url = lan.serve_web("from the LAN\n")
    machine = Machine(online)
    first, last = online.bus_property("nat1", "DHCPRange")
    address = ipaddress.ip_address(machine.take_lease())
    assert ipaddress.ip_address(first) <= address <= ipaddress.ip_address(last)
    assert lan.address in machine.run("getent ahostsv4 gateway.lan.example")
    assert machine.run(["curl", "--silent", "--max-time", "20", url]) == "from the LAN\n"
    # The LAN sees the host's address only.
    assert lan.web_clients() == [public_address(online)]
    assert str(address) in online.read("/run/buildos/dnsmasq/leases")
    ((leased, mac, expires),) = usage(online, "Machines")
    assert (leased, mac) == (str(address), machine.mac)
    assert 3500 < expires - float(now(online)) <= 3600
    counters = usage(online, "Counters")
    # The page was a connection through NAT. The host answered the DNS query.
    assert counters["new connections"][0] >= 1
    assert counters["machines to the outside"][0] > 3
    assert counters["the outside to machines"][1] > len("from the LAN\n")
    tracked, limit = usage(online, "TrackedConnections")
    assert 1 <= tracked < limit


@pytest.mark.parametrize(("family", "golden"), [("inet", "ruleset.nft"), ("arp", "arp.nft")])
def test_installed_table_equals_golden_file(online: Host, family: str, golden: str) -> None:
    listed = online.run(f"nft --stateless --terse list table {family} buildos")
    assert listed == (_GOLDEN / golden).read_text()


def test_forwarding_is_enabled_on_both_bridges_only(online: Host) -> None:
    assert online.run("sysctl -n net.ipv4.ip_forward").strip() == "0"
    forwarding = {name: _forwarding(online, name) for name in ("br0", "br1", "eth0", "lo")}
    assert forwarding == {"br0": "1", "br1": "1", "eth0": "0", "lo": "0"}


def test_machine_reaches_only_open_ports_of_host(online: Host) -> None:
    machine = Machine(online)
    machine.take_lease()
    online.run("systemd-run --unit=secret busybox httpd -f -p 8000 -h /usr/lib")
    host, public = "172.23.0.1", public_address(online)
    online.wait_for(
        lambda: online.succeeds(f"curl --silent http://{host}:8000/os-release"),
        "the host serves a page",
    )
    assert machine.succeeds(f"ping -c 1 -W 5 {host}")
    before = packets(online, "not for machines")
    for address in (host, public):
        assert not machine.succeeds(f"curl --silent --max-time 2 http://{address}:8000/os-release")
    assert packets(online, "not for machines") > before


def test_machine_with_foreign_source_address_is_dropped(online: Host, lan: Lan) -> None:
    machine = Machine(online)
    machine.take_lease()
    for address, comment in (
        ("10.99.99.99", "a machine under a foreign address"),
        ("172.23.0.1", "a machine under the host's address"),
    ):
        before = packets(online, comment)
        machine.run(f"ip address add {address}/32 dev eth0")
        assert not machine.succeeds(f"ping -c 1 -W 1 -I {address} {lan.address}")
        assert packets(online, comment) > before


def test_machine_is_unreachable_from_outside(online: Host, lan: Lan) -> None:
    machine = Machine(online)
    address = machine.take_lease()
    before = packets(online, "an outsider past the NAT")
    lan.run(["ip", "route", "add", "172.23.0.0/16", "via", public_address(online)])
    for target in (address, "172.23.0.1"):
        knock = f"import socket; socket.create_connection(('{target}', 53), timeout=1)"
        with pytest.raises(CommandFailed, match="[Tt]ime"):
            lan.run(["python3", "-c", knock])
    assert packets(online, "an outsider past the NAT") >= before + 2


def test_tftp_of_agent_stays_on_host(online: Host) -> None:
    machine = Machine(online)
    machine.take_lease()
    send = ["bash", "-c", f"echo hello >/dev/udp/{AGENT_TFTP}/69"]
    dropped = "for an agent on this host; its redirection is missing"
    machine.run(send)
    online.wait_for(lambda: packets(online, dropped) == 1, "the rule counts the packet")
    # bbot-agent adds such a rule, to a table of iptables.
    online.run(
        f"iptables -t nat -A PREROUTING -i br1 -p udp -d {AGENT_TFTP} --dport 69"
        " -j DNAT --to-destination 172.23.0.1:6969"
    )
    receive = (
        "$socket = IO::Socket::INET->new(Proto => 'udp', LocalPort => 6969); print scalar <$socket>"
    )
    online.run(
        ["systemd-run", "--expand-environment=no", "--unit=agent"]
        + ["--property=StandardOutput=truncate:/run/agent"]
        + ["perl", "-MIO::Socket::INET", "-e", f"$| = 1; {receive}"]
    )
    online.wait_for(
        lambda: ":6969" in online.run("ss --udp --listening --numeric"), "the agent listens"
    )
    machine.run(send)
    online.wait_for(lambda: online.read("/run/agent") == "hello\n", "the agent receives the packet")
    assert packets(online, dropped) == 1


@pytest.mark.parametrize(
    "damage",
    [
        "nft flush ruleset",
        "nft delete table inet buildos",
        "nft flush chain inet buildos forward",
        "nft insert rule inet buildos forward accept",
        "nft 'add table inet buildos { flags dormant; }'",
        "systemctl restart nftables",
    ],
)
def test_table_damaged_is_reinstalled_and_logged(online: Host, damage: str) -> None:
    since = now(online)
    online.run(damage)
    online.wait_for(
        lambda: online.run("nft --stateless --terse list table inet buildos", check=False) == _TABLE,
        f"the table after {damage!r}",
    )
    restored = online.wait_for(lambda: messages(online, RESTORED, since), "natd logs the repair")
    assert restored[-1]["BUILDOS_COMMAND"] == "nft"
    assert int(restored[-1]["BUILDOS_PID"]) > 0
    assert restored[-1]["PRIORITY"] == "4"


def test_table_removed_is_back_within_100_ms(online: Host) -> None:
    # The times include two starts of nft and of date.
    flush = """
    for i in 1 2 3 4 5 6 7 8 9 10 11; do
        start=$(date +%s%N)
        nft flush ruleset
        until nft list chain inet buildos postrouting >/dev/null 2>&1; do :; done
        echo $(($(date +%s%N) - start))
    done
    """
    times = [int(line) / 1e6 for line in online.run(flush).split()]
    assert statistics.median(times) < 100, times


def test_tables_of_other_programs_are_unchanged(online: Host) -> None:
    others = """
    table ip filter {
        chain FORWARD { type filter hook forward priority 0; policy accept; }
    }
    table inet others {
        set names { type ifname; elements = { "x" }; }
    }
    table bridge others {
    }
    """
    online.run(f"nft -f - <<'END'\n{others}\nEND")
    before = online.run("nft list ruleset | grep -v '^#'")
    online.run("nft delete table inet buildos")
    online.wait_for(lambda: online.succeeds("nft list table inet buildos"), "the table is back")
    online.run("nft delete table inet buildos; nft add table inet buildos")
    online.wait_for(
        lambda: online.run("nft --stateless --terse list table inet buildos") == _TABLE,
        "the table is complete",
    )
    after = online.run("nft list ruleset | grep -v '^#'")
    for table in ("table ip filter", "table inet others", "table bridge others"):
        assert before.split(table)[1].split("\n}")[0] == after.split(table)[1].split("\n}")[0]


def test_natd_killed_keeps_connections_and_counters(online: Host, lan: Lan) -> None:
    machine = Machine(online)
    machine.take_lease()
    handle, pid = table_handle(online), online.main_pid("buildos-natd.service")
    online.run(f"kill -KILL {pid}")
    assert machine.succeeds(f"ping -c 1 -W 5 {lan.address}")
    online.wait_for(
        lambda: online.main_pid("buildos-natd.service") not in (0, pid), "natd is started again"
    )
    wait_until_ready(online)
    assert table_handle(online) == handle
    assert len(messages(online, INSTALLED)) == 3


def test_natd_restart_keeps_connections(online: Host, lan: Lan) -> None:
    machine = Machine(online)
    machine.take_lease()
    handle, dnsmasq = table_handle(online), dnsmasq_pid(online)
    online.systemctl("restart", "buildos-natd.service")
    wait_until_ready(online)
    ping = " ".join(machine.command(["ping", "-q", "-i", "0.02", "-c", "100", lan.address]))
    pings = online.run(f"{ping} & systemctl restart buildos-natd.service; wait")
    assert " 0% packet loss" in pings
    assert table_handle(online) == handle
    assert dnsmasq_pid(online) == dnsmasq


def test_natd_stopped_disables_forwarding(online: Host, lan: Lan) -> None:
    machine = Machine(online)
    machine.take_lease()
    assert machine.succeeds(f"ping -c 1 -W 5 {lan.address}")
    online.systemctl("stop", "buildos-natd.service")
    assert (_forwarding(online, "br0"), _forwarding(online, "br1")) == ("0", "0")
    assert not machine.succeeds(f"ping -c 1 -W 1 {lan.address}")
    assert online.succeeds("nft list table inet buildos")
    online.systemctl("start", "buildos-natd.service")
    wait_until_ready(online)
    assert machine.succeeds(f"ping -c 1 -W 5 {lan.address}")


def test_configuration_change_reaches_dnsmasq(online: Host) -> None:
    active = "/run/buildos/dnsmasq/dnsmasq.conf"
    # The second change comes while the first is being applied.
    for seconds in (600, 700):
        text = f"dhcp_lease_s = {seconds}"
        online.run(
            f"mkdir -p /etc/buildos/natd.conf.d; echo '{text}' >/etc/buildos/natd.conf.d/1.toml"
        )
        online.systemctl("reload", "buildos-natd.service")
    online.wait_for(lambda: ",700\n" in online.read(active), "dnsmasq has the second change")
    wait_until_ready(online)


def test_machines_get_addresses_without_uplink(host: Host, lan: Lan) -> None:
    host.start([lan], plugged=False)
    host.wait_for(lambda: host.bus_property("nat1", "TableInstalled"), "the table is installed")
    machine = Machine(host)
    host.wait_for(lambda: host.active("buildos-dnsmasq.service"), "dnsmasq runs")
    assert machine.take_lease().startswith("172.23.")


def test_natd_waits_for_netd(host: Host, lan: Lan) -> None:
    lan.serve_dhcp()
    host.file(
        "/etc/systemd/system/buildos-netd.service.d/test.conf", "[Unit]\nConditionPathExists=/go\n"
    )
    host.start([lan])
    host.wait_for(lambda: host.active("buildos-natd.service"), "natd runs")
    assert host.bus_property("nat1", "State") == "waiting"
    status = host.status_text("buildos-natd.service")
    assert status == "waiting for buildos-netd, which is not running"
    host.run("touch /go")
    host.systemctl("start", "buildos-netd.service")
    wait_until_ready(host)
    # natd keeps table and readiness after netd has stopped.
    handle = table_handle(host)
    host.systemctl("stop", "buildos-netd.service")
    assert host.bus_property("nat1", "Ready") is True
    assert table_handle(host) == handle
