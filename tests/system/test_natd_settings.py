"""Tests settings that open and close access for machines, and bridged frames."""

from __future__ import annotations

import pytest
from conftest import NewHost, NewLan
from host import Host
from machine import Machine
from nat import AGENT_TFTP, packets, wait_until_ready
from simlan.lan import Lan


def _start(host: Host, lan: Lan, settings: str) -> None:
    host.configure("natd", settings)
    lan.serve_dhcp()
    host.start([lan])
    wait_until_ready(host)


def _machines(host: Host, count: int) -> list[tuple[Machine, str]]:
    """Creates machines; returns each with its address."""
    machines = [Machine(host) for _ in range(count)]
    return [(machine, machine.take_lease()) for machine in machines]


def _frames_pass_iptables(host: Host, bridge: str) -> bool:
    data = host.link(bridge)["linkinfo"]["info_data"]
    return bool(data["nf_call_iptables"])


def _bridge_sysctl(host: Host) -> str:
    return host.run("sysctl -n net.bridge.bridge-nf-call-iptables").strip()


def test_open_port_is_reachable(host: Host, lan: Lan) -> None:
    _start(host, lan, 'open_ports = ["tcp:8000"]')
    host.run("systemd-run --unit=open busybox httpd -f -p 8000 -h /usr/lib")
    host.run("systemd-run --unit=secret busybox httpd -f -p 8001 -h /usr/lib")
    ((machine, _),) = _machines(host, 1)
    fetch = "curl --silent --max-time 2 http://172.23.0.1:{}/os-release"
    host.wait_for(lambda: machine.succeeds(fetch.format(8000)), "the open port answers")
    assert host.succeeds(fetch.format(8001))
    assert not machine.succeeds(fetch.format(8001))


def test_isolate_machines_separates_machines(host: Host, lan: Lan) -> None:
    _start(host, lan, "isolate_machines = false")
    (one, _), (_, two) = _machines(host, 2)
    ping = f"ping -c 1 -W 2 {two}"
    assert one.succeeds(ping)
    host.run("echo 'isolate_machines = true' >/etc/buildos/natd.conf.d/60-test.toml")
    host.systemctl("reload", "buildos-natd.service")
    host.wait_for(lambda: not one.succeeds(ping), "the machines are separated")
    # A route by way of the host does not help.
    one.run(f"ip route add {two}/32 via 172.23.0.1")
    assert not one.succeeds(ping)
    # Old and new machines still reach the LAN through the host.
    assert one.succeeds(f"ping -c 1 -W 2 {lan.address}")
    (three, address) = _machines(host, 1)[0]
    assert three.succeeds(f"ping -c 1 -W 2 {lan.address}")
    assert not one.succeeds(f"ping -c 1 -W 1 {address}")
    wait_until_ready(host)
    host.run("rm /etc/buildos/natd.conf.d/60-test.toml")
    host.systemctl("reload", "buildos-natd.service")
    one.run(f"ip route del {two}/32")
    host.wait_for(lambda: one.succeeds(ping), "the machines reach each other again")


def test_block_private_closes_private_networks_of_uplink(
    new_lan: NewLan, new_host: NewHost
) -> None:
    lan, host = new_lan("10.77.0"), new_host()
    for address in ("10.77.0.2", "198.18.0.9", "11.78.0.9"):
        lan.run(["ip", "address", "add", f"{address}/32", "dev", "lan0"])
    _start(host, lan, 'block_private = true\nallow_private = ["10.77.0.2/32"]')
    ((machine, _),) = _machines(host, 1)
    before = packets(host, "a private network of the uplink")
    for closed in ("10.77.0.1", "198.18.0.9"):
        assert not machine.succeeds(f"ping -c 1 -W 1 {closed}"), closed
    assert packets(host, "a private network of the uplink") >= before + 2
    for reached in ("10.77.0.2", "11.78.0.9"):
        assert machine.succeeds(f"ping -c 1 -W 5 {reached}"), reached
    # Names resolve, because the host queries the name server.
    assert machine.succeeds("getent ahostsv4 gateway.lan.example")


