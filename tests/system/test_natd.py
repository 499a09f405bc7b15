"""What the machines on br1 have of their host, and what they have not."""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path

import pytest
from host import Host
from lan import Lan
from machine import Machine
from namespace import CommandFailed

_GOLDEN = Path(__file__).resolve().parents[2] / "crates/buildos-natd/tests/golden/ruleset.nft"
_RESTORED = "e027bb31090a415fa94f4619ad223281"
_INSTALLED = "8583a305106a49859c8cfe4c9c6d98c8"
_AGENT_TFTP = "196.254.111.222"


@pytest.fixture
def online(host: Host, lan: Lan) -> Host:
    """A host with a lease, ready for machines."""
    lan.serve_dhcp()
    host.start([lan])
    _wait_until_ready(host)
    return host


def _wait_until_ready(host: Host) -> None:
    host.wait_for(lambda: host.bus_property("network1", "Online"), "online")
    host.wait_for(lambda: host.bus_property("nat1", "Ready"), "ready for machines")


def _public_address(host: Host) -> str:
    return host.addresses("br0")[0].partition("/")[0]


def _forwarding(host: Host, interface: str) -> str:
    return host.read(f"/proc/sys/net/ipv4/conf/{interface}/forwarding").strip()


def _table_handle(host: Host) -> int:
    """Changes when the table is made anew."""
    listed = json.loads(host.run("nft --json list tables inet"))["nftables"]
    return next(o["table"]["handle"] for o in listed if o.get("table", {}).get("name") == "buildos")


def _packets(host: Host, comment: str) -> int:
    """What the rule with that comment has counted."""
    listed = json.loads(host.run("nft --json list table inet buildos"))["nftables"]
    rules = [o["rule"] for o in listed if o.get("rule", {}).get("comment") == comment]
    assert len(rules) == 1
    counters = [e["counter"] for e in rules[0]["expr"] if "counter" in e]
    packets: int = counters[0]["packets"]
    return packets


def test_a_machine_gets_an_address_names_and_the_web(online: Host, lan: Lan) -> None:
    url = lan.serve_web("from the LAN\n")
    machine = Machine(online)
    first, last = online.bus_property("nat1", "DHCPRange")
    address = ipaddress.ip_address(machine.take_lease())
    assert ipaddress.ip_address(first) <= address <= ipaddress.ip_address(last)
    assert lan.address in machine.run("getent ahostsv4 gateway.lan.example")
    assert machine.run(["curl", "--silent", "--max-time", "20", url]) == "from the LAN\n"
    # The LAN sees nobody but the host.
    assert lan.web_clients() == [_public_address(online)]
    assert str(address) in online.read("/run/buildos/dnsmasq/leases")


def test_the_table_is_the_one_on_record(online: Host) -> None:
    assert online.run("nft --stateless list table inet buildos") == _GOLDEN.read_text()


def test_only_the_two_bridges_forward(online: Host) -> None:
    assert online.run("sysctl -n net.ipv4.ip_forward").strip() == "0"
    forwarding = {name: _forwarding(online, name) for name in ("br0", "br1", "eth0", "lo")}
    assert forwarding == {"br0": "1", "br1": "1", "eth0": "0", "lo": "0"}


def test_a_machine_reaches_no_more_of_the_host_than_it_needs(online: Host) -> None:
    machine = Machine(online)
    machine.take_lease()
    online.run("systemd-run --unit=secret busybox httpd -f -p 8000 -h /usr/lib")
    host, public = "172.23.0.1", _public_address(online)
    online.wait_for(
        lambda: online.succeeds(f"curl --silent http://{host}:8000/os-release"), "secret served"
    )
    assert machine.succeeds(f"ping -c 1 -W 5 {host}")
    before = _packets(online, "not for machines")
    for address in (host, public):
        assert not machine.succeeds(f"curl --silent --max-time 2 http://{address}:8000/os-release")
    assert _packets(online, "not for machines") > before


def test_a_machine_cannot_be_somebody_else(online: Host, lan: Lan) -> None:
    machine = Machine(online)
    machine.take_lease()
    for address, comment in (
        ("10.99.99.99", "a machine under a foreign address"),
        ("172.23.0.1", "a machine under the host's address"),
    ):
        before = _packets(online, comment)
        machine.run(f"ip address add {address}/32 dev eth0")
        assert not machine.succeeds(f"ping -c 1 -W 1 -I {address} {lan.address}")
        assert _packets(online, comment) > before


def test_nobody_outside_reaches_a_machine(online: Host, lan: Lan) -> None:
    machine = Machine(online)
    address = machine.take_lease()
    before = _packets(online, "an outsider past the NAT")
    lan.run(["ip", "route", "add", "172.23.0.0/16", "via", _public_address(online)])
    for target in (address, "172.23.0.1"):
        knock = f"import socket; socket.create_connection(('{target}', 53), timeout=1)"
        with pytest.raises(CommandFailed, match="[Tt]ime"):
            lan.run(["python3", "-c", knock])
    assert _packets(online, "an outsider past the NAT") >= before + 2


