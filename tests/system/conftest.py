"""Fixtures of the system lane: hosts with buildos's packages, and their LANs."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import long_tests
import pytest
from agents import bbot, wait_until_runs
from buildroot import Root
from host import Host
from nat import wait_until_ready
from roots import host_debs, host_root
from simlan.lan import Lan
from update_farm import Farm

NewHost = Callable[..., Host]
NewLan = Callable[..., Lan]

_FIGURE = "figure"
"""The property of a test's report that is a line of the figures."""


def pytest_addoption(parser: pytest.Parser) -> None:
    long_tests.add_option(parser, "thousands of kills and power cuts, hundreds of operations")


pytest_configure = long_tests.add_marker
pytest_collection_modifyitems = long_tests.deselect


@pytest.fixture(scope="session")
def debs() -> list[Path]:
    """The packages of this project, see `host_debs`."""
    return host_debs()


@pytest.fixture(scope="session")
def root(debs: list[Path]) -> Root:
    """The root of a host, see `host_root`."""
    assert os.geteuid() == 0, "the system lane makes namespaces and mounts: run it as root"
    return host_root(debs)


@pytest.fixture
def new_lan() -> Iterator[NewLan]:
    """Makes LANs, see `simlan.lan`."""
    lans: list[Lan] = []

    def make(*arguments: Any, **options: Any) -> Lan:
        lans.append(Lan(*arguments, **options))
        return lans[-1]

    yield make
    for lan in lans:
        lan.close()


@pytest.fixture
def lan(new_lan: NewLan) -> Lan:
    """A LAN without servers."""
    return new_lan()


@pytest.fixture
def new_host(root: Root, new_lan: NewLan) -> Iterator[NewHost]:
    """Makes hosts, see `Host`. The hosts end before their LANs."""
    hosts: list[Host] = []

    def make(name: str = "host") -> Host:
        hosts.append(Host(root, name))
        return hosts[-1]

    yield make
    for host in hosts:
        host.stop()


@pytest.fixture
def host(new_host: NewHost) -> Host:
    """A host before its boot."""
    return new_host()


@pytest.fixture
def online(host: Host, lan: Lan) -> Host:
    """A host with a lease, ready for machines."""
    lan.serve_dhcp()
    host.start([lan])
    wait_until_ready(host)
    return host


@pytest.fixture
def url(lan: Lan) -> str:
    """The URL of a controller on a LAN with DHCP."""
    lan.serve_dhcp()
    return lan.start_controller()


@pytest.fixture
def running(host: Host, lan: Lan, url: str) -> Host:
    """A host with a running bbot@default."""
    host.configure("agentd", bbot(url))
    host.start([lan])
    wait_until_runs(host)
    return host


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Adds a line to the figures at the end of the run."""
    return lambda line: record_property(_FIGURE, line)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    reports = itertools.chain.from_iterable(terminalreporter.stats.values())
    figures = [
        line
        for report in reports
        if getattr(report, "when", None) == "call"
        for name, line in report.user_properties
        if name == _FIGURE
    ]
    if figures:
        terminalreporter.section("figures")
        for line in figures:
            terminalreporter.write_line(line)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Adds the report of every running host to the failure of a test."""
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if report.failed:
        for host in Host.running:
            report.sections.append((host.name, host.report()))


@pytest.fixture
def farm(root: Root, tmp_path: Path, lan: Lan) -> Iterator[Farm]:
    """A desk that publishes machines, and its server on the LAN."""
    with Farm(root, tmp_path / "farm", lan) as farm:
        yield farm
