"""Fixtures of the system lane: hosts with our packages, and LANs for them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from buildroot import BUILD
from host import Host
from host_root import host_root
from lan import Lan


@pytest.fixture(scope="session")
def debs() -> list[Path]:
    """The packages of this project, as debian/build left them."""
    found = sorted((BUILD / "debs").glob("*.deb"))
    assert found, "build/debs has no packages: run debian/build (make debs)"
    return [deb for deb in found if "-dbgsym_" not in deb.name]


@pytest.fixture(scope="session")
def root(debs: list[Path]) -> list[Path]:
    assert os.geteuid() == 0, "the system lane makes namespaces and mounts: run it as root"
    return host_root(debs)


@pytest.fixture
def new_lan() -> Iterator[Callable[..., Lan]]:
    """Makes LANs, see `Lan`."""
    lans: list[Lan] = []

    def make(*arguments: str, **options: str) -> Lan:
        lans.append(Lan(*arguments, **options))
        return lans[-1]

    yield make
    for lan in lans:
        lan.close()


@pytest.fixture
def lan(new_lan: Callable[..., Lan]) -> Lan:
    """A LAN on which nothing is served yet."""
    return new_lan()


@pytest.fixture
def new_host(
    root: list[Path], new_lan: Callable[..., Lan], request: pytest.FixtureRequest
) -> Iterator[Callable[..., Host]]:
    """Makes hosts, see `Host`. After a failure their journals are reported.

    It uses `new_lan` so that hosts end before the LANs that they are on."""
    hosts: list[Host] = []

    def make(name: str = "host") -> Host:
        host = Host(root, name)
        # The NICs are veth pairs, which netd takes for NICs when it is told to.
        host.configure("netd", 'include = ["eth*"]\n')
        hosts.append(host)
        return host

    yield make
    failed = getattr(request.node, "failed", False)
    for host in hosts:
        if failed and host.running:
            request.node.add_report_section("teardown", host.name, host.report())
        host.stop()


@pytest.fixture
def host(new_host: Callable[..., Host]) -> Host:
    """A host that has not been started."""
    return new_host()


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if report.when == "call" and report.failed:
        item.failed = True  # type: ignore[attr-defined]
