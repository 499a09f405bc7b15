"""Controls the DHCP server double on a LAN, see doubles/dhcp_server.py."""

from __future__ import annotations

import itertools
import json
import subprocess
from pathlib import Path
from typing import Any

from dhcp_server import Behaviour
from simlan.lan import BRIDGE, Lan
from simlan.wait import DEADLINE, wait_for

_PROGRAM = Path(__file__).resolve().parents[1] / "doubles/dhcp_server.py"
_NUMBERS = itertools.count(1)

Entry = dict[str, Any]
"""An entry of the double's log."""


class DhcpDouble:
    """DHCP servers on a LAN, and their log since the last `serve`."""

    def __init__(self, lan: Lan, *servers: Behaviour) -> None:
        """Starts these servers on `lan`, beside its real DHCP server if it has one."""
        name = f"dhcp-double{next(_NUMBERS)}"
        self._lan = lan
        self._log = f"{name}.jsonl"
        program = ["/usr/bin/python3", str(_PROGRAM), "--interface", BRIDGE]
        log = ["--log", str(lan.directory / self._log)]
        self._process = lan.start([*program, *log], f"{name}.log", stdin=subprocess.PIPE)
        self.serve(*servers)

    def serve(self, *servers: Behaviour) -> None:
        """Replaces the servers; returns once they answer. They keep their leases."""
        for behaviour in servers:
            self._lan.own_address(behaviour.server)
        assert self._process.stdin is not None
        before = self._servings()
        line = json.dumps([behaviour.description() for behaviour in servers])
        self._process.stdin.write(f"{line}\n")
        self._process.stdin.flush()
        wait_for(lambda: self._servings() > before, "the DHCP double serves")

    def serving_since(self) -> float:
        """Returns when the current servers started to answer, by CLOCK_MONOTONIC."""
        return float([e["time"] for e in self._all() if e["kind"] == "SERVING"][-1])

    def entries(self) -> list[Entry]:
        """Returns the log since `serve`, oldest entry first."""
        entries = self._all()
        last = max((i for i, e in enumerate(entries) if e["kind"] == "SERVING"), default=-1)
        return entries[last + 1 :]

    def received(self, *kinds: str) -> list[Entry]:
        """Returns messages of clients: of these kinds or states (`renewing`), or all."""
        return [
            e
            for e in self.entries()
            if e["direction"] == "received"
            and e["kind"] != "ARP"
            and (not kinds or e["kind"] in kinds or e["state"] in kinds)
        ]

    def sent(self, *kinds: str, server: str | None = None) -> list[Entry]:
        """Returns messages of the servers: of these kinds, or all."""
        return [
            e
            for e in self.entries()
            if e["direction"] == "sent"
            and (not kinds or e["kind"] in kinds)
            and server in (None, e["server"])
        ]

    def arps(self) -> list[Entry]:
        """Returns the ARP messages on the LAN."""
        return [e for e in self.entries() if e["kind"] == "ARP"]

    def wait_received(self, *kinds: str, count: int = 1, deadline: float = DEADLINE) -> Entry:
        """Waits for `count` messages of clients; returns the last of them."""
        what = f"{count} {' or '.join(kinds) or 'messages'} of a client"
        return wait_for(lambda: self.received(*kinds)[count - 1 :], what, deadline)[0]

    def wait_sent(
        self, *kinds: str, server: str | None = None, count: int = 1, deadline: float = DEADLINE
    ) -> Entry:
        """Waits for `count` messages of the servers; returns the last of them."""
        what = f"{count} {' or '.join(kinds) or 'messages'} of {server or 'a server'}"
        return wait_for(lambda: self.sent(*kinds, server=server)[count - 1 :], what, deadline)[0]

    def _servings(self) -> int:
        assert self._process.poll() is None, "the DHCP double ended; see its log"
        return sum(e["kind"] == "SERVING" for e in self._all())

    def _all(self) -> list[Entry]:
        return self._lan.json_log(self._log)
