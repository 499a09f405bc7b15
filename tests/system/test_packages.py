"""Tests installation, upgrade and removal of the packages on a running system."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from buildroot import TOP
from connections import hold
from footprint import difference, footprint
from host import Host
from machine import Machine
from nat import table_handle, wait_until_ready
from roots import base_root
from simlan.lan import Lan
from versions import as_version

NETD = "buildos-netd.service"
SLAVE = "buildos-bslave@default.service"
DAEMONS = [f"buildos-{name}.service" for name in ("netd", "hostnamed", "natd", "agentd")]
DEBS = "/var/debs"
INSTALLED = "$(dpkg-query --show --showformat='${Package} ' 'buildos*')"


def install(host: Host, debs: list[Path]) -> None:
    host.run(f"rm -rf {DEBS}")
    for deb in debs:
        host.copy(deb, DEBS)
    host.run(f"dpkg --install {DEBS}/*.deb")


def test_installed_packages_wait_for_next_boot(debs: list[Path], lan: Lan) -> None:
    with Host(base_root(), "debian") as host:
        host.start([lan])
        assert host.wait_for_boot() == "running"
        install(host, debs)
        assert host.run("systemctl list-units --plain --no-legend 'buildos*'") == ""
        assert not host.succeeds("ip link show br0")
        assert not host.succeeds("readlink /etc/resolv.conf | grep buildos")
        for unit in ("buildos.target", NETD, "buildos-agentd.service"):
            assert host.systemctl("is-enabled", unit) == "enabled\n"


# A purge keeps accounts, because files might have their numbers.
ACCOUNTS = ["build", "buildos-netd", "buildos-natd", "buildos-dnsmasq", "buildos-probe"]
ACCOUNTS += ["buildos-updated"]
SHARED = ["passwd", "group", "shadow", "gshadow"]


@pytest.mark.parametrize("runs", [False, True], ids=["installed", "running"])
def test_packages_purged_leave_nothing(
    debs: list[Path], lan: Lan, tmp_path: Path, runs: bool
) -> None:
    lan.serve_dhcp()
    with Host(base_root(), "debian") as host:
        host.start([lan])
        assert host.wait_for_boot() == "running"
        if runs:
            toml = '[bslave.default]\nkvm = "waived"\n'
            host.write("/etc/buildos/agentd.conf.d/50-test.toml", toml)
        before = footprint(host)
        install(host, as_version(debs, "0.0.1-1", tmp_path))
        if runs:
            host.systemctl("start", "buildos.target")
            host.wait_online()
            host.wait_for(
                lambda: all(map(host.active, [*DAEMONS, SLAVE])), "all daemons and the agent run"
            )
        install(host, debs)
        if runs:
            host.wait_for(lambda: all(map(host.active, DAEMONS)), "all daemons run again")
        host.run(f"dpkg --remove {INSTALLED}")
        # Configuration files stay until a purge.
        left = [line for line in difference(before, footprint(host)) if " + /etc/" in line]
        assert any("/etc/sudoers.d/buildos-agentd " in line for line in left), left
        host.run(f"dpkg --purge {INSTALLED}")
        left = difference(before, footprint(host))
        known = [
            line
            for line in left
            if line.startswith("content:") and line.split("/etc/")[-1].strip("-") in SHARED
            # The backup of each file, such as /etc/passwd-.
            or line.startswith("files: ")
            and line.split()[2].removeprefix("/etc/").strip("-") in SHARED
        ]
        assert [line for line in left if line not in known] == []
        for account in ACCOUNTS:
            assert host.succeeds(f"getent passwd {account}")


@pytest.fixture
def address(host: Host, lan: Lan) -> str:
    """The address of a host that runs an agent."""
    lan.serve_dhcp()
    host.configure("agentd", '[bslave.default]\nkvm = "waived"\n')
    host.start([lan])
    host.wait_for(lambda: host.active(SLAVE), "the agent runs")
    return host.wait_online()


def test_upgrade_cuts_neither_traffic_nor_builds(
    host: Host, lan: Lan, address: str, debs: list[Path], tmp_path: Path
) -> None:
    wait_until_ready(host)
    # The upgrade keeps the administrator's settings.
    sudoers = f"{host.read('/etc/sudoers.d/buildos-agentd')}# Of the administrator\n"
    host.write("/etc/sudoers.d/buildos-agentd", sudoers)
    configuration = host.read("/etc/buildos/agentd.conf.d/50-test.toml")
    agent, handle = host.main_pid(SLAVE), table_handle(host)
    daemons = {unit: host.main_pid(unit) for unit in DAEMONS}
    machine = Machine(host)
    machine.take_lease()
    with hold(machine, lan, 100) as held, lan.ping(address) as echoes:
        install(host, as_version(debs, "9.9.9-1", tmp_path))
        for unit, pid in daemons.items():
            host.wait_for(
                lambda unit=unit, pid=pid: (  # type: ignore[misc]
                    host.active(unit) and host.main_pid(unit) not in (0, pid)
                ),
                f"{unit} is restarted",
            )
        host.wait_for(lambda: host.bus_property("network1", "Online"), "the host is online")
        wait_until_ready(host)
        assert held.alive() == 100
    assert echoes.lost() == []
    assert host.wait_online() == address
    assert table_handle(host) == handle
    assert host.main_pid(SLAVE) == agent
    assert host.failed_units() == []
    assert host.read("/etc/sudoers.d/buildos-agentd") == sudoers
    assert host.read("/etc/buildos/agentd.conf.d/50-test.toml") == configuration


@pytest.mark.parametrize("name", ["installed", "purged"])
def test_autopkgtest_passes(host: Host, name: str) -> None:
    """debian/tests, as autopkgtest(1) runs them on a testbed with the packages."""
    host.start()
    host.wait_for_boot()
    host.copy(TOP / "debian/tests" / name, "/var/tmp")
    host.run([f"/var/tmp/{name}"])


def test_every_autopkgtest_is_listed() -> None:
    control = (TOP / "debian/tests/control").read_text()
    listed = re.findall(r"^Tests: (.*)$", control, re.MULTILINE)
    assert listed == ["installed", "purged"]
