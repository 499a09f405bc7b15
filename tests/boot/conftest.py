"""The boot lane: the two files in QEMU, seen from inside and from the LAN.

    /usr/bin/python3 -m pytest tests/boot

as root. Without KVM a boot takes from half a minute to some minutes, by what
else the machine does: tests wait for what they need to see, and give up much
later than it usually takes. A test that fails shows the console and the
journal of every machine that runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(TOP / "image"))

from lan import agents, pxe, qemu, shell
from lan.guest import Guest
from lan.network import Lan

BOOT_SECONDS = 900
"""For a boot to its agent's first poll. PXE takes two minutes on two idle cores
without KVM, and five times that under load."""

CONSOLE = "console=ttyS0"

_running: list[Guest] = []
_figures: list[str] = []


@dataclass
class Host:
    """A machine on its LAN."""

    lan: Lan
    guest: Guest
    nics: list[qemu.Nic]

    @property
    def shell(self) -> shell.Shell:
        """A root shell in it."""
        return self.guest.shell

    def wait_for_poll(self) -> None:
        """Waits until its agent asked the controller for work."""
        self.guest.wait_for("the agent's first poll", BOOT_SECONDS, self.lan.polls)


BootHost = Callable[..., Host]


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--image",
        type=Path,
        default=TOP / "build/demo",
        help="directory of buildos-image and buildos-initrd, with the stand-ins for agents",
    )


@pytest.fixture(scope="session")
def image(request: pytest.FixtureRequest) -> Path:
    """The directory with the two files."""
    directory: Path = request.config.getoption("--image").resolve()
    for name in ("buildos-image", "buildos-initrd"):
        if not (directory / name).exists():
            pytest.fail(f"{directory / name} is missing: make it with `make image`")
    return directory


@pytest.fixture(scope="module")
def boot_host(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BootHost]:
    """Starts machines that run until the end of the module."""
    with ExitStack() as stack:

        def start(*nics: str, network: bool = False, names: dict[str, str] | None = None) -> Host:
            """Boots a machine with `nics` (MODEL@SEGMENT), from the `network`
            or else directly; DHCP gives `names` to MACs."""
            # Short, because the path of a socket is.
            directory = tmp_path_factory.mktemp("host")
            parsed = [qemu.parse_nic(text, index) for index, text in enumerate(nics)]
            append = f"{CONSOLE} {agents.parameters()}"
            tftp = None
            if network:
                tftp = directory / "tftp"
                tftp.mkdir()
                text = pxe.configuration(append, timeout=10)
                pxe.publish(tftp, image, {parsed[0].mac: text})
            machine = qemu.Machine(
                nics=parsed,
                image=None if network else image,
                append=append,
                credentials=shell.credentials(),
            )
            lan = stack.enter_context(Lan(directory, names, tftp))
            guest = Guest(lan, machine, image / "buildos-image", directory)
            stack.enter_context(guest)
            _running.append(guest)
            stack.callback(_running.remove, guest)
            return Host(lan, guest, parsed)

        yield start


@pytest.fixture(scope="session")
def figure() -> Callable[[str], None]:
    """Notes a line for the end of the run."""
    return _figures.append


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        for guest in _running:
            report.sections.append(("console", guest.console()))
            report.sections.append(("journal", journal(guest)))


def journal(guest: Guest) -> str:
    """The guest's journal, or why there is none."""
    try:
        return guest.shell.run("journalctl --boot --no-pager --output=short-monotonic").output
    except Exception as error:  # whatever it is, it must not hide the test's failure
        return str(error)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _figures:
        terminalreporter.section("figures")
        for line in _figures:
            terminalreporter.write_line(line)
