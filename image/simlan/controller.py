#!/usr/bin/python3
"""Stands in for a build2 controller: accepts task requests and results, and hands out
tasks as its script says.

    controller.py --listen ADDRESS:PORT [--log FILE.jsonl] [--script FILE.json]

Each request is a line of JSON in the log:

    time       seconds since the epoch
    client     address
    method     of HTTP
    path
    status     of the answer
    agent      of a task request, as are `toolchain` and `machines`
    session    of the task that answers a task request, or of a result
    result     the manifest of a result
    error      the reason of a refusal

Like a real controller it answers a request that breaks the protocol with 400 or 413.
Task requests carry no priority: to count them by priority, use a path for each.

The controller reads its script at each request. It maps paths, or "*" for all other
paths, to:

    tasks      number of tasks to hand out since the start (0)
    source     URL of the C program to build
    challenge  true: the result must answer a challenge
    expire     seconds until a result is too late
    delay      seconds before each answer
    answer     "away": no answer; "garbage": not a manifest; a number: that HTTP error

In a test: `with Controller("192.0.2.1", 0) as controller: controller.requests`.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import socket
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType

MAX_REQUEST = 102_400
"""Limit of a task request, in bytes."""

MAX_RESULT = 15_728_640
"""Limit of a result, in bytes."""

RESULT_PATH = "/result"
"""The path of results."""

HEADER = {"agent", "toolchain-name", "toolchain-version"}
HEADER_OPTIONAL = {"interactive-mode", "interactive-login", "fingerprint", "auxiliary-ram"}
MACHINE = {"id", "name", "summary"}
MACHINE_OPTIONAL = {"role", "ram-minimum", "ram-maximum"}

RESULT = {"name", "version", "status"}
STATUSES = {"skip", "success", "warning", "error", "abort", "abnormal", "interrupt"}

NOTHING_TO_DO = b": 1\nsession:\n"

_NAME = re.compile(r"[a-z0-9-]+")

Manifest = dict[str, str]


class ProtocolError(Exception):
    """A body that breaks the protocol, with place and reason."""


@dataclass
class Request:
    """A request, and the status of its answer."""

    time: float
    client: str
    method: str
    path: str
    status: int
    agent: str | None = None
    toolchain: str | None = None
    machines: list[str] = field(default_factory=list)
    session: str | None = None
    result: Manifest | None = None
    error: str | None = None


@dataclass
class Behaviour:
    """The script's entry for a path, see the top."""

    tasks: int = 0
    source: str = ""
    challenge: bool = False
    expire: float = 10_800
    delay: float = 0
    answer: str | int = "task"


@dataclass
class Session:
    """A task that was handed out."""

    started: float
    expire: float
    challenge: str | None
    done: bool = False


def parse_manifests(body: str) -> list[Manifest]:
    """Parses the manifests of a body: `: 1` before the first, `:` before the others,
    then `name: value`. A value of several lines is between `name:\\` and `\\`."""
    manifests: list[Manifest] = []
    lines = enumerate(body.split("\n"), 1)
    for number, raw in lines:
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
        if name in manifests[-1]:
            raise ProtocolError(f"line {number}: {name} occurs twice")
        if value == "\\":
            text = []
            for _, more in lines:
                if more.strip() == "\\":
                    break
                text.append(more)
            else:
                raise ProtocolError(f"line {number}: the value of {name} has no end")
            manifests[-1][name] = "\n".join(text)
            continue
        if any(ord(c) < 32 or ord(c) == 127 for c in value):
            raise ProtocolError(f"line {number}: control character in the value of {name}")
        manifests[-1][name] = value
    if not manifests:
        raise ProtocolError("no manifest")
    return manifests


def parse_task_request(body: bytes) -> tuple[Manifest, list[Manifest]]:
    """Parses the header and the machines of a task request."""
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
    for manifest in (header, *machines):
        for name, value in manifest.items():
            if "\n" in value:
                raise ProtocolError(f"the value of {name} has several lines")
    return header, machines


def parse_result(body: bytes) -> tuple[Manifest, Manifest]:
    """Parses the header and the result manifest of a result."""
    manifests = parse_manifests(body.decode("utf-8", errors="replace"))
    if len(manifests) != 2:
        raise ProtocolError(f"result: 2 manifests are expected, not {len(manifests)}")
    header, result = manifests
    _check("result request", header, {"session"}, {"challenge"})
    operations = {n for n in result if re.fullmatch(r"[a-z-]+-(status|log)", n)}
    _check("result", result, RESULT, operations)
    for name in result:
        if name.endswith("status") and result[name] not in STATUSES:
            raise ProtocolError(f"result: {name} is {result[name]!r}")
    return header, result


def _check(what: str, manifest: Manifest, required: set[str], optional: set[str]) -> None:
    for name in sorted(required):
        if not manifest.get(name):
            raise ProtocolError(f"{what}: {name} is missing")
    for name in sorted(manifest.keys() - required - optional):
        raise ProtocolError(f"{what}: {name} is unknown")


def write_manifests(manifests: list[Manifest]) -> bytes:
    """Makes a body of manifests without values of several lines."""
    lines = []
    for index, manifest in enumerate(manifests):
        lines.append(":" if index else ": 1")
        lines += [f"{name}: {value}".rstrip() for name, value in manifest.items()]
    return ("\n".join(lines) + "\n").encode()


