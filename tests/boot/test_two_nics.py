"""A machine with two NICs, one of them on a segment without a DHCP server, boots by
PXELINUX: network, name, clock, NAT, agent and consoles."""

from __future__ import annotations

import json
import shlex
from ipaddress import IPv4Address, IPv4Interface
from typing import Any

import pytest
from booted_host import BOOT_SECONDS, Boot, BootedHost
from simlan.boot_lan import ADDRESS, DOMAIN, QUERY, WEB_URL
from simlan.qemu import nth_mac

NAME = "rack-7"

PRIVATE = IPv4Interface("172.23.0.1/16")

# A build machine on br1, as an agent makes it: it takes a lease, and fetches a page by
# name.
CONTAINER = f"""
cat >/tmp/lease <<'EOF'
#!/bin/sh
[ "$1" = bound ] || exit 0
ip address add "$ip/$mask" dev "$interface"
ip route add default via "$router"
rm -f /etc/resolv.conf
for server in $dns; do echo "nameserver $server"; done >/etc/resolv.conf
EOF
chmod +x /tmp/lease
ip link set host0 up
busybox udhcpc -i host0 -f -q -n -t 20 -s /tmp/lease >&2
ip -json -4 address show dev host0
busybox wget -T 60 -q -O - {WEB_URL}container
"""


@pytest.fixture(scope="module")
def host(boot: Boot) -> BootedHost:
    """The machine, after its agent's first task request."""
    host = boot("e1000@lan", "e1000@quiet", way="pxelinux", names={nth_mac(0): NAME})
    host.wait_for_poll()
    return host


def link(host: BootedHost, name: str) -> dict[str, Any]:
    """Returns an interface as `ip -json address` prints it."""
    found: list[dict[str, Any]] = json.loads(host.shell.output(f"ip -json address show {name}"))
    return found[0]


def address(host: BootedHost, name: str) -> IPv4Interface:
    """Returns the only IPv4 address of an interface."""
    (found,) = (a for a in link(host, name)["addr_info"] if a["family"] == "inet")
    return IPv4Interface(f"{found['local']}/{found['prefixlen']}")


def nic_name(host: BootedHost, index: int) -> str:
    """Returns the kernel's name of a NIC. br0 has the same MAC address, but no device."""
    script = "cd /sys/class/net && grep -l {} $(ls -d */device | sed s/device/address/)"
    return host.shell.output(script.format(host.nics[index].mac)).split("/")[0]


def test_query_string_of_controller_passes_pxelinux(host: BootedHost) -> None:
    assert host.lan.task_requests()[0]["path"] == f"/{QUERY}"


def test_lease_is_on_br0(host: BootedHost) -> None:
    assert str(address(host, "br0").ip) == host.lan.leases()[host.nics[0].mac]
    assert address(host, "br0").network == ADDRESS.network


def test_br0_has_mac_address_of_uplink(host: BootedHost) -> None:
    uplink = link(host, nic_name(host, 0))
    assert link(host, "br0")["address"] == host.nics[0].mac
    assert uplink["master"] == "br0"
    assert not [a for a in uplink["addr_info"] if a["family"] == "inet"]


def test_nic_without_dhcp_server_is_not_port_of_br0(host: BootedHost) -> None:
    assert "master" not in link(host, nic_name(host, 1))


def test_default_route_is_through_br0(host: BootedHost) -> None:
    (route,) = json.loads(host.shell.output("ip -json -4 route show default"))
    assert (route["gateway"], route["dev"]) == (str(ADDRESS.ip), "br0")


def test_br1_is_up_with_private_address(host: BootedHost) -> None:
    assert "UP" in link(host, "br1")["flags"]
    assert address(host, "br1") == PRIVATE


def test_hostname_comes_from_lease(host: BootedHost) -> None:
    assert host.shell.output("hostname") == NAME


def test_resolv_conf_has_servers_and_domain_of_lease(host: BootedHost) -> None:
    lines = host.shell.output("cat /etc/resolv.conf").splitlines()
    assert f"nameserver {ADDRESS.ip}" in lines
    assert f"search {DOMAIN}" in lines
    assert host.shell.output("getent ahostsv4 web").split()[0] == str(ADDRESS.ip)


