"""Fixtures of the boot lane: the two files in QEMU, on the simulated LAN.

    /usr/bin/python3 -m pytest tests/boot

Run it as root. Without KVM a boot takes from half a minute to some minutes, depending
on the load; the deadlines allow for that. A failed test shows console and journal of
every running machine.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

TOP = Path(__file__).resolve().parents[2]
import long_tests
import netboot
from booted_host import Boot, BootedHost
from simlan import qemu, shell
from simlan.boot_lan import BOOT_URL, QUERY, BootLan, agent_parameters
from simlan.guest import Guest

CONSOLE = "console=ttyS0"

_running: list[Guest] = []
_figures: list[str] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--image",
        type=Path,
        default=TOP / "build/demo",
        help="directory of buildos-image and buildos-initrd, with the stand-ins for agents",
    )
    long_tests.add_option(parser, "every way to boot, every kind of failure")


pytest_configure = long_tests.add_marker
pytest_collection_modifyitems = long_tests.deselect


@pytest.fixture(scope="session")
def image(request: pytest.FixtureRequest) -> Path:
    """The directory of the two files."""
    directory: Path = request.config.getoption("--image").resolve()
    for name in ("buildos-image", "buildos-initrd"):
        if not (directory / name).exists():
            pytest.fail(f"{directory / name} is missing: `make check-boot` makes it")
    return directory


@pytest.fixture(scope="module")
def boot(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Boot]:
    """Starts machines that run until the end of the module."""
    with booting(image, tmp_path_factory) as start:
        yield start


@pytest.fixture
def boot_once(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Boot]:
    """Starts machines that run until the end of the test."""
    with booting(image, tmp_path_factory) as start:
        yield start


@contextmanager
def booting(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Boot]:
    """Starts machines that run while the context lasts."""
    with ExitStack() as stack:

        def start(
            *nics: str,
            way: str = "direct",
            uefi: bool = False,
            append: str = f"{CONSOLE} {agent_parameters(QUERY)}",
            names: dict[str, str] | None = None,
            credentials: dict[str, str] | None = None,
            published: Path | None = None,
            dhcp_boot: Sequence[str] | None = None,
            lan: BootLan | None = None,
            **options: Any,
        ) -> BootedHost:
            """Boots a machine.

            nics         MODEL@SEGMENT of each NIC
            way          one of netboot.WAYS
            uefi         the firmware is UEFI, also if nothing is booted by it
            append       kernel parameters
            names        host names from DHCP, by MAC address
            credentials  credentials besides the shell's
            published    a filled netboot directory, in place of a new one
            dhcp_boot    lines of dnsmasq.conf that lead machines there, in place of the way's
            lan          the LAN of a machine before, in place of a new one
            options      of qemu.Machine
            """
            directory = tmp_path_factory.mktemp("host")
            parsed = [qemu.parse_nic(text, index) for index, text in enumerate(nics)]
            if way != "direct" and not published:
                published = directory / "netboot"
                netboot.publish(published, image, append, {}, timeout=10)
            machine = qemu.Machine(
                nics=parsed,
                image=image if way == "direct" else None,
                append=append,
                credentials={**shell.credentials(), **(credentials or {})},
                uefi=qemu.uefi_variables(directory) if uefi or way == "uefi" else None,
                **options,
            )
            if dhcp_boot is None:
                dhcp_boot = netboot.dhcp_boot(way, BOOT_URL)
            if lan is None:
                lan = stack.enter_context(BootLan(directory, names, published, dhcp_boot))
            guest = Guest(lan, machine, image / "buildos-image", directory)
            stack.enter_context(guest)
            _running.append(guest)
            stack.callback(_running.remove, guest)
            return BootedHost(lan, guest, parsed)

        yield start


@pytest.fixture(scope="session")
def figure() -> Callable[[str], None]:
    """Adds a line to the figures at the end of the run."""
    return _figures.append


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, None]:
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        for guest in _running:
            report.sections.append(("console", guest.console()))
            report.sections.append(("journal", journal(guest)))


def journal(guest: Guest) -> str:
    """Returns the guest's journal, or the error that prevents it."""
    try:
        return guest.shell.run("journalctl --boot --no-pager --output=short-monotonic").output
    except Exception as error:  # an error here must not hide the test's failure
        return str(error)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if _figures:
        terminalreporter.section("figures")
        for line in _figures:
            terminalreporter.write_line(line)
