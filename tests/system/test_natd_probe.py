"""Tests the probe, which measures the network of a machine on br1."""

from __future__ import annotations

import json

import pytest
from host import Host
from machine import Machine
from nat import dnsmasq_pid, usage, wait_for_status, wait_until_ready
from simlan.lan import Lan

_UNIT = "buildos-probe.service"
# Packets to this address get neither an answer nor an ICMP error.
_SILENT = "203.0.113.9"


def _probe(host: Host) -> dict[str, str]:
    names = ("Probe", "ProbeStep", "ProbeResult")
    return {name: host.bus_property("nat1", name) for name in names}


def _ports(host: Host) -> list[str]:
    """Returns the ports of br1."""
    return host.run("ls /sys/class/net/br1/brif").split()


def _wait_until_nothing_is_left(host: Host) -> None:
    """Waits until the link, namespace and process of the probe are gone."""
    host.wait_for(lambda: not _ports(host), "br1 has no ports")
    assert not host.succeeds("ip link show buildos-probe")
    assert host.run("ip netns") == ""
    assert not host.succeeds("pidof buildos-probe")


def test_ready_requires_passed_probe(online: Host) -> None:
    probe = _probe(online)
    assert probe["Probe"] == "passed"
    assert "passed in " in probe["ProbeResult"]
    assert "reaching dns:198.51.100.1" in probe["ProbeResult"]
    assert online.bus_property("nat1", "ProbeUSec") > 0
    _wait_until_nothing_is_left(online)
    # The probe has released its lease and does not count as a machine.
    assert online.read("/run/buildos/dnsmasq/leases") == ""
    assert usage(online, "Machines") == []


def test_probe_is_repeated(host: Host, lan: Lan) -> None:
    host.configure("natd", "probe_interval_s = 10")
    lan.serve_dhcp()
    host.start([lan])
    wait_until_ready(host)
    first = host.bus_property("nat1", "ProbeUSec")
    host.wait_for(lambda: host.bus_property("nat1", "ProbeUSec") > first, "the next probe")
    assert host.bus_property("nat1", "Ready") is True
    _wait_until_nothing_is_left(host)


def test_probe_without_dhcp_fails_at_lease(online: Host) -> None:
    pid = dnsmasq_pid(online)
    online.run(f"kill -STOP {pid}")
    online.run("nft add table ip awake")
    wait_for_status(online, "step lease of the probe: 172.23.0.1 does not answer DHCP")
    assert online.bus_property("nat1", "Ready") is False
    online.run(f"kill -CONT {pid}")
    wait_until_ready(online)


def test_probe_without_name_servers_fails_at_names(online: Host, lan: Lan) -> None:
    lan.stop_dhcp()
    online.run("nft add table ip awake")
    wait_for_status(online, "step names of the probe: 172.23.0.1 ")
    assert _probe(online)["ProbeStep"] == "names"
    lan.serve_dhcp()
    wait_until_ready(online)


@pytest.mark.parametrize(
    ("setting", "part"),
    [
        ('probe_name = "missing.lan.example"', "step names of the probe: 172.23.0.1 answers"),
        (f'probe_targets = ["echo:{_SILENT}"]', f"{_SILENT} does not answer echo requests"),
        (f'probe_targets = ["tcp:{_SILENT}:80"]', f"{_SILENT}:80 accepts no connection"),
        ('probe_targets = ["tcp:198.51.100.1:9"]', "198.51.100.1:9 accepts no connection"),
    ],
)
def test_probe_requires_configured_name_and_targets(
    host: Host, lan: Lan, setting: str, part: str
) -> None:
    host.configure("natd", setting)
    lan.serve_dhcp()
    host.start([lan])
    wait_for_status(host, part)
    assert host.bus_property("nat1", "State") == "degraded"
    host.run("rm /etc/buildos/natd.conf.d/50-test.toml")
    host.systemctl("reload", "buildos-natd.service")
    wait_until_ready(host)