def test_clock_is_set_by_servers_of_lease(host: BootedHost) -> None:
    host.guest.wait_for(
        lambda: host.shell.run("systemctl is-active time-sync.target").output.strip() == "active",
        "the clock",
        BOOT_SECONDS,
    )
    show = "timedatectl show-timesync --value --property=SystemNTPServers --property=ServerAddress"
    assert set(host.shell.output(show).split()) == {str(ADDRESS.ip)}


def test_interfaces_file_shows_the_bridges(host: BootedHost) -> None:
    text = host.shell.output("cat /etc/network/interfaces")
    assert str(address(host, "br0").ip) in text
    assert str(PRIVATE.ip) in text


def test_container_on_br1_reaches_the_lan_through_nat(host: BootedHost) -> None:
    options = "--quiet --machine=guest --directory=/ --volatile=yes"
    network = "--network-bridge=br1 --resolv-conf=off --pipe"
    command = f"systemd-nspawn {options} {network} bash -ec {shlex.quote(CONTAINER)}"
    output = host.shell.output(f"{command} 2>/tmp/nspawn || {{ cat /tmp/nspawn; exit 1; }}", 600)
    links, seen_as = output.splitlines()
    (leased,) = json.loads(links)[0]["addr_info"]
    assert IPv4Address(leased["local"]) in PRIVATE.network
    assert seen_as == str(address(host, "br0").ip)
    (visit,) = (v for v in host.lan.visits() if v["path"] == "/container")
    assert visit["client"] == seen_as


def test_agent_polls_with_address_and_name_of_the_host(host: BootedHost) -> None:
    assert host.shell.output("systemctl is-active buildos-bbot@default.service") == "active"
    assert {poll["client"] for poll in host.lan.task_requests()} == {str(address(host, "br0").ip)}
    assert {poll["status"] for poll in host.lan.task_requests()} == {200}
    assert {poll["agent"] for poll in host.lan.task_requests()} == {NAME}


def test_no_unit_failed(host: BootedHost) -> None:
    host.wait_for_systemd()
    assert host.shell.output("systemctl --failed --quiet --no-legend --plain") == ""


def journal(host: BootedHost, priority: str) -> list[dict[str, Any]]:
    """Returns the entries of this boot with at least that priority."""
    command = f"journalctl --boot --priority={priority} --output=json --no-pager"
    return [json.loads(line) for line in host.shell.output(command).splitlines()]


def test_journal_has_no_error_of_buildos(host: BootedHost) -> None:
    sources = ("_SYSTEMD_UNIT", "UNIT", "SYSLOG_IDENTIFIER")
    errors = [
        entry["MESSAGE"]
        for entry in journal(host, "err")
        if any(str(entry.get(source, "")).startswith("buildos") for source in sources)
    ]
    assert errors == []


def test_systemd_parses_units_of_buildos_without_warnings(host: BootedHost) -> None:
    warnings = [
        entry["MESSAGE"]
        for entry in journal(host, "warning")
        # Early messages come through the kernel's ring buffer, without fields.
        if entry.get("SYSLOG_IDENTIFIER") == "systemd" and "/buildos" in entry["MESSAGE"]
    ]
    assert warnings == []


def test_serial_console_without_shell_shows_the_status(host: BootedHost) -> None:
    """A changed status is written again."""

    def last() -> str:
        return host.guest.console().rpartition("Build host ")[2]

    def shown(*wanted: str) -> None:
        host.guest.wait_for(
            lambda: all(text in last() for text in wanted), f"{wanted} on the console", BOOT_SECONDS
        )

    release = dict(
        line.split("=", 1) for line in host.shell.output("cat /etc/os-release").splitlines()
    )
    assert release["IMAGE_ID"] == "buildos"
    version = release["IMAGE_VERSION"].strip('"')
    own = str(address(host, "br0").ip)
    shown(f"{NAME}, buildos", "network  online", f"ssh root@{own}", "agent    bbot@default running")
    assert f"{version}, build {release['BUILD_ID']}" in host.guest.console()
    host.guest.set_cable(0, plugged=False)
    shown("network  carrier-lost")
    host.guest.set_cable(0, plugged=True)
    shown("network  online")
