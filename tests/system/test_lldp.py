"""Tests LLDP: which switch and port each NIC is connected to."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import lldp
from host import Host
from machine import HOSTILE_MACHINE
from simlan.lan import Lan, Nic
from simlan.process import end, start

NETD = "buildos-netd.service"
_GROUP = "01:80:c2:00:00:0e"


def _say(nic: Nic, *arguments: str, **options: Any) -> None:
    """Sends a frame of a switch to a NIC."""
    frame = lldp.frame(*arguments, **options).hex()
    nic.lan.run([sys.executable, str(Path(lldp.__file__)), nic.cable, frame])


def _link(host: Host, name: str = "eth0") -> dict[str, Any]:
    links = json.loads(host.run("buildosctl links --json"))["links"]
    return next(link for link in links if link["name"] == name)


def _waits_for_system(host: Host, system: str) -> None:
    host.wait_for(lambda: _link(host)["neighbour_system"] == system, f"the switch {system!r}")


def _connect(host: Host, nic: Nic, system: str, port: str, **options: Any) -> None:
    """Sends frames of a switch, as it would again and again, until the host shows it."""

    def is_shown() -> bool:
        _say(nic, system, port, **options)
        return bool(_link(host)["neighbour_system"] == system)

    host.wait_for(is_shown, f"the switch {system!r}")


def test_switch_of_uplink_is_shown(host: Host, lan: Lan) -> None:
    lan.serve_dhcp()
    host.start([lan])
    (nic,) = host.nics
    host.wait_online()
    # The NIC is a port of br0, and br0 does not take the frame.
    vlans = {"untagged": 42, "tagged": [20, 10, 42]}
    _connect(host, nic, "sw1.example.org", "Gi1/0/12", ttl=65535, **vlans)
    link = _link(host)
    assert link["neighbour_port"] == "Gi1/0/12"
    assert link["neighbour_untagged_vlan"] == 42
    assert link["neighbour_tagged_vlans"] == [10, 20]
    assert "sw1.example.org port Gi1/0/12" in host.run("buildosctl links")
    assert host.bus_property("network1", "UplinkNeighbour") == "sw1.example.org port Gi1/0/12"
    expected = (
        'buildos_link_neighbour_info{link="eth0",system="sw1.example.org",port="Gi1/0/12",'
        'vlan="42"} 1'
    )
    assert expected in host.run("buildosctl metrics")
    shown = "cable    eth0 to sw1.example.org port Gi1/0/12"
    issue = "/run/issue.d/50-buildos.issue"
    host.wait_for(lambda: shown in host.read(issue), "the console shows the switch")
    # Another device on the cable does not take the place of the switch.
    _say(nic, "other", "1")

    def has_new_vlan() -> bool:
        _say(nic, "sw1.example.org", "Gi1/0/12", ttl=65535, untagged=43)
        return bool(_link(host)["neighbour_untagged_vlan"] == 43)

    host.wait_for(has_new_vlan, "the new VLAN")
    assert _link(host)["neighbour_system"] == "sw1.example.org"
    nic.unplug()
    _waits_for_system(host, "")


def test_why_names_vlans_of_port_without_dhcp_server(host: Host, lan: Lan) -> None:
    host.start([lan])
    (nic,) = host.nics
    host.wait_for_boot()
    _connect(host, nic, "sw1", "Gi1/0/12", ttl=65535, tagged=[42])
    answer = host.run("buildosctl why", check=False)
    expected = "eth0 is connected to sw1 port Gi1/0/12, which has VLAN 42 with a tag"
    assert expected in " ".join(answer.split()), answer


def test_neighbour_disappears_after_its_time_to_live(host: Host, lan: Lan) -> None:
    host.start([lan])
    (nic,) = host.nics
    host.wait_for_boot()
    _connect(host, nic, "sw1", "1", ttl=20)
    _waits_for_system(host, "")


def test_flood_of_switches_costs_little_and_changes_nothing(host: Host, lan: Lan) -> None:
    lan.serve_dhcp()
    host.start([lan])
    (nic,) = host.nics
    host.wait_online()
    host.wait_for_boot()
    # Others on the LAN cannot pretend to be the switch: switches forward these frames.
    mac = host.link("eth0")["address"]
    for to in (mac, "ff:ff:ff:ff:ff:ff", "01:80:c2:00:00:03"):
        attack = ["lldp", "--to", to, "--interface", nic.cable, "--seconds", "0.2"]
        lan.run([*HOSTILE_MACHINE, *attack])
    _connect(host, nic, "sw1", "1", ttl=65535)

    def calls() -> int:
        """Times that netd waited: each frame that it received would add one."""
        pid = host.outside_pid(NETD)
        status = Path(f"/proc/{pid}/status").read_text()
        (count,) = re.findall(r"^voluntary_ctxt_switches:\s+(\d+)", status, re.MULTILINE)
        return int(count)

    before = calls()
    attack = ["lldp", "--alternate", "--interface", nic.cable, "--rate", "1000", "--seconds", "5"]
    flood = start(lan.command([*HOSTILE_MACHINE, *attack]))
    try:
        assert flood.wait(60) == 0
    finally:
        end(flood)
    assert calls() - before < 500
    assert _link(host)["neighbour_system"] == "sw1"


def test_lldp_can_be_switched_off(host: Host, lan: Lan) -> None:
    lan.serve_dhcp()
    host.start([lan])
    (nic,) = host.nics
    host.wait_online()
    host.wait_for_boot()
    _connect(host, nic, "sw1", "1", ttl=65535)
    assert _GROUP in host.run("ip maddress show dev eth0")
    host.write("/etc/buildos/netd.conf.d/50-test.toml", "lldp = false\n")
    host.systemctl("reload", NETD)
    _waits_for_system(host, "")
    host.wait_for(
        lambda: _GROUP not in host.run("ip maddress show dev eth0"), "the group is left"
    )
    # The mode of the NIC is as without LLDP, and so is the state.
    assert host.state()["state"] == "online"