def test_probe_passes_with_one_reachable_target(host: Host, lan: Lan) -> None:
    url = lan.serve_web("from the LAN\n")
    assert "/page" in url
    settings = 'probe_name = "gateway.lan.example"\n'
    settings += 'probe_targets = ["tcp:198.51.100.1:9", "tcp:198.51.100.1:80"]'
    host.configure("natd", settings)
    lan.serve_dhcp()
    host.start([lan])
    wait_until_ready(host)
    assert "reaching tcp:198.51.100.1:80" in _probe(host)["ProbeResult"]


def test_probe_disabled_is_not_run(host: Host, lan: Lan) -> None:
    host.configure("natd", "probe_interval_s = 0")
    lan.serve_dhcp()
    host.start([lan])
    wait_until_ready(host)
    assert _probe(host)["Probe"] == "off"
    assert not host.succeeds("test -e /run/buildos/natd/probe.json")


def test_probe_waits_for_uplink(host: Host, lan: Lan) -> None:
    host.start([lan], plugged=False)
    wait_for_status(host, "waiting for an uplink: ")
    assert _probe(host)["Probe"] == "pending"
    lan.serve_dhcp()
    host.nics[0].plug()
    wait_until_ready(host)


def test_probe_killed_leaves_nothing_behind(host: Host, lan: Lan) -> None:
    lan.serve_dhcp()
    host.configure("natd", f'probe_targets = ["tcp:{_SILENT}:80"]')
    host.start([lan])
    # The probe has its lease and waits for its target.
    for _ in range(3):
        host.wait_for(
            lambda: host.main_pid(_UNIT) and "buildos-probe" in _ports(host), "a probe runs"
        )
        host.systemctl("kill", "--signal=KILL", _UNIT)
        _wait_until_nothing_is_left(host)
    host.run("rm /etc/buildos/natd.conf.d/50-test.toml")
    host.systemctl("reload", "buildos-natd.service")
    wait_until_ready(host)
    # All probes had the same lease.
    assert host.journal("--unit=buildos-dnsmasq.service")
    assert len(host.read("/run/buildos/dnsmasq/leases").splitlines()) <= 1
    assert host.failed_units() == []


def test_natd_killed_resumes_probe_result(online: Host) -> None:
    before = online.bus_property("nat1", "ProbeUSec")
    pid = online.main_pid("buildos-natd.service")
    online.run(f"kill -KILL {pid}")
    online.wait_for(
        lambda: online.main_pid("buildos-natd.service") not in (0, pid), "natd is started again"
    )
    wait_until_ready(online)
    assert online.bus_property("nat1", "ProbeUSec") == before


def test_dnsmasq_restart_triggers_probe(online: Host) -> None:
    def request() -> int:
        return int(json.loads(online.read("/run/buildos/natd/probe.json"))["id"])

    before = request()
    online.systemctl("kill", "--signal=KILL", "buildos-dnsmasq")
    online.wait_for(lambda: request() != before, "natd requests a probe")
    wait_until_ready(online)


def test_probe_ignores_dhcp_server_of_machine(online: Host) -> None:
    rogue = Machine(online)
    rogue.run("ip address add 172.23.0.99/16 dev eth0")
    server = "dnsmasq --keep-in-foreground --conf-file=/dev/null --port=0 --user=root --pid-file="
    server += " --no-ping --leasefile-ro --interface=eth0 --dhcp-authoritative"
    server += " --dhcp-range=172.23.9.1,172.23.9.9 --dhcp-option=3,172.23.0.99"
    online.run(["systemd-run", "--unit=rogue", *rogue.command(server.split())])
    online.wait_for(lambda: rogue.succeeds("ss -lun | grep -q :67"), "the rogue server listens")
    before = online.bus_property("nat1", "ProbeUSec")
    online.systemctl("restart", "buildos-dnsmasq.service")
    online.wait_for(lambda: online.bus_property("nat1", "ProbeUSec") > before, "the next probe")
    wait_until_ready(online)
    assert "172.23.9." not in _probe(online)["ProbeResult"]
