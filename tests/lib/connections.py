"""Holds TCP connections open: of a machine through the NAT of its host, and to its open ports."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from machine import Machine
from simlan.lan import Lan
from simlan.process import end, start
from simlan.wait import wait_for

_PROGRAM = str(Path(__file__).resolve().parent / "hold_connections.py")
_PORT = 7007


class Connections:
    """Open connections of a machine to a server on the LAN."""

    def __init__(self, process: subprocess.Popen[str]):
        self._process = process

    def alive(self) -> int:
        """Sends a message over each connection; returns the number of answers."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        keyword, _, count = self._process.stdout.readline().partition(" ")
        assert keyword == "alive"
        return int(count)


@contextmanager
def serve(machine: Machine) -> Iterator[int]:
    """Serves echoes on a port of the machine while the context lasts; yields the port."""
    endpoint = f"{machine.address}:{_PORT}"
    process = start(
        machine.outside([sys.executable, _PROGRAM, "serve", endpoint]), stdout=subprocess.PIPE
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "serving\n"
        yield _PORT
    finally:
        end(process)


@contextmanager
def reach(lan: Lan, address: str, port: int) -> Iterator[Connections]:
    """Holds a connection from the LAN to a server of echoes while the context lasts."""
    process = start(
        lan.command([sys.executable, _PROGRAM, "hold", f"{address}:{port}", "1"]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n", f"port {port} of {address} is closed"
        yield Connections(process)
    finally:
        end(process)


@contextmanager
def hold(machine: Machine, lan: Lan, count: int) -> Iterator[Connections]:
    """Opens `count` connections and holds them while the context lasts."""
    endpoint = f"{lan.address}:{_PORT}"
    lan.start([sys.executable, _PROGRAM, "serve", endpoint], "echo.log")
    wait_for(lambda: "serving" in lan.log("echo.log"), "the server serves")
    process = start(
        machine.outside([sys.executable, _PROGRAM, "hold", endpoint, str(count)]),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        yield Connections(process)
    finally:
        end(process)