class Controller:
    """A controller that serves in a thread while the context lasts."""

    def __init__(
        self,
        address: str,
        port: int = 0,
        log: Path | None = None,
        script: Path | None = None,
    ):
        self.requests: list[Request] = []
        self.sessions: dict[str, Session] = {}
        self._script = script
        self._handed: dict[str, int] = {}
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

    def behaviour(self, path: str) -> Behaviour:
        """Returns the script's current entry for a path."""
        if self._script is None or not self._script.exists():
            return Behaviour()
        script = json.loads(self._script.read_text())
        return Behaviour(**script.get(path, script.get("*", {})))

    def task(self, path: str, machine: Manifest) -> tuple[str | None, bytes]:
        """Returns the session of the next task for a path, `None` without a task, and the
        answer."""
        behaviour = self.behaviour(path)
        with self._arrived:
            number = self._handed.get(path, 0) + 1
            if number > behaviour.tasks:
                return None, NOTHING_TO_DO
            self._handed[path] = number
            session = f"{path.strip('/') or 'task'}/{number}"
            challenge = f"challenge-{number}" if behaviour.challenge else None
            self.sessions[session] = Session(time.time(), behaviour.expire, challenge)
        header = {"session": session, "result-url": self.url.rstrip("/") + RESULT_PATH}
        if challenge:
            header["challenge"] = challenge
        task = {
            "name": f"hello-{number}",
            "version": "1.0.0",
            "repository-url": behaviour.source,
            "repository-type": "pkg",
            "machine": machine["name"],
            "target": "x86_64-linux-gnu",
        }
        return session, write_manifests([header, task])

    def finish(self, header: Manifest) -> str | None:
        """Accepts a result. Returns the reason of a refusal, which is not sent to the agent."""
        with self._arrived:
            session = self.sessions.get(header["session"])
            if session is None:
                return "unknown session"
            if session.done:
                return "second result"
            if time.time() > session.started + session.expire:
                return "expired session"
            if session.challenge and session.challenge not in header.get("challenge", ""):
                return "not authenticated"
            session.done = True
            return None

    def note(self, request: Request) -> None:
        """Records a request."""
        with self._arrived:
            self.requests.append(request)
            if self._log:
                with self._log.open("a") as log:
                    log.write(json.dumps(asdict(request)) + "\n")
            self._arrived.notify_all()

    def polls(self) -> Counter[str]:
        """Returns the number of task requests, by path."""
        with self._arrived:
            return Counter(request.path for request in self.requests if request.agent)

    def wait_for_requests(self, count: int, deadline: float) -> list[Request]:
        """Waits for `count` requests or `deadline` seconds; returns the requests."""
        with self._arrived:
            self._arrived.wait_for(lambda: len(self.requests) >= count, deadline)
            return list(self.requests)


class _Server(ThreadingHTTPServer):
    controller: Controller
    daemon_threads = True


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 30
    """Seconds that a connection may be idle."""

    def do_POST(self) -> None:  # noqa: N802 (the name is http.server's)
        is_result = self.path == RESULT_PATH
        limit = MAX_RESULT if is_result else MAX_REQUEST
        try:
            length = int(self.headers.get("Content-Length", ""))
        except ValueError:
            length = -1
        if length < 0:
            self.refuse(411, "no Content-Length")
            return
        if length > limit:
            self.refuse(413, f"{length} bytes, more than {limit}")
            return
        body = self.rfile.read(length)
        behaviour = self.server.controller.behaviour(self.path)
        time.sleep(behaviour.delay)
        try:
            if behaviour.answer == "away":
                self.note(0, error="away")
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
            elif behaviour.answer == "garbage":
                self.note(200, error="garbage")
                self.answer(200, "text/html", b"<html>\0\xff</html>\n")
            elif isinstance(behaviour.answer, int):
                self.refuse(behaviour.answer, "as the script says")
            elif is_result:
                self.take_result(body)
            else:
                self.take_request(body)
        except ProtocolError as error:
            self.refuse(400, str(error))

    def take_request(self, body: bytes) -> None:
        header, machines = parse_task_request(body)
        toolchain = f"{header['toolchain-name']} {header['toolchain-version']}"
        names = [machine["name"] for machine in machines]
        session, answer = self.server.controller.task(self.path, machines[0])
        self.note(200, agent=header["agent"], toolchain=toolchain, machines=names, session=session)
        self.answer(200, "text/manifest; charset=utf-8", answer)

    def take_result(self, body: bytes) -> None:
        header, result = parse_result(body)
        refusal = self.server.controller.finish(header)
        self.note(200, session=header["session"], result=result, error=refusal)
        self.answer(200, "text/manifest; charset=utf-8", b"")

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
        """Does nothing: `note` logs requests."""


def _endpoint(text: str) -> tuple[str, int]:
    address, colon, port = text.rpartition(":")
    if not colon or not address or not port.isdecimal() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not ADDRESS:PORT")
    return address, int(port)


def main() -> int:
    parser = argparse.ArgumentParser(description="The double of a build2 controller.")
    parser.add_argument("--listen", type=_endpoint, required=True, metavar="ADDRESS:PORT")
    parser.add_argument(
        "--log", type=Path, metavar="FILE.jsonl", help="append requests to the file"
    )
    parser.add_argument(
        "--script", type=Path, metavar="FILE.json", help="read the script from the file"
    )
    arguments = parser.parse_args()
    end = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: end.set())
    address, port = arguments.listen
    with Controller(address, port, arguments.log, arguments.script) as controller:
        print(f"controller: listening on {controller.url}", flush=True)
        end.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
