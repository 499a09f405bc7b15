#!/usr/bin/python3
"""A FleetLock server with the rules of airlock: a semaphore of slots for each group.

    fleet_lock.py --listen ADDRESS:PORT --log FILE.jsonl [--slots GROUP=N]...

- POST /v1/pre-reboot takes a slot for an id. An id that has one gets the same one again.
- POST /v1/steady-state releases it. An id without a slot may do it, too.
- Without the header `fleet-lock-protocol: true`, or with a body of a different form, the answer
  is 400. A full group, and a group that is not configured, are refused with JSON that has `kind`
  and `value`.

Each request is a line of JSON in the log: `path`, `id`, `group`, `status`, and the `holders` after
it. The group `default` has one slot.
"""

from __future__ import annotations

import argparse
import json
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

TAKE = "/v1/pre-reboot"
RELEASE = "/v1/steady-state"


class Locks:
    """The semaphores of groups."""

    def __init__(self, slots: Mapping[str, int]):
        self.slots = dict(slots)
        self.holders: dict[str, set[str]] = {group: set() for group in slots}
        self._lock = threading.Lock()

    def take(self, group: str, id: str) -> tuple[int, str, str]:
        """Returns the status, and the kind and value of a refusal."""
        with self._lock:
            if group not in self.slots:
                return 400, "unknown_group", f"group {group} is not configured"
            holders = self.holders[group]
            if id not in holders and len(holders) >= self.slots[group]:
                return 409, "failed_lock", "semaphore currently full, all slots are locked already"
            holders.add(id)
            return 200, "", ""

    def release(self, group: str, id: str) -> tuple[int, str, str]:
        """As `take`."""
        with self._lock:
            if group not in self.slots:
                return 400, "unknown_group", f"group {group} is not configured"
            self.holders[group].discard(id)
            return 200, "", ""


def parameters(body: bytes) -> tuple[str, str] | None:
    """Returns group and id of a body."""
    try:
        client = json.loads(body)["client_params"]
        group, id = client["group"], client["id"]
    except (ValueError, KeyError, TypeError):
        return None
    if isinstance(group, str) and isinstance(id, str) and group and id:
        return group, id
    return None


def server(address: str, port: int, log: Path, locks: Locks) -> ThreadingHTTPServer:
    """Returns a server that does not serve yet."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            length = int(self.headers.get("Content-Length", 0))
            found = parameters(self.rfile.read(min(length, 65536)))
            entry: dict[str, Any] = {"path": self.path}
            if self.headers.get("fleet-lock-protocol") != "true":
                status, kind, value = 400, "missing_header", "fleet-lock-protocol: true is missing"
            elif found is None:
                status, kind, value = 400, "bad_body", "the body has no client_params"
            elif self.path not in (TAKE, RELEASE):
                status, kind, value = 404, "not_found", self.path
            else:
                group, id = found
                call = locks.take if self.path == TAKE else locks.release
                status, kind, value = call(group, id)
                entry |= {"group": group, "id": id}
                entry["holders"] = sorted(locks.holders.get(group, set()))
            answer = b"" if status == 200 else json.dumps({"kind": kind, "value": value}).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)
            with log.open("a") as out:
                out.write(json.dumps({**entry, "status": status}) + "\n")

        def log_message(self, format: str, *args: object) -> None:
            pass

    return ThreadingHTTPServer((address, port), Handler)


def main() -> None:
    parser = argparse.ArgumentParser(description="A FleetLock server.")
    parser.add_argument("--listen", required=True, metavar="ADDRESS:PORT")
    parser.add_argument("--log", required=True, type=Path, metavar="FILE")
    parser.add_argument("--slots", action="append", default=[], metavar="GROUP=N")
    arguments = parser.parse_args()
    slots = {"default": 1}
    for text in arguments.slots:
        group, _, number = text.partition("=")
        slots[group] = int(number)
    address, _, port = arguments.listen.rpartition(":")
    listening = server(address, int(port), arguments.log, Locks(slots))
    print(f"fleet_lock: listening on {arguments.listen}", flush=True)
    listening.serve_forever()


if __name__ == "__main__":
    main()
