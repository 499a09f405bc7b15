"""Tests that the stand-in for a controller decides as brep does, by brep's published sources
(mod/mod-build-task.cxx, mod-build-result.cxx, mod-upload.cxx, build-result-module.cxx)."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from simlan.agent_keys import Keys, fingerprint
from simlan.build_queue import Job, Queue, Refusal, matches
from simlan.controller import Controller
from simlan.manifests import MAX_REQUEST, MAX_RESULT, Manifest, write_manifests

HOUR = 3600.0
BUILD = {"id": "d13-1", "name": "linux_debian_13-gcc_14", "summary": "Debian"}
OTHER = {"id": "d12-1", "name": "linux_debian_12-gcc_12", "summary": "Debian"}


class Clock:
    """A clock that a test sets."""

    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def header(**values: str) -> Manifest:
    names = {name.replace("_", "-"): value for name, value in values.items()}
    return {"agent": "b1", "toolchain-name": "public", "toolchain-version": "0.17.0", **names}


def auxiliary(name: str, ram: int | None = None) -> Manifest:
    machine = {"id": name, "name": name, "summary": name, "role": "auxiliary"}
    return machine if ram is None else {**machine, "ram-minimum": str(ram)}


def ask(queue: Queue, job: Job, *machines: Manifest, url: str = "both", **values: str) -> Any:
    return queue.request("/", url, job, header(**values), machines or (BUILD,))


def result(session: str, status: str = "success", **checksums: str) -> tuple[Manifest, Manifest]:
    name = session.split("/")[1]
    return {"session": session}, {"name": name, "version": "1.0.0", "status": status, **checksums}


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """RSA keys: agent.key is known, bot.key is one of a package, stranger.key is unknown."""
    directory = tmp_path_factory.mktemp("keys")
    (directory / "known/bots").mkdir(parents=True)
    for name, place in (("agent", "known"), ("bot", "known/bots"), ("stranger", ".")):
        key = directory / f"{name}.key"
        subprocess.run(["openssl", "genrsa", "-out", str(key), "2048"], check=True)
        public = ["openssl", "pkey", "-in", str(key), "-pubout", "-out"]
        subprocess.run([*public, str(directory / place / f"{name}.pem")], check=True)
    return directory


def sign(key: Path, challenge: str) -> str:
    command = ["openssl", "pkeyutl", "-sign", "-inkey", str(key)]
    return base64.b64encode(subprocess.check_output(command, input=challenge.encode())).decode()


def authenticating(keys: Path) -> tuple[Queue, str, str, str]:
    """Returns a queue and the fingerprints of agent, custom bot and stranger."""
    names = ("known/agent", "known/bots/bot", "stranger")
    agent, bot, stranger = (fingerprint(keys / f"{name}.pem") for name in names)
    return Queue(Keys.read(keys / "known")), agent, bot, stranger


def test_session_has_the_nine_parts_of_brep() -> None:
    session, challenge, task = ask(Queue(now=Clock()), Job(tasks=1))
    *parts, stamp = session.split("/")
    assert parts == [
        *("", "hello-1", "1.0.0", "x86_64-linux-gnu", "linux", "default", "public", "0.17.0"),
    ]
    assert int(stamp) == 1_000_000_000_000_000
    assert challenge is None
    assert task["machine"] == BUILD["name"]


def test_first_machine_that_matches_is_picked() -> None:
    def picked(pattern: str) -> str | None:
        found = ask(Queue(), Job(tasks=1, machine=pattern), OTHER, BUILD)
        return str(found[2]["machine"]) if found else None

    assert picked("linux_debian_*-gcc*") == OTHER["name"]
    assert picked("linux_debian_13-*") == BUILD["name"]
    # A `*` matches within a component.
    assert picked("linux*") is None
    assert picked("linux**") == OTHER["name"]
    assert matches("a-b-c", "a-**") and not matches("a-b-c", "a-*")


def test_wrongly_named_auxiliary_machine_refuses_the_whole_request() -> None:
    for name, reason in (
        ("linux", "no OS component in machine name 'linux'"),
        ("-linux", "no architecture component in machine name '-linux'"),
        ("x86_64-", "no OS component in machine name 'x86_64-'"),
    ):
        # The task needs no auxiliary machine, and the queue is empty.
        with pytest.raises(Refusal, match=reason) as refusal:
            ask(Queue(), Job(), BUILD, auxiliary(name))
        assert refusal.value.status == 400


def test_auxiliary_machines_fit_into_their_ram() -> None:
    machines = (BUILD, auxiliary("x86_64-linux-postgresql_16", 300), auxiliary("x86_64-linux-mysql_8", 500))
    both = Job(tasks=1, auxiliary=["linux-postgresql_*", "linux-mysql_*"])

    def picked(**values: str) -> list[str] | None:
        found = ask(Queue(), both, *machines, **values)
        return found and [v for n, v in found[2].items() if n.startswith("auxiliary")]

    assert picked(auxiliary_ram="800") == [m["name"] for m in machines[1:]]
    assert picked(auxiliary_ram="799") is None
    assert picked(auxiliary_ram="0") is None
    # Without a limit in the request every machine fits.
    assert picked() == [m["name"] for m in machines[1:]]
    # A machine without ram-minimum always fits.
    free = ask(Queue(), Job(tasks=1, auxiliary=["linux*"]), BUILD, auxiliary("x86_64-linux"), auxiliary_ram="0")
    assert free[2]["auxiliary-machine-1"] == "x86_64-linux"


def test_auxiliary_machine_serves_one_pattern_and_a_task_has_at_most_nine() -> None:
    machines = [auxiliary(f"x86_64-linux-{i}") for i in range(10)]
    nine = ask(Queue(), Job(tasks=1, auxiliary=["linux-*"] * 9), BUILD, *machines)
    names = {v for n, v in nine[2].items() if n.startswith("auxiliary")}
    assert len(names) == 9
    assert ask(Queue(), Job(tasks=1, auxiliary=["linux-*"] * 10), BUILD, *machines) is None


def test_interactive_mode_of_url_and_request_restrict_each_other() -> None:
    def modes(interactive: bool) -> Sequence[tuple[str, str]]:
        job = Job(tasks=1, interactive=interactive)
        values = ("false", "true", "both")
        return [(u, r) for u in values for r in values if ask(Queue(), job, url=u, interactive_mode=r)]

    assert modes(True) == [("true", "true"), ("true", "both"), ("both", "true"), ("both", "both")]
    assert modes(False) == [("false", "false"), ("false", "both"), ("both", "false"), ("both", "both")]


def test_login_that_no_expression_matches_is_refused() -> None:
    job = Job(tasks=1, interactive=True, login=[(r"^b1 (\S+)$", r"ssh \1")])
    assert ask(Queue(), job, interactive_mode="true", interactive_login="machine")
    with pytest.raises(Refusal, match="unable to match login info 'b1 a b'") as refusal:
        ask(Queue(), job, interactive_mode="true", interactive_login="a b")
    assert refusal.value.status == 400


def test_request_without_fingerprint_is_unauthorized(keys: Path) -> None:
    queue, *_ = authenticating(keys)
    with pytest.raises(Refusal) as refusal:
        ask(queue, Job(tasks=1))
    assert refusal.value.status == 401
    # Without configured keys a fingerprint is ignored.
    assert ask(Queue(), Job(tasks=1), fingerprint="x")[1] is None


def test_unknown_key_silently_gets_nothing_but_tasks_of_its_packages(keys: Path) -> None:
    queue, agent, bot, stranger = authenticating(keys)
    assert ask(queue, Job(tasks=9), fingerprint=stranger) is None
    assert ask(queue, Job(tasks=9), fingerprint=bot) is None
    assert ask(queue, Job(tasks=9, bot_keys=[bot]), fingerprint=bot)
    # Only custom bots build a package that names keys.
    assert ask(queue, Job(tasks=9, bot_keys=[bot]), fingerprint=agent) is None
    assert ask(queue, Job(tasks=9), fingerprint=agent)


def test_result_needs_the_signature_of_the_key_that_asked(keys: Path) -> None:
    queue, agent, *_ = authenticating(keys)
    session, challenge, _ = ask(queue, Job(tasks=9), fingerprint=agent)
    values, manifest = result(session)
    assert queue.finish(values, manifest) == "not authenticated: a challenge is expected"
    for wrong in ("!", "AAAA", sign(keys / "stranger.key", challenge), sign(keys / "agent.key", "x")):
        assert queue.finish({**values, "challenge": wrong}, manifest) == "not authenticated"
    signed = {**values, "challenge": sign(keys / "agent.key", challenge)}
    assert queue.finish(signed, manifest) is None
    assert queue.finish(signed, manifest) == "expired session: not building"


def test_fingerprint_is_sha256_of_the_der_public_key(keys: Path) -> None:
    pem = (keys / "known/agent.pem").read_text().splitlines()
    der = base64.b64decode("".join(line for line in pem if "-" not in line))
    assert fingerprint(keys / "known/agent.pem") == hashlib.sha256(der).hexdigest()


def test_result_after_hours_counts_until_the_task_is_handed_out_again() -> None:
    clock = Clock()
    queue = Queue(now=clock)
    job = Job(tasks=9)
    late, lost = ask(queue, job)[0], ask(queue, job)[0]
    clock.now += 9 * HOUR
    assert queue.finish(*result(late, "abort")) is None
    again = ask(queue, job)[0]
    assert again.split("/")[:8] == lost.split("/")[:8] and again != lost
    assert queue.finish(*result(lost, "abort")) == "expired session: not building"
    assert queue.finish(*result(again)) is None


def test_interrupted_task_is_handed_out_again_at_once() -> None:
    queue = Queue(now=Clock())
    job = Job(tasks=9)
    session = ask(queue, job)[0]
    assert queue.finish(*result(session, "interrupt")) is None
    assert ask(queue, job)[0].split("/")[1] == "hello-1"
    assert ask(queue, job)[0].split("/")[1] == "hello-2"


def test_killed_task_is_handed_out_again_after_three_hours() -> None:
    clock = Clock()
    queue = Queue(now=clock)
    assert ask(queue, Job(tasks=9))[2]["name"] == "hello-1"
    clock.now += 3 * HOUR - 1
    assert ask(queue, Job(tasks=9))[2]["name"] == "hello-2"
    clock.now += 2
    assert ask(queue, Job(tasks=9))[2]["name"] == "hello-1"


def test_skip_needs_three_equal_checksums() -> None:
    sums = {"agent-checksum": "a", "worker-checksum": "w", "dependency-checksum": "d"}

    def finish(stored: Sequence[str], **given: str) -> str | None:
        queue = Queue()
        values, manifest = result(ask(queue, Job(tasks=1, checksums=stored))[0], "skip")
        agent = {n: v for n, v in given.items() if n == "agent-checksum"}
        worker = {n: v for n, v in given.items() if n != "agent-checksum"}
        return queue.finish({**values, **agent}, {**manifest, **worker})

    assert finish("awd", **sums) is None
    with pytest.raises(Refusal, match="unexpected skip"):
        finish("", **sums)
    for name in sums:
        with pytest.raises(Refusal, match=f"{name} .* is expected instead of 'x'"):
            finish("awd", **{**sums, name: "x"})
        with pytest.raises(Refusal, match=f"{name} .* is expected instead of None"):
            finish("awd", **{n: v for n, v in sums.items() if n != name})


def test_malformed_session_and_different_package_are_refused() -> None:
    queue = Queue()
    session = ask(queue, Job(tasks=1))[0]
    values, manifest = result(session)
    with pytest.raises(Refusal, match="mismatch"):
        queue.finish(values, {**manifest, "version": "2.0.0"})
    with pytest.raises(Refusal, match="invalid session"):
        queue.finish({"session": "/hello-1/1.0.0"}, manifest)
    # A well-formed session that does not exist is silently dropped.
    unknown = session.rpartition("/")[0] + "/1"
    assert queue.finish(*result(unknown)) == "expired session: no package build"


def form(**values: str) -> tuple[str, bytes]:
    """Returns content type and body of an upload."""
    parts = [
        f'--x\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'
        for name, value in values.items()
    ]
    return "multipart/form-data; boundary=x", ("".join(parts) + "--x--\r\n").encode()


def post(url: str, body: bytes, kind: str = "text/manifest") -> tuple[int, bytes]:
    request = urllib.request.Request(url, body, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=10) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def test_uploads_are_checked_by_type_size_and_checksum(tmp_path: Path) -> None:
    script = tmp_path / "script.json"
    script.write_text(json.dumps({"*": {"tasks": 1, "upload": {"archive": 0, "small": 600}}}))
    with Controller("127.0.0.1", script=script) as controller:
        answer = post(controller.url, write_manifests([header(), BUILD]))[1].decode()
        lines = dict(line.split(": ", 1) for line in answer.splitlines() if ": " in line and line != ": 1")
        urls = {kind: lines[f"{kind}-upload-url"] for kind in ("archive", "small")}
        assert urls["archive"] == f"{controller.url}?upload=archive"
        values = {
            "session": lines["session"],
            "instance": "archive",
            "archive": "content",
            "sha256sum": hashlib.sha256(b"content").hexdigest(),
        }

        def upload(url: str, **changes: str) -> int:
            kind, body = form(**{**values, **changes})
            return post(url, body, kind)[0]

        assert upload(urls["archive"]) == 200
        assert upload(f"{controller.url}?upload=bindist") == 404
        assert upload(urls["small"]) == 200
        assert upload(urls["small"], archive="x" * 600) == 413
        assert upload(urls["archive"], archive="x" * 10_485_760) == 413
        assert upload(urls["archive"], archive="other") == 422
        assert upload(urls["archive"], sha256sum="ab") == 400
        assert upload(urls["archive"], instance="") == 400
        # An expired session is answered like a valid one.
        unknown = lines["session"].rpartition("/")[0] + "/1"
        assert upload(urls["archive"], session=unknown) == 200
        assert controller.requests[-1].error == "expired session: no package build"


def test_requests_over_100_kib_and_results_over_15_mib_are_refused() -> None:
    with Controller("127.0.0.1") as controller:
        request = write_manifests([header(), BUILD])
        comment = b"#" + b"x" * (MAX_REQUEST - len(request) - 2) + b"\n"
        assert post(controller.url, request + comment)[0] == 200
        assert post(controller.url, request + comment + b"\n")[0] == 413
        assert post(f"{controller.url}?build-result", b"#" * (MAX_RESULT + 1))[0] == 413
        # 400: accepted by its length.
        assert post(f"{controller.url}?build-result", b"#" * MAX_RESULT)[0] == 400
