"""Runs each command of the manual and the man pages on a host.

`NOT_RUN` lists the commands that are not run, with the reason."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator

import pytest
from agents import bbot, wait_until_runs
from buildroot import TOP, Root
from host import Host
from nat import wait_until_ready
from simlan.lan import Lan

MANUALS = [TOP / "docs" / "manual.md", *sorted((TOP / "docs" / "man").glob("*.[1-8]"))]

PROGRAMS = (
    *("buildosctl", "buildos-agentd", "buildos-netd", "buildos-natd", "buildos-hostnamed"),
    *("systemctl", "journalctl", "busctl", "nft", "jq"),
    *("mkdir", "cp", "qemu-system-x86_64"),
)
"""First words of commands."""

NOT_RUN = {
    r"^buildosctl drain --wait && systemctl (reboot|poweroff)$": "ends the host",
    r"^(mkdir|cp) .*/var/lib/tftpboot/buildos": "for the boot server; tests/boot serves the files",
    r"^qemu-system-x86_64 ": "tests/boot boots like this",
    r"\bFILE\b|\bNAME\b|\bREASON\b|^buildos-\w+ --print --root /srv/desk$": "contains a placeholder",
    r"^buildosctl machine (attach|forward)\b": "tests/system/test_machines.py, test_machine_ports.py",
    r"^buildosctl update (hold|resume)\b": "tests/system/test_update_choices.py",
    r"^buildosctl volume create ": "tests/system/test_volumes.py",
    r"^systemctl edit ": "starts an editor on a terminal",
    r"^buildosctl (publish|check --keyring) ": "tests/system/test_publish*.py",
    r"^buildosctl (publish|check)$": "is the name of a command in a sentence",
    r"systemd-journal-upload$|^journalctl -D /var/log/journal/remote": "needs a farm's log server",
    r"\bjq\b|^systemctl disable (--now tftpd-hpa|NetworkManager|connman|dhcpcd)$": (
        "the program is not on the hosts of the tests"
    ),
}

ENDLESS = {"buildosctl log -f"}
"""Commands that run until they are interrupted."""

BOOT_FILE = "/var/lib/tftpboot/pxelinux.cfg/default"


def of_markdown(text: str) -> Iterator[str]:
    """Yields the lines of indented blocks without comments, and code within sentences."""
    joined = text.replace("\\\n", " ")
    for line in joined.splitlines():
        if line.startswith("    "):
            yield re.sub(r"\s+#.*", "", line)
        else:
            yield from re.findall(r"`([^`]+)`", line)


def of_man_page(text: str) -> Iterator[str]:
    """Yields the lines of literal displays (mdoc(7), Bd and Dl)."""
    joined = text.replace("\\e\n", " ")
    for block in re.findall(r"^\.Bd -literal.*?\n(.*?)^\.Ed", joined, re.MULTILINE | re.DOTALL):
        yield from block.splitlines()
    yield from re.findall(r"^\.Dl (.*)", joined, re.MULTILINE)


def documented() -> list[str]:
    """Returns each command once, in the order of the manuals."""
    found = {}
    for path in MANUALS:
        of = of_markdown if path.suffix == ".md" else of_man_page
        for line in of(path.read_text()):
            command = " ".join(line.split())
            # A program without arguments is a name in a sentence, except for buildosctl.
            if command.split(" ")[0] in PROGRAMS and (" " in command or command == "buildosctl"):
                found[command] = None
    return list(found)


COMMANDS = documented()


def reason_not_to(command: str) -> str | None:
    return next((why for like, why in NOT_RUN.items() if re.search(like, command)), None)


@pytest.fixture(scope="module")
def site(root: Root) -> Iterator[Host]:
    """A host with a running agent and the manual's configuration of the boot loader."""
    with Lan() as lan, Host(root) as host:
        manual = (TOP / "docs" / "manual.md").read_text()
        block = re.search(r"^    default buildos\n(?:    .*\n|\n(?=    ))*", manual, re.MULTILINE)
        assert block is not None
        host.file(BOOT_FILE, block.group())
        lan.serve_dhcp()
        host.configure("agentd", bbot(lan.start_controller()))
        host.start([lan])
        wait_until_runs(host)
        wait_until_ready(host)
        yield host


def test_manuals_contain_commands() -> None:
    buses = {command.split()[2] for command in COMMANDS if command.startswith("busctl introspect")}
    served = {"network1", "hostname1", "nat1", "agent1", "update1"}
    assert {name.rsplit(".", 1)[1] for name in buses} == served
    assert len(COMMANDS) > 25
    for like in NOT_RUN:
        assert any(re.search(like, command) for command in COMMANDS), like


@pytest.mark.parametrize("command", [c for c in COMMANDS if reason_not_to(c) is None])
def test_documented_command_works(site: Host, command: str) -> None:
    limit = ["timeout", "2"] if command in ENDLESS else []
    result = subprocess.run(
        site.command([*limit, "sh", "-c", command]),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )
    expected = 124 if command in ENDLESS else 0
    assert result.returncode == expected, f"{command}\n{result.stdout}{result.stderr}"
