#!/usr/bin/python3
"""Stands in for a build2 controller, brep: accepts task requests, results and uploads, and
hands out tasks as its script says. build_queue.py has the rules.

    controller.py --listen ADDRESS:PORT [--log FILE.jsonl] [--script FILE.json] [--keys DIR]

DIR has the agents' public keys, *.pem, and in `bots` those of packages, all read once. With it
agents are authenticated.

Each request is a line of JSON in the log:

    time       seconds since the epoch
    client     address
    method     of HTTP
    path
    status     of the answer
    agent      of a task request, as are `toolchain` and `machines`
    session    of the task that answers a task request, or of a result
    result     the manifest of a result
    upload     the name of an uploaded archive
    error      the reason of a refusal, or why a result was dropped with 200

Like a real controller it answers a request that breaks the protocol with 400 or 413.
Task requests carry no priority: to count them by priority, use a path for each.

The controller reads its script at each request. It maps paths (without query string), or
"*" for all other paths, to:

    tasks        number of tasks to hand out since the start (0), those handed out again included
    source       URL of the C program to build
    machine      pattern of the machine's name ("**")
    auxiliary    patterns of auxiliary machines' names, without their architecture
    interactive  true: a person logs in
    login        list of [EXPRESSION, REPLACEMENT] for "AGENT LOGIN"
    bot_keys     fingerprints of the custom bots that may build, if not the agents of DIR
    checksums    stored checksums of agent, worker, dependencies: a result may be `skip`
    upload       TYPE: limit in bytes, or 0 for 10 MiB
    expire       seconds after which the task is handed out again
    gone         true: the build is forgotten before its result arrives
    delay        seconds before each answer
    answer       "away": no answer; "garbage": not a manifest; a number: that HTTP error

In a test: `with Controller("192.0.2.1", 0) as controller: controller.requests`.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import signal
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from urllib.parse import parse_qs, urlsplit

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from simlan.agent_keys import Keys
from simlan.build_queue import UPLOAD_LIMIT, Job, Queue, Refusal
from simlan.manifests import (
    MAX_REQUEST,
    MAX_RESULT,
    Manifest,
    ProtocolError,
    parse_form,
    parse_result,
    parse_task_request,
    write_manifests,
)

NOTHING_TO_DO = b": 1\nsession:\n"

MANIFEST = "text/manifest; charset=utf-8"
TEXT = "text/plain; charset=utf-8"

CHUNK = 1 << 20
"""Bytes that are read at once."""


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
    upload: str | None = None
    error: str | None = None


class Controller:
    """A controller that serves in a thread while the context lasts."""

    def __init__(
        self,
        address: str,
        port: int = 0,
        log: Path | None = None,
        script: Path | None = None,
        keys: Path | None = None,
        now: Callable[[], float] = time.time,
    ):
        self.requests: list[Request] = []
        self.queue = Queue(Keys.read(keys) if keys else None, now)
        self._script = script
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

    def job(self, path: str) -> Job:
        """Returns the script's current entry for a path."""
        if self._script is None or not self._script.exists():
            return Job()
        script = json.loads(self._script.read_text())
        return Job(**script.get(path, script.get("*", {})))

    def task(
        self, path: str, mode: str, header: Manifest, machines: list[Manifest]
    ) -> tuple[str | None, bytes]:
        """Returns the session of the next task for a path, `None` without a task, and the
        answer."""
        job = self.job(path)
        with self._arrived:
            found = self.queue.request(path, mode, job, header, machines)
        if found is None:
            return None, NOTHING_TO_DO
        session, challenge, task = found
        url = self.url.rstrip("/") + path
        answer = {"session": session, "result-url": f"{url}?build-result"}
        if challenge:
            answer["challenge"] = challenge
        if job.checksums:
            answer["agent-checksum"] = job.checksums[0]
        answer |= {f"{kind}-upload-url": f"{url}?upload={kind}" for kind in job.upload}
        return session, write_manifests([answer, task])

    def finish(self, header: Manifest, result: Manifest) -> str | None:
        """Takes a result. Returns why it is dropped."""
        with self._arrived:
            return self.queue.finish(header, result)

    def upload(self, form: dict[str, bytes]) -> str | None:
        """Takes an upload. Returns why it is dropped."""
        text = {name: value.decode(errors="replace") for name, value in form.items()}
        for name in ("session", "instance", "archive", "sha256sum"):
            if not text.get(name):
                raise Refusal(400, f"upload {name} expected")
        if len(text["sha256sum"]) != 64:
            raise Refusal(400, "invalid upload archive checksum")
        with self._arrived:
            session, reason = self.queue.upload(text["session"], text.get("challenge"))
        if session is None:
            return reason
        if hashlib.sha256(form["archive"]).hexdigest() != text["sha256sum"]:
            raise Refusal(422, "upload archive checksum mismatch")
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
        url = urlsplit(self.path)
        query = parse_qs(url.query, keep_blank_values=True)
        job = self.server.controller.job(url.path)
        try:
            body = self.read(job, query)
            time.sleep(job.delay)
            if job.answer == "away":
                self.note(0, error="away")
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
            elif job.answer == "garbage":
                self.note(200, error="garbage")
                self.answer(200, "text/html", b"<html>\0\xff</html>\n")
            elif isinstance(job.answer, int):
                self.refuse(job.answer, "as the script says")
            elif "build-result" in query:
                self.take_result(body)
            elif "upload" in query:
                self.take_upload(query["upload"][0], body)
            else:
                self.take_request(url.path, query.get("interactive", ["both"])[0], body)
        except ProtocolError as error:
            self.refuse(400, str(error))
        except Refusal as refusal:
            self.refuse(refusal.status, str(refusal))

    def read(self, job: Job, query: dict[str, list[str]]) -> bytes:
        """Reads the body, unless it is longer than its kind may be."""
        limit = MAX_RESULT if "build-result" in query else MAX_REQUEST
        if "upload" in query:
            kind = query["upload"][0]
            if kind not in job.upload:
                raise Refusal(404, f"{kind} upload disabled")
            limit = job.upload[kind] or UPLOAD_LIMIT
        try:
            length = int(self.headers.get("Content-Length", ""))
        except ValueError:
            length = -1
        if length < 0:
            raise Refusal(411, "no Content-Length")
        if length > limit:
            # An unread body would make the kernel reset the connection before the answer.
            for _ in range(length // CHUNK + 1):
                self.rfile.read(min(CHUNK, length))
                length -= min(CHUNK, length)
            raise Refusal(413, f"more than {limit} bytes")
        return self.rfile.read(length)

    def take_request(self, path: str, mode: str, body: bytes) -> None:
        header, machines = parse_task_request(body)
        toolchain = f"{header['toolchain-name']} {header['toolchain-version']}"
        names = [machine["name"] for machine in machines]
        session, answer = self.server.controller.task(path, mode, header, machines)
        self.note(200, agent=header["agent"], toolchain=toolchain, machines=names, session=session)
        self.answer(200, MANIFEST, answer)

    def take_result(self, body: bytes) -> None:
        header, result = parse_result(body)
        dropped = self.server.controller.finish(header, result)
        self.note(200, session=header["session"], result=result, error=dropped)
        self.answer(200, MANIFEST, b"")

    def take_upload(self, kind: str, body: bytes) -> None:
        form = parse_form(self.headers.get("Content-Type", ""), body)
        dropped = self.server.controller.upload(form)
        session = form["session"].decode()
        self.note(200, session=session, upload=kind, error=dropped)
        message = {"status": "200", "message": f"{kind} upload is queued"}
        self.answer(200, MANIFEST, write_manifests([message]))

    def do_GET(self) -> None:  # noqa: N802
        self.refuse(405, "task requests are POSTed")

    def refuse(self, status: int, reason: str) -> None:
        self.note(status, error=reason)
        self.close_connection = True
        self.answer(status, TEXT, f"{reason}\n".encode())

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
    parser.add_argument(
        "--keys", type=Path, metavar="DIR", help="authenticate agents by these public keys"
    )
    arguments = parser.parse_args()
    end = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: end.set())
    address, port = arguments.listen
    with Controller(
        address, port, arguments.log, arguments.script, arguments.keys
    ) as controller:
        print(f"controller: listening on {controller.url}", flush=True)
        end.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