def test_tftp_of_an_agent_stays_on_the_host(online: Host) -> None:
    machine = Machine(online)
    machine.take_lease()
    ask = ["bash", "-c", f"echo hello >/dev/udp/{_AGENT_TFTP}/69"]
    lost = "for an agent on this host; its redirection is missing"
    machine.run(ask)
    online.wait_for(lambda: _packets(online, lost) == 1, "the question is counted")
    # As bbot-agent does it, in a table of iptables' own.
    online.run(
        f"iptables -t nat -A PREROUTING -i br1 -p udp -d {_AGENT_TFTP} --dport 69"
        " -j DNAT --to-destination 172.23.0.1:6969"
    )
    hear = (
        "$socket = IO::Socket::INET->new(Proto => 'udp', LocalPort => 6969); print scalar <$socket>"
    )
    online.run(
        ["systemd-run", "--expand-environment=no", "--unit=agent"]
        + ["--property=StandardOutput=truncate:/run/agent"]
        + ["perl", "-MIO::Socket::INET", "-e", f"$| = 1; {hear}"]
    )
    online.wait_for(
        lambda: ":6969" in online.run("ss --udp --listening --numeric"), "agent listens"
    )
    machine.run(ask)
    online.wait_for(lambda: online.read("/run/agent") == "hello\n", "the agent was asked")
    assert _packets(online, lost) == 1


def test_the_table_comes_back_when_somebody_removes_it(online: Host) -> None:
    online.run("nft add table inet others; nft add chain inet others empty")
    for damage in (
        "flush ruleset",
        "delete table inet buildos",
        "flush chain inet buildos forward",
    ):
        since = online.run(["date", "+%s.%N"]).strip()
        online.run(f"nft {damage}")
        online.wait_for(
            lambda: (
                online.run("nft --stateless list table inet buildos", check=False)
                == _GOLDEN.read_text()
            ),
            f"the table after {damage!r}",
        )
        told = online.wait_for(
            lambda: online.journal(f"MESSAGE_ID={_RESTORED}", f"--since=@{since}"), "told"
        )
        assert told[-1]["BUILDOS_COMMAND"] == "nft"
        assert told[-1]["PRIORITY"] == "4"
    # What is not ours is not touched.
    online.run("nft add table inet others; nft delete table inet buildos")
    online.wait_for(lambda: online.succeeds("nft list table inet buildos"), "the table")
    assert online.succeeds("nft list table inet others")


def test_a_killed_natd_cuts_nothing_and_changes_nothing(online: Host, lan: Lan) -> None:
    machine = Machine(online)
    machine.take_lease()
    handle, pid = _table_handle(online), online.main_pid("buildos-natd.service")
    online.run(f"kill -KILL {pid}")
    assert machine.succeeds(f"ping -c 1 -W 5 {lan.address}")
    online.wait_for(
        lambda: online.main_pid("buildos-natd.service") not in (0, pid), "natd is started again"
    )
    _wait_until_ready(online)
    assert _table_handle(online) == handle
    assert len(online.journal(f"MESSAGE_ID={_INSTALLED}")) == 1


def test_a_restart_cuts_nothing(online: Host, lan: Lan) -> None:
    machine = Machine(online)
    machine.take_lease()
    handle, dnsmasq = _table_handle(online), online.main_pid("buildos-dnsmasq.service")
    online.systemctl("restart", "buildos-natd.service")
    _wait_until_ready(online)
    ping = " ".join(machine.command(["ping", "-q", "-i", "0.02", "-c", "100", lan.address]))
    pings = online.run(f"{ping} & systemctl restart buildos-natd.service; wait")
    assert " 0% packet loss" in pings
    assert _table_handle(online) == handle
    assert online.main_pid("buildos-dnsmasq.service") == dnsmasq


def test_stopped_on_purpose_it_fails_closed(online: Host, lan: Lan) -> None:
    machine = Machine(online)
    machine.take_lease()
    assert machine.succeeds(f"ping -c 1 -W 5 {lan.address}")
    online.systemctl("stop", "buildos-natd.service")
    assert (_forwarding(online, "br0"), _forwarding(online, "br1")) == ("0", "0")
    assert not machine.succeeds(f"ping -c 1 -W 1 {lan.address}")
    assert online.succeeds("nft list table inet buildos")
    online.systemctl("start", "buildos-natd.service")
    _wait_until_ready(online)
    assert machine.succeeds(f"ping -c 1 -W 5 {lan.address}")


def test_another_configuration_reaches_dnsmasq(online: Host) -> None:
    in_force = "/run/buildos/dnsmasq/dnsmasq.conf"
    # Twice in a row: the second while the first is being acted on.
    for seconds in (600, 700):
        text = f"dhcp_lease_s = {seconds}"
        online.run(
            f"mkdir -p /etc/buildos/natd.conf.d; echo '{text}' >/etc/buildos/natd.conf.d/1.toml"
        )
        online.systemctl("reload", "buildos-natd.service")
    online.wait_for(lambda: ",700\n" in online.read(in_force), "dnsmasq has the last one")
    _wait_until_ready(online)


def test_without_an_uplink_machines_have_addresses_already(host: Host, lan: Lan) -> None:
    host.start([lan], plugged=False)
    host.wait_for(lambda: host.bus_property("nat1", "TableInstalled"), "the table")
    machine = Machine(host)
    host.wait_for(lambda: host.active("buildos-dnsmasq.service"), "dnsmasq runs")
    assert machine.take_lease().startswith("172.23.")


def test_a_netd_that_is_away_is_waited_for(host: Host, lan: Lan) -> None:
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
    _wait_until_ready(host)
    # Whatever netd said stays in force while it is away again.
    handle = _table_handle(host)
    host.systemctl("stop", "buildos-netd.service")
    assert host.bus_property("nat1", "Ready") is True
    assert _table_handle(host) == handle
