"""Tests the FleetLock double, with requests as buildos-updated makes them."""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet_lock import RELEASE, TAKE, Locks, server

HOSTS = 50
SLOTS = 3


@pytest.fixture
def locks() -> Locks:
    return Locks({"default": SLOTS})


@pytest.fixture
def url(locks: Locks, tmp_path: Path) -> Iterator[str]:
    listening = server("127.0.0.1", 0, tmp_path / "log", locks)
    thread = threading.Thread(target=listening.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{listening.server_address[1]}"
    listening.shutdown()
    thread.join()
    listening.server_close()


def post(url: str, id: str, group: str = "default", header: str = "true") -> tuple[int, str]:
    body = json.dumps({"client_params": {"id": id, "group": group}})
    command = ["curl", "--silent", "--noproxy", "*", "--data-binary", body, "--write-out", "\n%{http_code}"]  # fmt: skip
    command += ["--header", f"fleet-lock-protocol: {header}", url]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    answer, _, status = text.rpartition("\n")
    return int(status), answer


def test_slots_are_recursive_and_limited(url: str, locks: Locks) -> None:
    for id in ["a", "b", "c", "a"]:
        assert post(url + TAKE, id) == (200, "")
    status, answer = post(url + TAKE, "d")
    assert (status, json.loads(answer)["kind"]) == (409, "failed_lock")
    assert post(url + RELEASE, "d") == (200, "")
    assert post(url + RELEASE, "b") == (200, "")
    assert post(url + TAKE, "d") == (200, "")
    assert locks.holders["default"] == {"a", "c", "d"}


def test_malformed_requests_are_refused_with_kind_and_value(url: str) -> None:
    for path, id, group, header in [
        (TAKE, "a", "default", "false"),
        (TAKE, "", "default", "true"),
        (TAKE, "a", "other", "true"),
        ("/v1/other", "a", "default", "true"),
    ]:
        status, answer = post(url + path, id, group, header)
        assert status in (400, 404)
        assert set(json.loads(answer)) == {"kind", "value"}


def test_fifty_hosts_get_a_slot_one_after_the_other(locks: Locks) -> None:
    done: list[str] = []
    most = 0
    condition = threading.Condition()

    def host(id: str) -> None:
        nonlocal most
        with condition:
            assert condition.wait_for(lambda: locks.take("default", id)[0] == 200, timeout=60)
            most = max(most, len(locks.holders["default"]))
        # A repetition, as after an answer that was lost.
        assert locks.take("default", id)[0] == 200
        with condition:
            assert locks.release("default", id)[0] == 200
            done.append(id)
            condition.notify_all()

    threads = [threading.Thread(target=host, args=(str(number),)) for number in range(HOSTS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(done) == sorted(map(str, range(HOSTS)))
    assert most <= SLOTS and locks.holders["default"] == set()
