"""Tests a build host on an ordinary LAN, from inside the host and from the LAN."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from buildroot import Root
from host import Host, manager
from machine import Machine
from simlan.errors import CommandFailed
from simlan.lan import Lan

PRIVATE = ipaddress.ip_network("172.23.0.0/16")
NAME = "rack-7"


@dataclass
class Site:
    host: Host
    lan: Lan
    page: str


@pytest.fixture(scope="module")
def site(root: Root) -> Iterator[Site]:
    """A host with one NIC and both agents, after the first poll."""
    with Lan() as lan, Host(root) as host:
        controller = lan.start_controller()
        page = lan.serve_web("from the LAN\n")
        host.configure(
            "agentd",
            f'[bbot.default]\ncontrollers = ["{controller}"]\nkvm = "waived"\n'
            'environment = ["BBOT_DOUBLE_INTERVAL_MS=200"]\n'
            '[bslave.default]\narguments = ["--bridge", "br0"]\nkvm = "waived"\n',
        )
        mac = "02:bd:00:00:00:77"
        lan.serve_dhcp(f"--dhcp-host={mac},{NAME}", "--dhcp-option=option:ntp-server,0.0.0.0")
        host.start([lan], macs=[mac])
        host.wait_for(lan.task_requests, "the agent's first poll")
        yield Site(host, lan, page)


def test_host_boots_without_failed_unit(site: Site) -> None:
    assert site.host.wait_for_boot() == "running"
    assert site.host.failed_units() == []


def test_lease_is_on_br0(site: Site) -> None:
    nic = site.host.nics[0]
    leased = site.lan.leases()[nic.mac]
    assert site.host.addresses("br0") == [f"{leased}/24"]
    assert site.host.addresses("eth0") == []
    assert site.host.run("ip -4 route show default").startswith(
        f"default via {site.lan.address} dev br0"
    )


def test_br0_has_hardware_address_of_uplink(site: Site) -> None:
    br0, eth0 = site.host.link("br0"), site.host.link("eth0")
    assert br0["address"] == eth0["address"] == site.host.nics[0].mac
    assert eth0["master"] == "br0"
    settings = br0["linkinfo"]["info_data"]
    assert (settings["stp_state"], settings["forward_delay"]) == (0, 0)


def test_br1_has_private_address(site: Site) -> None:
    assert site.host.addresses("br1") == ["172.23.0.1/16"]
    assert "UP" in site.host.link("br1")["flags"]


def test_names_resolve_with_name_servers_of_lease(site: Site) -> None:
    resolv_conf = site.host.read("/etc/resolv.conf").splitlines()
    assert f"nameserver {site.lan.address}" in resolv_conf
    assert "search lan.example" in resolv_conf
    assert site.host.run("getent ahostsv4 gateway").split()[0] == site.lan.address


def test_interfaces_file_shows_active_configuration(site: Site) -> None:
    text = site.host.read("/etc/network/interfaces")
    assert site.host.addresses("br0")[0].split("/")[0] in text
    assert "172.23.0.1" in text
    assert "bridge_ports eth0" in text


def test_hostname_comes_from_lease(site: Site) -> None:
    assert site.host.run(["hostname"]).strip() == NAME
    assert site.host.bus_property("hostname1", "Hostname") == NAME


def test_machine_on_br1_takes_lease_and_fetches_page(site: Site) -> None:
    machine = Machine(site.host)
    assert ipaddress.ip_address(machine.take_lease()) in PRIVATE
    assert machine.run("getent ahostsv4 gateway.lan.example").split()[0] == site.lan.address
    assert machine.run(f"curl --silent --max-time 20 {site.page}") == "from the LAN\n"
    assert site.lan.web_clients()[-1] == site.host.addresses("br0")[0].split("/")[0]


def test_agent_polls_controller(site: Site) -> None:
    assert site.host.active("buildos-bbot@default.service")
    requests = site.lan.task_requests()
    br0 = site.host.addresses("br0")[0].split("/")[0]
    assert {request["client"] for request in requests} == {br0}
    assert {request["status"] for request in requests} == {200}
    assert {request["agent"] for request in requests} == {NAME}
    assert {str(request["toolchain"]).split()[0] for request in requests} == {"default"}


def test_slave_runs_as_configured(site: Site) -> None:
    assert site.host.active("buildos-bslave@default.service")
    messages = [
        str(entry["MESSAGE"])
        for entry in site.host.journal("--unit=buildos-bslave@default.service")
    ]
    assert 'started with 2 argument(s): ["--bridge", "br0"]' in messages


def test_agents_are_in_agents_slice(site: Site) -> None:
    for unit in ("buildos-bbot@default.service", "buildos-bslave@default.service"):
        assert site.host.unit(unit, "Slice") == {"Slice": "buildos-agents.slice"}


def test_daemons_run_and_have_status(site: Site) -> None:
    for daemon in ("netd", "hostnamed", "natd", "agentd"):
        unit = f"buildos-{daemon}.service"
        assert site.host.active(unit)
        assert site.host.status_text(unit), unit
    leased = site.lan.leases()[site.host.nics[0].mac]
    assert leased in site.host.status_text("buildos-netd.service")


def test_bus_is_readable_by_all_and_writable_by_root(site: Site) -> None:
    # words: allow-next, the name of Debian's unprivileged user
    unprivileged = ["setpriv", "--reuid=nobody", "--regid=nogroup", "--clear-groups", "busctl"]
    read = [*unprivileged, "--json=short", "get-property", *manager("network1"), "Online"]
    assert '"data":true' in site.host.run(read)
    with pytest.raises(CommandFailed, match="(?i)denied"):
        site.host.run([*unprivileged, "call", *manager("network1"), "Renew"])
    site.host.call("network1", "Renew")


def test_buildosctl_shows_host(site: Site) -> None:
    status = site.host.run(["buildosctl", "status"])
    assert NAME in status
    assert site.host.addresses("br0")[0].split("/")[0] in status


def test_journal_has_no_error_of_buildos(site: Site) -> None:
    sources = ("_SYSTEMD_UNIT", "UNIT", "SYSLOG_IDENTIFIER")
    errors = [
        entry["MESSAGE"]
        for entry in site.host.journal("--priority=err")
        if any(str(entry.get(source, "")).startswith("buildos") for source in sources)
    ]
    assert errors == []


def test_journal_has_no_warning_of_daemons(site: Site) -> None:
    warnings = [
        entry["MESSAGE"]
        for entry in site.host.journal("--priority=warning")
        if str(entry.get("SYSLOG_IDENTIFIER")).startswith("buildos-")
    ]
    assert warnings == []
