"""Tests a host on networks that have router advertisements only."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from pathlib import Path

import pytest
from buildroot import Root
from conftest import NewLan
from host import Host
from roots import ssh_root
from simlan.lan import Lan
from simlan.process import run

NETD = "buildos-netd.service"
_PREFIX = "2001:db8:7::"
# Two NICs are tried one after the other, for 15 s each.
_PATIENCE = 120


def _global(host: Host) -> list[str]:
    """Returns the global IPv6 addresses of br0, without their prefixes."""
    addresses = host.bus_property("network1", "IPv6Addresses")
    return [a.split("/")[0] for a in addresses if not a.startswith("fe80:")]


@pytest.fixture
def host(root: Root, new_lan: NewLan) -> Iterator[Host]:
    """A host with an SSH server. It ends before its LANs."""
    host = Host(ssh_root(root))
    yield host
    host.stop()


def _login(lan: Lan, address: str, directory: Path) -> str:
    """Logs in from the LAN with a key, and returns the name of the host."""
    options = ["BatchMode=yes", "ConnectTimeout=10", "StrictHostKeyChecking=yes"]
    options += [f"UserKnownHostsFile={directory / 'known_hosts'}"]
    words = [word for option in options for word in ("-o", option)]
    key = ["-F", "none", "-i", str(directory / "key")]
    return lan.run(["ssh", "-6", *words, *key, f"root@{address}", "hostname"]).strip()


def test_operator_logs_in_by_ipv6_on_host_without_dhcp(
    host: Host, lan: Lan, new_lan: NewLan, tmp_path: Path
) -> None:
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "key")])
    host.file("/root/.ssh/authorized_keys", (tmp_path / "key.pub").read_text())
    silent = new_lan("203.0.113", "silent")
    lan.advertise_ipv6(_PREFIX)
    host.start([silent, lan])
    host.wait_for(lambda: host.active(NETD), "netd is up")
    host.wait_for(lambda: _global(host) != [], "br0 has a global address", _PATIENCE)
    (address,) = _global(host)
    assert ipaddress.ip_address(address) in ipaddress.ip_network(f"{_PREFIX}/64")
    assert host.bus_property("network1", "Uplink") == "eth1"
    assert host.bus_property("network1", "State") == "acquiring"
    assert not host.bus_property("network1", "Online")
    host.wait_for(
        lambda: f"br0 has {address} by eth1, for IPv6 only" in host.status_text(NETD), "STATUS="
    )
    host.run("ssh-keygen -q -A")
    host.systemctl("start", "ssh.service")
    public = host.read("/etc/ssh/ssh_host_ed25519_key.pub")
    (tmp_path / "known_hosts").write_text(f"{address} {public}")
    assert _login(lan, address, tmp_path) == host.run("hostname").strip()
    assert address in host.run("buildosctl status", check=False)
    assert f"reached by IPv6: {address}" in host.run("buildosctl why", check=False)
    # The search for a lease goes on, and its end does not change the address.
    lan.serve_dhcp()
    host.wait_online()
    assert _global(host) == [address]
    assert _login(lan, address, tmp_path) == host.run("hostname").strip()
