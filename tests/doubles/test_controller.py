"""Tests the stand-in for a controller: tasks, results, injected faults, bad requests."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from simlan.controller import NOTHING_TO_DO, Controller
from simlan.manifests import (
    ProtocolError,
    parse_manifests,
    parse_result,
    parse_task_request,
)

REQUEST = b"""\
: 1
agent: build-adbeefb8da
toolchain-name: default
toolchain-version: 0.17.0
:
id: linux_debian_13-gcc-1
name: linux_debian_13-gcc
summary: Debian 13, GCC
"""


def post(url: str, body: bytes) -> tuple[int, bytes]:
    try:
        with urllib.request.urlopen(url, data=body, timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_task_request_is_answered_and_logged(tmp_path: Path) -> None:
    log = tmp_path / "requests.jsonl"
    with Controller("127.0.0.1", log=log) as controller:
        assert post(f"{controller.url}?build-task", REQUEST) == (200, NOTHING_TO_DO)
        request = controller.wait_for_requests(1, deadline=10)[0]
    assert (request.agent, request.toolchain) == ("build-adbeefb8da", "default 0.17.0")
    assert (request.client, request.path) == ("127.0.0.1", "/?build-task")
    assert request.machines == ["linux_debian_13-gcc"]
    line = json.loads(log.read_text())
    assert (line["status"], line["agent"], line["error"]) == (200, "build-adbeefb8da", None)


def test_invalid_http_request_is_rejected() -> None:
    with Controller("127.0.0.1") as controller:
        assert post(controller.url, b"agent: x\n")[0] == 400
        assert post(controller.url, b"x" * 102_401)[0] == 413
        with pytest.raises(urllib.error.HTTPError, match="405"):
            urllib.request.urlopen(controller.url, timeout=10)
        assert post(controller.url, REQUEST)[0] == 200
        statuses = [request.status for request in controller.requests]
    assert statuses == [400, 413, 405, 200]


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b": 1\n", b"", "line 1"),
        (b": 1\n", b": 2\n", "line 1"),
        (b"agent: build-adbeefb8da\n", b"", "agent is missing"),
        (b"agent: build-adbeefb8da", b"agent:", "agent is missing"),
        (b"agent: build-adbeefb8da", b"agent: a\nagent: b", "line 3: agent occurs twice"),
        (b"agent:", b"color: red\nagent:", "color is unknown"),
        (b"summary: Debian 13, GCC\n", b"", "summary is missing"),
        (b"summary: Debian 13, GCC", b"summary:\\\nDebian\n13\n\\", "summary has several lines"),
        (b"summary: Debian 13, GCC", b"summary:\\\nDebian", "line 8: .* no end"),
        (b":\nid", b"id", "id is unknown"),
        (b"Debian", b"\xff", "not UTF-8"),
        (b"Debian", b"\x1b[2J", "control character"),
    ],
)
def test_invalid_task_request_is_rejected_with_the_reason(
    old: bytes, new: bytes, reason: str
) -> None:
    assert old in REQUEST
    with pytest.raises(ProtocolError, match=reason):
        parse_task_request(REQUEST.replace(old, new, 1))


RESULT = b"""\
: 1
session: task/1
:
name: hello-1
version: 1.0.0
status: success
update-status: success
update-log:\\
two
lines
\\
"""


def test_tasks_are_handed_out_and_results_accepted(tmp_path: Path) -> None:
    script = tmp_path / "script.json"
    task = {"tasks": 1, "source": "http://192.0.2.1/x.c"}
    script.write_text(json.dumps({"*": task, "/urgent": {"tasks": 1, "gone": True}}))
    with Controller("127.0.0.1", script=script) as controller:
        status, answer = post(f"{controller.url}?build-task", REQUEST)
        assert status == 200
        response, manifest = parse_manifests(answer.decode())
        assert manifest["repository-url"] == "http://192.0.2.1/x.c"
        assert manifest["machine"] == "linux_debian_13-gcc"
        # The script has one task only.
        assert post(controller.url, REQUEST) == (200, NOTHING_TO_DO)
        url = response["result-url"]
        assert url == f"{controller.url}?build-result"
        result = RESULT.replace(b"task/1", response["session"].encode())
        urgent = parse_manifests(post(f"{controller.url}urgent", REQUEST)[1].decode())[0]
        late = RESULT.replace(b"task/1", urgent["session"].encode())
        # The answer does not depend on the fate of the result.
        assert [post(url, body) for body in (result, result, late)] == [(200, b"")] * 3
        results = [request for request in controller.requests if request.result]
    assert [request.error for request in results] == [
        None,
        "expired session: not building",
        "expired session: no package build",
    ]
    assert results[0].result is not None
    assert results[0].result["update-log"] == "two\nlines"
    assert controller.polls() == {"/?build-task": 1, "/": 1, "/urgent": 1}


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        (b"session: task/1\n", b"", "session is missing"),
        (b":\nname", b"name", "2 manifests"),
        (b"version: 1.0.0\n", b"", "version is missing"),
        (b"status: success\n", b"status: good\n", "status is 'good'"),
        (b"update-status", b"color", "color is unknown"),
    ],
)
def test_invalid_result_is_rejected_with_the_reason(old: bytes, new: bytes, reason: str) -> None:
    assert old in RESULT
    with pytest.raises(ProtocolError, match=reason):
        parse_result(RESULT.replace(old, new, 1))


def test_script_injects_errors_delays_and_disconnects(tmp_path: Path) -> None:
    script = tmp_path / "script.json"
    with Controller("127.0.0.1", script=script) as controller:

        def ask(**behaviour: object) -> tuple[int, bytes]:
            script.write_text(json.dumps({"*": behaviour}))
            return post(controller.url, REQUEST)

        assert ask(answer=401)[0] == 401
        assert ask(answer=503)[0] == 503
        assert ask(answer="garbage")[1].startswith(b"<html>")
        with pytest.raises(ConnectionError):
            ask(answer="away")
        began = time.monotonic()
        assert ask(delay=0.5) == (200, NOTHING_TO_DO)
        assert time.monotonic() - began >= 0.5
        assert [r.status for r in controller.requests] == [401, 503, 200, 0, 200]


def test_task_request_without_machines_is_rejected() -> None:
    with pytest.raises(ProtocolError, match="no machine"):
        parse_task_request(REQUEST.split(b":\nid")[0])


def test_damaged_task_request_is_rejected_or_parsed() -> None:
    generator = random.Random(20)
    pieces = [b":", b"\n", b": 1\n", b"\\", b"\0", b"\xff", b"id: 2\n", b" ", b"x" * 50]
    refused = 0
    for _ in range(20_000):
        body = bytearray(REQUEST)
        for _ in range(generator.randint(1, 6)):
            at = generator.randrange(len(body) + 1)
            body[at : at + generator.randint(0, 5)] = generator.choice(pieces)
        try:
            header, machines = parse_task_request(bytes(body))
            assert header["agent"] and machines
        except ProtocolError:
            refused += 1
    assert 0 < refused < 20_000


def test_program_serves_until_sigterm() -> None:
    program = Path(__file__).resolve().parents[2] / "image/simlan/controller.py"
    command = [sys.executable, str(program), "--listen", "127.0.0.1:0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        assert post(url, REQUEST) == (200, NOTHING_TO_DO)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 0
