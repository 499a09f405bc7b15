"""What natd does for the machines on br1."""

from __future__ import annotations

import json

from host import Host
from lan import Lan

NATD = "buildos-natd.service"
DNSMASQ = "buildos-dnsmasq.service"


def table(host: Host) -> str:
    return host.run("nft list table inet buildos", check=False)


def test_killed_servers_come_back_and_machines_notice_nothing(host: Host, lan: Lan) -> None:
    lan.serve_dhcp()
    page = lan.serve_web("page\n")
    host.start([lan])
    host.wait_online()
    host.wait_for(lambda: host.active(DNSMASQ) and table(host), "NAT and DHCP on br1")
    machine = host.machine()
    address = machine.take_lease()
    for unit in (NATD, DNSMASQ):
        before = host.main_pid(unit)
        host.systemctl("kill", "--signal=KILL", unit)
        assert machine.run(f"curl --silent --max-time 20 {page}") == "page\n"
        host.wait_for(
            lambda unit=unit, before=before: host.active(unit)  # type: ignore[misc]
            and host.main_pid(unit) not in (0, before),
            f"{unit} is back",
        )
    assert machine.take_lease() == address


def test_a_table_that_somebody_removes_is_put_back(host: Host, lan: Lan) -> None:
    lan.serve_dhcp()
    host.start([lan])
    host.wait_online()
    host.wait_for(lambda: "masquerade" in table(host), "the table")
    host.run("nft add table inet foreign; nft delete table inet buildos")
    host.wait_for(lambda: "masquerade" in table(host), "the table again")
    host.run("nft list table inet foreign")


def test_forwarding_is_on_for_the_bridges_only(host: Host, lan: Lan) -> None:
    lan.serve_dhcp()
    host.start([lan])
    host.wait_online()
    host.wait_for(lambda: _forwarding(host, "br0") and _forwarding(host, "br1"), "forwarding")
    assert not _forwarding(host, "eth0")
    host.systemctl("stop", NATD)
    host.wait_for(
        lambda: not _forwarding(host, "br0") or not _forwarding(host, "br1"),
        "stopped on purpose, natd lets nothing through",
    )


def test_machines_have_dhcp_while_the_lan_has_none(host: Host, lan: Lan) -> None:
    host.start([lan])
    host.wait_for(lambda: host.active(DNSMASQ), "DHCP on br1")
    assert host.machine().take_lease().endswith("/16")
    links = json.loads(host.run("ip -json address show br0", check=False) or "[]")
    assert not [a for link in links for a in link["addr_info"] if a["family"] == "inet"]


def _forwarding(host: Host, interface: str) -> bool:
    return host.read(f"/proc/sys/net/ipv4/conf/{interface}/forwarding").strip() == "1"
