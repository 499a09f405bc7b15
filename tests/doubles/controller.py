#!/usr/bin/python3
"""A stand-in for a build2 controller: takes task requests, has nothing to do.

    controller.py --listen ADDRESS:PORT [--log FILE.jsonl]

Every request is one line of JSON: `time` (seconds since the epoch), `client`
(address), `method`, `path`, `status` (of the answer), and either `agent`,
`toolchain` and `machines` of the task request, or `error`. Requests that break
the protocol are answered with 400 or 413, as a real controller would.

In a test: `with Controller("192.0.2.1", 0) as controller: controller.requests`.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
import threading
import time
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType

MAX_REQUEST = 102_400
"""The longest task request that a controller accepts, bytes."""

HEADER = {"agent", "toolchain-name", "toolchain-version"}
HEADER_OPTIONAL = {"interactive-mode", "interactive-login", "fingerprint", "auxiliary-ram"}
MACHINE = {"id", "name", "summary"}
MACHINE_OPTIONAL = {"role", "ram-minimum", "ram-maximum"}

NOTHING_TO_DO = b": 1\nsession:\n"

_NAME = re.compile(r"[a-z0-9-]+")

Manifest = dict[str, str]


class ProtocolError(Exception):
    """The body is no task request; the text says where and why."""


@dataclass
class Request:
    """A request as it was understood, and what it was answered with."""

    time: float
    client: str
    method: str
    path: str
    status: int
    agent: str | None = None
    toolchain: str | None = None
    machines: list[str] = field(default_factory=list)
    error: str | None = None


def parse_manifests(body: str) -> list[Manifest]:
    """Reads the manifests of a body: `: 1` first, `:` before each further one,
    `name: value` in between, nothing of several lines."""
    manifests: list[Manifest] = []
    for number, raw in enumerate(body.split("\n"), 1):
        line = raw.strip(" \t\r")
        if not line or line.startswith("#"):
            continue
        if line.startswith(":"):
            if line[1:].strip() != ("" if manifests else "1"):
                raise ProtocolError(f'line {number}: expected ": 1", then ":"')
            manifests.append({})
            continue
        name, colon, value = line.partition(":")
        name, value = name.rstrip(), value.lstrip()
        if not manifests or not colon or not _NAME.fullmatch(name):
            raise ProtocolError(f'line {number}: expected "name: value" in a manifest')
        if value == "\\":
            raise ProtocolError(f"line {number}: the value of {name} has several lines")
        if name in manifests[-1]:
            raise ProtocolError(f"line {number}: {name} occurs twice")
        if any(ord(c) < 32 or ord(c) == 127 for c in value):
            raise ProtocolError(f"line {number}: control character in the value of {name}")
        manifests[-1][name] = value
    if not manifests:
        raise ProtocolError("no manifest")
    return manifests


def parse_task_request(body: bytes) -> tuple[Manifest, list[Manifest]]:
    """The header and the machines of a task request."""
    try:
        manifests = parse_manifests(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ProtocolError(f"not UTF-8: {error}") from error
    header, machines = manifests[0], manifests[1:]
    _check("task request", header, HEADER, HEADER_OPTIONAL)
    if not machines:
        raise ProtocolError("no machine")
    for machine in machines:
        _check("machine", machine, MACHINE, MACHINE_OPTIONAL)
    return header, machines


def _check(what: str, manifest: Manifest, required: set[str], optional: set[str]) -> None:
    for name in sorted(required):
        if not manifest.get(name):
            raise ProtocolError(f"{what}: {name} is missing")
    for name in sorted(manifest.keys() - required - optional):
        raise ProtocolError(f"{what}: {name} is unknown")


class Controller:
    """A controller that serves on a thread of its own while the context lasts."""

    def __init__(self, address: str, port: int = 0, log: Path | None = None):
        self.requests: list[Request] = []
        self._arrived = threading.Condition()
        self._log = log
        self._server = _Server((address, port), _Handler)
        self._server.controller = self
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def url(self) -> str:
        address, port = self._server.server_address[:2]
        return f"http://{address!s}:{port}/"

    def __enter__(self) -> Controller:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def note(self, request: Request) -> None:
        """Records a request."""
        with self._arrived:
            self.requests.append(request)
            if self._log:
                with self._log.open("a") as log:
                    log.write(json.dumps(asdict(request)) + "\n")
            self._arrived.notify_all()

    def wait_for_requests(self, count: int, deadline: float) -> list[Request]:
        """The first `count` requests, or those that came within `deadline` seconds."""
        with self._arrived:
            self._arrived.wait_for(lambda: len(self.requests) >= count, deadline)
            return list(self.requests)


class _Server(ThreadingHTTPServer):
    controller: Controller
    daemon_threads = True


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 30
    """Seconds that a client may let the connection idle."""

    def do_POST(self) -> None:  # noqa: N802 (the name is http.server's)
        try:
            length = int(self.headers.get("Content-Length", ""))
        except ValueError:
            length = -1
        if length < 0:
            self.refuse(411, "no Content-Length")
        elif length > MAX_REQUEST:
            self.refuse(413, f"{length} bytes, more than {MAX_REQUEST}")
        else:
            try:
                header, machines = parse_task_request(self.rfile.read(length))
            except ProtocolError as error:
                self.refuse(400, str(error))
                return
            toolchain = f"{header['toolchain-name']} {header['toolchain-version']}"
            names = [machine["name"] for machine in machines]
            self.note(200, agent=header["agent"], toolchain=toolchain, machines=names)
            self.answer(200, "text/manifest; charset=utf-8", NOTHING_TO_DO)

    def do_GET(self) -> None:  # noqa: N802
        self.refuse(405, "task requests are POSTed")

    def refuse(self, status: int, reason: str) -> None:
        self.note(status, error=reason)
        self.close_connection = True
        self.answer(status, "text/plain; charset=utf-8", f"{reason}\n".encode())

    def note(self, status: int, **fields: object) -> None:
        client = str(self.client_address[0])
        self.server.controller.note(
            Request(time.time(), client, self.command, self.path, status, **fields)  # type: ignore[arg-type]
        )

    def answer(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:
        """The log is the record of requests."""


def _endpoint(text: str) -> tuple[str, int]:
    address, colon, port = text.rpartition(":")
    if not colon or not address or not port.isdecimal() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not ADDRESS:PORT")
    return address, int(port)


def main() -> int:
    parser = argparse.ArgumentParser(description="A stand-in for a build2 controller.")
    parser.add_argument("--listen", type=_endpoint, required=True, metavar="ADDRESS:PORT")
    parser.add_argument("--log", type=Path, metavar="FILE.jsonl", help="append requests to it")
    arguments = parser.parse_args()
    end = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: end.set())
    address, port = arguments.listen
    with Controller(address, port, arguments.log) as controller:
        print(f"controller: listening on {controller.url}", flush=True)
        end.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
