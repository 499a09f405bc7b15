"""Tests the packages on a Debian host whose network another program configures. netd leaves
that network alone until the operator disables the program."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from buildroot import Root
from host import Host
from roots import ordinary_root
from simlan.lan import Lan

NETD = "buildos-netd.service"
OTHER_MANAGER = "4c0d1a7be52f4b6d9f3a86e1c7d05b28"
INTERFACES = """# Of the administrator
source /etc/network/interfaces.d/*

auto lo
iface lo inet loopback

auto eth0
iface eth0 inet static
    address {address}/24
"""
RESOLV_CONF = "nameserver 192.0.2.53\n"


@pytest.fixture(scope="session")
def ordinary(debs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Root:
    """A usual Debian with the packages installed, before the next boot."""
    changes = tmp_path_factory.mktemp("ordinary")
    root = ordinary_root()
    names = " ".join(f"/work/debs/{deb.name}" for deb in debs)
    root.run(
        ["sh", "-euc", f"dpkg --install {names}; rm -f /etc/hostname; : >/etc/machine-id"],
        binds={"/work/debs": debs[0].parent},
        changes=changes,
    )
    return root.layer(changes)


@pytest.fixture
def debian(ordinary: Root, lan: Lan) -> Iterator[Host]:
    """A host before its boot, without a network manager. Each test enables a manager."""
    lan.serve_dhcp()
    with Host(ordinary, "debian") as host:
        host.file("/etc/resolv.conf", RESOLV_CONF)
        host.file("/etc/network/interfaces", "auto lo\niface lo inet loopback\n")
        mask(host, "NetworkManager.service")
        yield host


def mask(host: Host, unit: str) -> None:
    host.file(f"/etc/systemd/system/{unit}.d/test.conf", "[Unit]\nConditionPathExists=/nowhere\n")


def by_ifupdown(host: Host, lan: Lan) -> str:
    host.file("/etc/network/interfaces", INTERFACES.format(address=f"{lan.prefix}.77"))
    return "eth0"


def by_networkd(host: Host, lan: Lan) -> str:
    host.file(
        "/etc/systemd/network/eth0.network",
        f"[Match]\nName=eth0\n[Network]\nAddress={lan.prefix}.77/24\n",
    )
    host.file(
        "/etc/systemd/system/multi-user.target.d/networkd.conf",
        "[Unit]\nWants=systemd-networkd.service\n",
    )
    return "systemd-networkd.service"


def by_network_manager(host: Host, lan: Lan) -> str:
    host.file("/etc/systemd/system/NetworkManager.service.d/test.conf", "")
    # NetworkManager takes a lease by default, but manages veth pairs only with this setting.
    host.file("/etc/NetworkManager/conf.d/veth.conf", "[device]\nmatch-device=*\nmanaged=1\n")
    return "NetworkManager.service"


@pytest.mark.parametrize("configure", [by_ifupdown, by_networkd, by_network_manager])
def test_other_network_manager_is_left_alone(
    debian: Host, lan: Lan, configure: Callable[[Host, Lan], str]
) -> None:
    manager = configure(debian, lan)
    debian.start([lan])
    debian.wait_for_boot()
    # STATUS= and journal name the other manager. systemd does not restart netd.
    unit = debian.unit(NETD, "ActiveState", "ExecMainStatus", "NRestarts", "StatusText")
    assert (unit["ActiveState"], unit["ExecMainStatus"], unit["NRestarts"]) == ("failed", "78", "0")
    assert unit["StatusText"].startswith("netd does not start: ") and manager in unit["StatusText"]
    (message,) = debian.journal(f"MESSAGE_ID={OTHER_MANAGER}")
    assert manager in message["MESSAGE"]
    assert not debian.succeeds("systemctl is-active network-online.target buildos-netd-wait-online")
    # The network is the other manager's.
    debian.wait_for(lambda: debian.addresses("eth0"), "eth0 has its address")
    names = {link["ifname"] for link in debian.links()}
    assert not {"br0", "br1"} & names
    assert debian.run("readlink /etc/resolv.conf /etc/network/interfaces || true") == ""
    assert debian.run("nft list ruleset") == ""
    assert debian.run("cat /proc/sys/net/ipv4/ip_forward") == "0\n"


def test_netd_takes_over_after_other_manager_is_disabled(debian: Host, lan: Lan) -> None:
    by_networkd(debian, lan)
    debian.start([lan])
    debian.wait_for_boot()
    # The manual has these commands for a change without a boot.
    debian.run(
        "systemctl disable --quiet --now systemd-networkd.socket systemd-networkd.service &&"
        " ip address flush dev eth0 && systemctl restart buildos.target buildos-netd.service"
    )
    debian.wait_online()
    assert debian.link("eth0")["master"] == "br0"


def test_administrators_files_are_kept_and_restored(debian: Host, lan: Lan) -> None:
    interfaces = "auto lo\niface lo inet loopback\n"
    debian.start([lan])
    debian.wait_online()
    debian.wait_for(lambda: debian.active("buildos.target"), "buildos.target is active")
    debian.wait_for(
        lambda: "netd" in debian.run("readlink /etc/network/interfaces || true"),
        "the link to netd's file",
    )
    assert f"nameserver {lan.address}" in debian.read("/etc/resolv.conf")
    assert debian.read("/etc/resolv.conf.before-buildos") == RESOLV_CONF
    assert debian.read("/etc/network/interfaces.before-buildos") == interfaces
    debian.run("dpkg --remove buildos")
    assert debian.read("/etc/resolv.conf") == RESOLV_CONF
    assert debian.read("/etc/network/interfaces") == interfaces
    assert debian.run("find /etc -name '*.before-buildos'") == ""
