"""Tests the host name: from configuration, DHCP, the MAC address or the administrator."""

from __future__ import annotations

import pytest
from conftest import NewHost
from host import Host
from simlan.lan import Lan

# Matches the NICs of all hosts.
_ANY_NIC = "02:bd:00:00:*:*"


def _wait_for_name(host: Host, name: str, source: str) -> None:
    host.wait_for(
        lambda: host.bus_property("hostname1", "Hostname") == name, f"hostname1 says {name}"
    )
    assert host.bus_property("hostname1", "Source") == source
    assert host.run(["hostname"]).strip() == name


def test_hostname_without_dhcp_name_derives_from_mac(host: Host, lan: Lan) -> None:
    lan.serve_dhcp()
    host.start([lan])
    digits = host.nics[0].mac.replace(":", "")[-10:]
    _wait_for_name(host, f"build-{digits}", "mac")
    assert not host.succeeds("test -e /etc/hostname")


def test_hostname_of_lease_is_applied_and_kept_after_loss(host: Host, lan: Lan) -> None:
    lan.serve_dhcp(f"--dhcp-host={_ANY_NIC},rack7")
    host.start([lan])
    _wait_for_name(host, "rack7", "dhcp-hostname")
    pid = host.main_pid("buildos-hostnamed.service")
    host.systemctl("stop", "buildos-netd.service")
    host.systemctl("restart", "buildos-hostnamed.service")
    assert host.main_pid("buildos-hostnamed.service") != pid
    assert host.run(["hostname"]).strip() == "rack7"
    status = host.status_text("buildos-hostnamed.service")
    assert status == "waiting for buildos-netd, which is not running"


def test_hostname_on_kernel_command_line_overrides_lease(host: Host, lan: Lan) -> None:
    lan.serve_dhcp(f"--dhcp-host={_ANY_NIC},rack7")
    host.command_line("buildos.hostname=b1.example.com")
    host.start([lan])
    _wait_for_name(host, "b1.example.com", "configuration")


def _option(name: bytes) -> str:
    """Returns dnsmasq's argument that sends `name` unchanged as DHCP option 12."""
    return f"--dhcp-option-force=12,{name.decode('utf-8', 'surrogateescape')}"


@pytest.mark.parametrize(
    "name",
    [
        b"localhost",
        b"localhost.localdomain",
        b"12345",
        b"0x7f000001",
        b"192.0.2.7",
        b"$(reboot)",
        b"`reboot`",
        b"a_b",
        b"(none)",
        b"-a",
        b"a..b",
        b"b1\nMAINPID=1",
        b"b1\x1b[31m",
        b"b1\xff\xfe",
        b"b\xc3\xbccher",
        b"a" * 250,
        b".".join([b"a"] * 125) + b".1",
    ],
    ids=lambda name: repr(name[:24]),
)
def test_hostname_invalid_is_refused_and_shown_escaped(host: Host, lan: Lan, name: bytes) -> None:
    lan.serve_dhcp(_option(name))
    host.start([lan])
    digits = host.nics[0].mac.replace(":", "")[-10:]
    _wait_for_name(host, f"build-{digits}", "mac")
    (refused,) = host.bus_property("hostname1", "Refused")
    assert " from DHCP option 12: " in refused
    # Bus, STATUS= and journal have printable ASCII only.
    shown = [refused, host.status_text("buildos-hostnamed.service")]
    shown += [m["MESSAGE"] for m in host.journal("--unit=buildos-hostnamed.service")]
    for text in shown:
        assert isinstance(text, str) and text.isascii() and text.isprintable(), text


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (b"rack7.example.com.", "rack7.example.com"),
        (b"3com", "3com"),
        (b"rack7." + b".".join([b"example"] * 10), "rack7"),
        (b"a" * 63, "a" * 63),
    ],
    ids=["a dot at the end", "a digit", "too long for Linux", "the longest"],
)
def test_hostname_of_lease_is_normalized(host: Host, lan: Lan, given: bytes, name: str) -> None:
    lan.serve_dhcp(_option(given))
    host.start([lan])
    _wait_for_name(host, name, "dhcp-hostname")
    assert host.bus_property("hostname1", "Reason") == "given by DHCP option 12"


def test_hostname_follows_lease_and_stays_without_lease(host: Host, lan: Lan) -> None:
    lan.serve_dhcp(f"--dhcp-host={_ANY_NIC},rack7")
    host.start([lan])
    _wait_for_name(host, "rack7", "dhcp-hostname")
    lan.stop_dhcp()
    lan.serve_dhcp(f"--dhcp-host={_ANY_NIC},rack8")
    host.call("network1", "Renew")
    _wait_for_name(host, "rack8", "dhcp-hostname")
    host.nics[0].unplug()
    host.wait_for(lambda: not host.bus_property("network1", "Online"), "the host is offline")
    _wait_for_name(host, "rack8", "dhcp-hostname")
    host.nics[0].plug()
    host.wait_for(lambda: host.bus_property("network1", "Online"), "the host is online again")
    _wait_for_name(host, "rack8", "dhcp-hostname")
    # The name is not on disk.
    assert not host.succeeds("test -e /etc/hostname")
    assert not host.succeeds("grep -r rack8 /etc /var/lib/systemd")


def test_two_hosts_without_names_get_different_names(new_host: NewHost, lan: Lan) -> None:
    lan.serve_dhcp()
    names = set()
    for host in (new_host("one"), new_host("two")):
        host.start([lan])
        host.wait_for(lambda host=host: host.bus_property("hostname1", "Hostname"), "a name")
        names.add(host.run(["hostname"]).strip())
    assert len(names) == 2


def test_own_hostname_resolves_without_network(host: Host, lan: Lan) -> None:
    # A name server that never answers.
    lan.serve_dhcp(f"--dhcp-host={_ANY_NIC},rack7", "--dhcp-option=6,203.0.113.9")
    host.start([lan])
    _wait_for_name(host, "rack7", "dhcp-hostname")
    address = host.wait_online()
    assert "rack7" in host.run("getent hosts rack7", deadline=4)
    assert address in host.run("getent ahostsv4 rack7", deadline=4)
    assert host.run("hostname -f", deadline=4).strip() == "rack7"
    assert host.run("sudo -n true", deadline=4) == ""
    # sudo resolves the host name. Without an answer it waits ten seconds.
    assert "unable to resolve host" not in host.run("sudo -n true 2>&1", deadline=4)
    # A changed name resolves at once.
    host.run("hostnamectl --transient hostname other")
    assert address in host.run("getent ahostsv4 other", deadline=4)


def test_administrators_hostname_has_precedence(host: Host, lan: Lan) -> None:
    lan.serve_dhcp()
    host.file("/etc/hostname", "mine\n")
    host.start([lan])
    _wait_for_name(host, "mine", "static")
    # Without a static name the host has the name that hostnamed chose.
    host.run(["hostnamectl", "hostname", ""])
    digits = host.nics[0].mac.replace(":", "")[-10:]
    _wait_for_name(host, f"build-{digits}", "mac")
    # A static name that is set later has precedence, too.
    host.run(["hostnamectl", "hostname", "again"])
    _wait_for_name(host, "again", "static")
    host.run(["hostnamectl", "hostname", ""])
    _wait_for_name(host, f"build-{digits}", "mac")
    # A transient name of the administrator has precedence, too.
    host.run(["hostnamectl", "--transient", "hostname", "for-now"])
    _wait_for_name(host, "for-now", "static")
