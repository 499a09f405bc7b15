"""Tests the command line that an agent gets from its configuration."""

from __future__ import annotations

import netboot
import pytest
from agents import BBOT, bbot, wait_until_runs
from host import Host
from simlan.boot_lan import QUERY
from simlan.lan import Lan

PREFIX = "buildos.agentd.bbot.default"


def arguments(host: Host) -> list[str]:
    """Returns the command line of the running agent, as execve(2) got it."""
    text = host.run(f"cat /proc/{host.main_pid(BBOT)}/cmdline")
    return text.rstrip("\0").split("\0")


def test_query_string_on_kernel_command_line_reaches_controller(
    host: Host, lan: Lan, url: str
) -> None:
    other = f"{url}other?a=1,2&b=%2C"
    controllers = f"0100={url}{QUERY},{other}"
    host.command_line(f"quiet {PREFIX}.controllers={controllers} {PREFIX}.kvm=waived")
    host.start([lan])
    wait_until_runs(host)
    assert arguments(host)[-2:] == [f"0100={url}{QUERY}", other]
    host.wait_for(
        lambda: {r["path"] for r in lan.task_requests()} >= {f"/{QUERY}", "/other?a=1,2&b=%2C"},
        "the agent polls both controllers",
    )


def test_options_of_bbot_reach_agent(host: Host, lan: Lan, url: str) -> None:
    fingerprint = ":".join(["AB"] * 32)
    keys = [
        'interactive = "both"',
        f'trust = ["{fingerprint}"]',
        'toolchain_version = "0.18.0"',
        "auxiliary_ram_mib = 64",
        "ram_mib = 64",
        "nice = 5",
        'machines = "/build/machines"',
    ]
    host.configure("agentd", bbot(url, *keys))
    host.start([lan])
    wait_until_runs(host)
    words = arguments(host)
    pairs = set(zip(words, words[1:], strict=False))
    assert pairs >= {
        ("--interactive", "both"),
        ("--trust", fingerprint),
        ("--toolchain-ver", "0.18.0"),
        ("--auxiliary-ram", "65536"),
        ("--nice", "5"),
        ("--machines", "/build/machines"),
    }
    (request,) = host.wait_for(lambda: lan.task_requests()[:1], "the agent polls")
    assert request["toolchain"] == "default 0.18.0"


@pytest.fixture
def parameters() -> str:
    return f"quiet {PREFIX}.controllers=0100=https://ci.example.org/{QUERY}"


@pytest.mark.parametrize("loader", ["pxelinux", "ipxe", "grub"])
def test_boot_loader_files_with_query_string_have_no_problem(
    running: Host, loader: str, parameters: str
) -> None:
    text = {
        "pxelinux": netboot.configuration(parameters, 50),
        "ipxe": netboot.ipxe_configuration(parameters),
        "grub": netboot.grub_configuration(parameters, 50),
    }[loader]
    running.run(["sh", "-ec", 'printf %s "$1" >/tmp/boot', "sh", text])
    running.run("buildosctl check /tmp/boot")
    # `check` reads the parameters: it reports an invalid URL.
    running.run("sed -i s,https:,ftp:, /tmp/boot")
    assert "bad controller" in running.run("buildosctl check /tmp/boot 2>&1 || true")


def test_unquoted_query_string_in_grub_is_reported(running: Host, parameters: str) -> None:
    text = netboot.grub_configuration(parameters, 50).replace("'", "")
    running.run(["sh", "-ec", 'printf %s "$1" >/tmp/boot', "sh", text])
    problems = running.run("buildosctl check /tmp/boot 2>&1 || true")
    assert "GRUB does not boot with a syntax error at &: put the parameter in single quotes" in problems