def test_block_private_closes_network_of_uplink_with_public_addresses(
    new_lan: NewLan, new_host: NewHost
) -> None:
    lan, host = new_lan("11.77.0"), new_host()
    lan.run(["ip", "address", "add", "11.78.0.9/32", "dev", "lan0"])
    _start(host, lan, "block_private = true")
    ((machine, _),) = _machines(host, 1)
    assert not machine.succeeds("ping -c 1 -W 1 11.77.0.1")
    assert machine.succeeds("ping -c 1 -W 5 11.78.0.9")
    assert machine.succeeds("getent ahostsv4 gateway.lan.example")


@pytest.mark.parametrize("setting", ["auto", "off"], ids=["no rule on ports", "off"])
def test_bridged_frames_bypass_iptables(host: Host, lan: Lan, setting: str) -> None:
    _start(host, lan, f'bridge_netfilter = "{setting}"')
    (one, _), (_, two) = _machines(host, 2)
    if setting == "off":
        host.run("iptables -t nat -A PREROUTING -m physdev --physdev-in tap9 -j ACCEPT")
    # A firewall that is meant for the host. The sysctl is 1 after the module is loaded.
    host.run("sysctl -w net.bridge.bridge-nf-call-iptables=1")
    host.run("iptables -A FORWARD -i br1 -o br1 -j DROP")
    host.wait_for(lambda: _bridge_sysctl(host) == "0", "the sysctl for all bridges is off")
    assert one.succeeds(f"ping -c 1 -W 2 {two}")
    assert not _frames_pass_iptables(host, "br0")
    assert not _frames_pass_iptables(host, "br1")


def test_redirection_by_bridge_port_reaches_agent(host: Host, lan: Lan) -> None:
    _start(host, lan, "")
    machine = Machine(host)
    machine.take_lease()
    other = Machine(host)
    other.take_lease()
    # bbot-agent adds such a rule for the tap of a machine.
    host.run(
        f"iptables -t nat -A PREROUTING -m physdev --physdev-in {machine.name} -p udp"
        f" -d {AGENT_TFTP} --dport 69 -j REDIRECT --to-ports 6969"
    )
    host.wait_for(lambda: _frames_pass_iptables(host, "br1"), "br1's frames pass iptables")
    assert not _frames_pass_iptables(host, "br0")
    assert _bridge_sysctl(host) == "0"
    assert host.bus_property("nat1", "BridgeNetfilter") is True
    receive = (
        "$s = IO::Socket::INET->new(Proto => 'udp', LocalPort => 6969);"
        " while ($s->recv($request, 9)) { print $request; $s->send('received') }"
    )
    host.run(
        ["systemd-run", "--expand-environment=no", "--unit=agent"]
        + ["--property=StandardOutput=truncate:/run/agent"]
        + ["perl", "-MIO::Socket::INET", "-e", f"$| = 1; {receive}"]
    )
    host.wait_for(
        lambda: ":6969" in host.run("ss --udp --listening --numeric"), "the agent listens"
    )
    ask = (
        f"$s = IO::Socket::INET->new(Proto => 'udp', PeerAddr => '{AGENT_TFTP}', PeerPort => 69);"
        " $s->send(qq(hello\\n)); alarm 5; $s->recv($answer, 9); print $answer"
    )
    assert machine.run(["perl", "-MIO::Socket::INET", "-e", ask]) == "received"
    assert host.read("/run/agent") == "hello\n"
    # The rule matches one machine. The host drops packets of others.
    dropped = "for an agent on this host; its redirection is missing"
    before = packets(host, dropped)
    assert not other.succeeds(["perl", "-MIO::Socket::INET", "-e", ask])
    assert packets(host, dropped) > before
    # Other traffic of the machine is unaffected.
    assert machine.succeeds(f"ping -c 1 -W 5 {lan.address}")
    wait_until_ready(host)
    host.run("iptables -t nat -F PREROUTING")
    host.wait_for(lambda: not _frames_pass_iptables(host, "br1"), "br1's frames bypass iptables")
