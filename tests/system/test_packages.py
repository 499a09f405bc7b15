"""What installing, upgrading and removing the packages does to a running system."""

from __future__ import annotations

from pathlib import Path

import pytest
from buildroot import TOP
from host import Host
from host_root import base_root
from lan import Lan

NETD = "buildos-netd.service"
SLAVE = "buildos-bslave@default.service"
DEBS = "/var/debs"


def install(host: Host, debs: list[Path]) -> None:
    for deb in debs:
        host.copy(deb, DEBS)
    host.run(f"dpkg --install {DEBS}/*.deb")


def test_installed_on_a_running_system_they_wait_for_the_next_boot(
    debs: list[Path], lan: Lan
) -> None:
    with Host(base_root(), "debian") as host:
        host.start([lan])
        assert host.wait_for_boot() == "running"
        install(host, debs)
        assert host.run("systemctl list-units --plain --no-legend 'buildos*'") == ""
        assert not host.succeeds("ip link show br0")
        assert not host.succeeds("readlink /etc/resolv.conf | grep buildos")
        for unit in ("buildos.target", NETD, "buildos-agentd.service"):
            assert host.systemctl("is-enabled", unit) == "enabled\n"

        host.run("dpkg --purge $(dpkg-query --show --showformat='${Package} ' 'buildos*')")
        left = host.run("find /etc /usr /var/lib -name '*buildos*' ! -path '/etc/*-test*'")
        # The configuration of the test itself.
        assert left == "/etc/buildos\n"


@pytest.fixture
def online(host: Host, lan: Lan) -> str:
    """The address of a host that runs an agent."""
    lan.serve_dhcp()
    host.configure("agentd", '[bslave.default]\nkvm = "waived"\n')
    host.start([lan])
    host.wait_for(lambda: host.active(SLAVE), "the agent runs")
    return host.wait_online()


def test_an_upgrade_cuts_neither_traffic_nor_builds(
    host: Host, lan: Lan, online: str, debs: list[Path]
) -> None:
    daemon, agent = host.main_pid(NETD), host.main_pid(SLAVE)
    with lan.ping(online) as echoes:
        install(host, debs)
        host.wait_for(
            lambda: host.active(NETD) and host.main_pid(NETD) not in (0, daemon), "another netd"
        )
        host.wait_for(lambda: host.bus_property("network1", "Online"), "it is online")
    assert echoes.lost() == []
    assert host.main_pid(SLAVE) == agent
    assert host.failed_units() == []


def test_the_package_test_passes(host: Host) -> None:
    """debian/tests, as autopkgtest(1) runs it on a testbed with the packages."""
    host.start()
    host.wait_for_boot()
    host.copy(TOP / "debian/tests/installed", "/var/tmp")
    host.run(["/var/tmp/installed"])
