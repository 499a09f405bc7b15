"""Tests that the questions of one machine leave the name server to the others."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from conftest import NewHost
from host import Host
from machine import HOSTILE_MACHINE, Machine, machine_with_lease
from nat import packets, wait_until_ready
from simlan.lan import Lan
from simlan.process import end, start
from simlan.wait import wait_for

_SERVER = "172.23.0.1"


@pytest.fixture
def resolving(lan: Lan, new_host: NewHost) -> Host:
    """A host whose uplink resolves good.example. The server of silent.example is silent."""
    host = new_host()
    lan.serve_dhcp(
        "--address=/good.example/203.0.113.7",
        f"--server=/silent.example/{lan.address}#5300",
        "--dns-forward-max=60000",
    )
    lan.start_server("silent", [*HOSTILE_MACHINE, "receive", lan.address, "5300"], "listening")
    host.start([lan])
    wait_until_ready(host)
    return host


@contextmanager
def _asking(machine: Machine, lan: Lan, rate: int, questions: int) -> Iterator[None]:
    """Asks for names of the silent zone; enters when its server has that many questions."""
    attack = ["names", _SERVER, "silent.example", "--rate", str(rate), "--seconds", "60"]
    process = start(machine.outside([*HOSTILE_MACHINE, *attack]))
    try:
        wait_for(lambda: lan.log("silent.log").count("\n") > questions, "names were asked")
        yield
    finally:
        end(process)


def _answered(machine: Machine, *options: str) -> float:
    """Returns the share of names that are resolved."""
    ask = ["resolve", _SERVER, "good.example", "--seconds", "5", *options]
    output = subprocess.check_output(machine.outside([*HOSTILE_MACHINE, *ask]), text=True)
    _, asked, _, answered = output.split()
    return int(answered) / int(asked)


def test_slow_names_of_machine_leave_answers_to_others(resolving: Host, lan: Lan) -> None:
    attacker, other = machine_with_lease(resolving), machine_with_lease(resolving)
    # getaddrinfo(3) sends two questions for a name.
    with _asking(attacker, lan, rate=100, questions=140):
        assert _answered(other) >= 0.99
    assert resolving.bus_property("nat1", "Ready")


def test_flood_of_names_of_machine_leaves_answers_to_others(resolving: Host, lan: Lan) -> None:
    attacker, other = machine_with_lease(resolving), machine_with_lease(resolving)
    dropped = "a machine with too many questions to the name server"
    with _asking(attacker, lan, rate=3000, questions=400):
        assert _answered(other) >= 0.99
    assert packets(resolving, dropped) > 1000
    assert "names" in resolving.bus_property("nat1", "Shortages")
    resolving.wait_for(
        lambda: resolving.bus_property("nat1", "Shortages") == {}, "the shortage is over"
    )
    assert _answered(attacker) >= 0.99


def test_tcp_connections_of_machine_leave_name_server_to_others(resolving: Host) -> None:
    attacker, other = machine_with_lease(resolving), machine_with_lease(resolving)
    attack = [*HOSTILE_MACHINE, "connections", _SERVER, "53", "40"]
    process = start(attacker.outside(attack), stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        opened = int(process.stdout.readline())
        assert _answered(other, "--tcp") >= 0.99
        assert opened == 5
        dropped = "a machine with too many TCP connections to the name server"
        assert packets(resolving, dropped) > 0
    finally:
        end(process)
