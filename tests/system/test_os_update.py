"""An operating system of the channel is decided about, fetched, and handed over after a drain.

A recorder stands in for the helper that starts it: it keeps the request and answers."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from typing import Any

import pytest
from agents import bslave, state, wait_for_state, wait_until_runs
from buildroot import TOP
from conftest import NewHost
from disk import Disk
from host import Host
from test_drain import AGENT, PROGRAM, SCRIPT, begin_task, end_task
from test_update_choices import chosen, disk, plug
from update_farm import Farm, update, updated

__all__ = ["disk"]

UNIT = "buildos-updated.service"
SPOOL = "/var/cache/buildos/updated"
TRIAL = "/run/buildos/trial/state"
PREVIOUS = "/run/buildos/previous"
LOCK_PORT = 3333

RECORDER = """#!/bin/sh
set -eu
mkdir -p /run/recorder /run/buildos/os-handover
cp /run/buildos/updated/os-request /run/recorder/request
ls /var/cache/buildos/updated/objects >/run/recorder/objects
cp /var/cache/buildos/updated/channel /run/recorder/channel
cp /etc/answer /run/buildos/os-handover/state.new
mv /run/buildos/os-handover/state.new /run/buildos/os-handover/state
"""


class Builds:
    """Files that image/build could have made."""

    def __init__(self, farm: Farm):
        self.farm = farm

    def make(self, version: str, size: int = 300_000) -> str:
        """Makes a pair; returns its digests."""
        directory = self.farm.directory / version
        directory.mkdir()
        sums = []
        for name in ["buildos-image", "buildos-initrd"]:
            content = os.urandom(size)
            (directory / name).write_bytes(content)
            sums.append((hashlib.sha256(content).hexdigest(), name))
        (directory / "SHA256SUMS").write_text("".join(f"{sum}  {name}\n" for sum, name in sums))
        (directory / "buildos.manifest").write_text(f"buildos {version} amd64 x 1\n")
        return ":".join(sum for sum, _ in sums)

    def publish(self, version: str) -> str:
        """Makes a pair and publishes it; returns its digests."""
        pair = self.make(version)
        said = self.farm.desk(f"buildosctl publish os --tree www --name {version} {version}")
        assert said == f"os {version}: 585.9 KiB for each host\n"
        self.farm.sign()
        return pair


@pytest.fixture
def builds(farm: Farm) -> Builds:
    return Builds(farm)


def start(farm: Farm, host: Host, running: str, toml: str = "", answer: str = "loaded") -> None:
    """Boots the first host of a farm, with an agent, which runs a pair."""
    farm.lan.serve_dhcp()
    start_next(farm, host, running, farm.serve(), toml, answer)


def start_next(
    farm: Farm, host: Host, running: str, url: str, toml: str = "", answer: str = "loaded"
) -> None:
    """Boots a host whose farm has its servers."""
    host.program(PROGRAM, SCRIPT)
    host.configure("agentd", bslave(PROGRAM, 'drain = "idle"'))
    host.program("/usr/local/bin/recorder", RECORDER)
    host.file("/etc/answer", json.dumps({"state": answer, "reason": "says the recorder"}))
    path = "[Path]\nPathChanged=/run/buildos/updated/os-request\nUnit=recorder.service\n"
    host.file("/etc/systemd/system/recorder.path", path)
    host.file(
        "/etc/systemd/system/recorder.service",
        "[Service]\nType=oneshot\nExecStart=/usr/local/bin/recorder\n",
    )
    # The helper that the recorder stands in for.
    host.file("/etc/systemd/system/buildos-os-handover.path", "")
    if running:
        host.command_line(f"buildos.running={running}")
    farm.prepare(host, url, toml)
    host.start([farm.lan])
    host.systemctl("start", "recorder.path")
    wait_until_runs(host, AGENT)


def begin(host: Host) -> None:
    """Starts a run, and does not wait for its end."""
    host.systemctl("start", "--no-block", UNIT)


def wait_for_os(host: Host, wanted: str) -> None:
    def found() -> bool:
        return host.succeeds("test -e /run/buildos/updated/state.json") and (
            updated(host)["os"]["state"] == wanted
        )

    host.wait_for(found, f"the update is {wanted}")


def recorded(host: Host, name: str) -> str:
    path = f"/run/recorder/{name}"
    host.wait_for(lambda: host.succeeds(["test", "-s", path]), f"{path} is there")
    return host.read(path)


def objects(host: Host) -> list[str]:
    return host.run(f"ls {SPOOL}/objects 2>/dev/null || :").split()


def next_run(host: Host) -> dict[str, Any]:
    """Lets a run take place, after the end of the one before."""
    ended = ("inactive", "failed")
    host.wait_for(
        lambda: host.unit(UNIT, "ActiveState")["ActiveState"] in ended, "the daemon has ended"
    )
    return update(host)


def held(host: Host) -> tuple[str, str]:
    os_state = next_run(host)["os"]
    assert os_state["state"] == "held", os_state
    return os_state["cause"], os_state["reason"]


def test_os_is_handed_over_once_its_tasks_have_ended(
    farm: Farm, builds: Builds, host: Host
) -> None:
    running = builds.publish("1")
    new = builds.publish("2")
    start(farm, host, running)
    begin_task(host)
    begin(host)
    wait_for_state(host, "draining", AGENT)
    wait_for_os(host, "draining")
    assert "os 2: draining for" in chosen(host, "update", "status")
    assert host.bus_property("update1", "OsState") == "draining"
    assert not host.succeeds("test -e /run/buildos/updated/os-request")
    end_task(host)
    request = json.loads(recorded(host, "request"))
    why = request.pop("why_before")
    assert isinstance(why, int) and why != -1
    assert request == {
        "version": "2",
        "serial": 2,
        "method": "kexec",
        "deadline_s": 900,
        "agents": [AGENT],
    }
    digests = sorted([*running.split(":"), *new.split(":")])
    assert recorded(host, "objects").split() == digests
    assert recorded(host, "channel").encode() == farm.signed.read_bytes()
    assert state(host, AGENT) == "drained"
    wait_for_os(host, "handed-over")
    assert "2        handed over" in chosen(host, "update", "history")


def test_refused_handover_lets_the_agents_work_again(
    farm: Farm, builds: Builds, host: Host
) -> None:
    running = builds.publish("1")
    builds.publish("2")
    start(farm, host, running, answer="refused")
    assert held(host) == ("fault", "buildos-os-handover refuses it: says the recorder")
    recorded(host, "request")
    wait_until_runs(host, AGENT)
    assert objects(host) == []
    assert not host.succeeds("test -e /run/buildos/updated/os-request")
    assert "os 2: buildos-os-handover refuses it" in updated(host)["problems"][0]


def test_rollout_that_is_stopped_during_a_drain_holds_the_update(
    farm: Farm, builds: Builds, host: Host
) -> None:
    running = builds.publish("1")
    builds.publish("2")
    start(farm, host, running)
    begin_task(host)
    begin(host)
    wait_for_state(host, "draining", AGENT)
    farm.sign(text=(farm.tree / "desk/stable.toml").read_text().replace("= 100", "= 0"))
    end_task(host)
    wait_for_os(host, "held")
    reason = "the rollout to 0 % of the hosts leaves this host out"
    assert (updated(host)["os"]["cause"], updated(host)["os"]["reason"]) == ("policy", reason)
    wait_until_runs(host, AGENT)
    assert not host.succeeds("test -e /run/recorder/request")


def test_what_holds_an_update_is_named(farm: Farm, builds: Builds, host: Host) -> None:
    running = builds.make("1")
    builds.publish("2")
    window = 'update.window = ["2020-01-01 UTC + 2h"]\n'
    start(farm, host, running, window)
    # The server does not have the pair that runs.
    assert held(host) == ("window", "no window opens any more")
    assert farm.sent() == 0
    status = chosen(host, "update", "status")
    assert "os 2: held (window) for" in status and "no window opens any more" in status
    assert "os 2 is held" in chosen(host, "update", "now", "--wait")
    cause, reason = updated(host)["os"]["cause"], updated(host)["os"]["reason"]
    assert cause == "no-way-back" and "404" in reason
    assert objects(host) == [] and state(host, AGENT) == "running"

    config = "/etc/buildos/updated.conf.d/60-test.toml"
    host.write(config, 'update.window = []\nupdate.method = "off"\n')
    assert held(host) == ("policy", "update.method is off")
    host.write(config, 'update.window = []\nupdate.method = "reboot"\n')
    assert held(host)[0] == "policy", "without a state volume"
    host.write(config, "update.window = []\n")
    host.run("buildosctl drain --wait")
    assert held(host) == (
        "operator",
        f"{AGENT}: drained or stopped before, which a restart would end",
    )
    host.run("buildosctl resume")
    wait_until_runs(host, AGENT)
    farm.sign(text=(farm.tree / "desk/stable.toml").read_text().replace("= 100", "= 0"))
    assert held(host) == ("policy", "the rollout to 0 % of the hosts leaves this host out")


def test_host_that_was_booted_by_hand_takes_no_os(farm: Farm, builds: Builds, host: Host) -> None:
    builds.publish("2")
    start(farm, host, "")
    cause, reason = held(host)
    assert cause == "no-way-back" and "has no buildos.running=" in reason


def test_running_os_is_not_fetched(farm: Farm, builds: Builds, host: Host) -> None:
    running = builds.publish("1")
    start(farm, host, running)
    assert update(host)["os"]["state"] == "idle"
    assert farm.sent() == 0
    assert "os 1: runs\n" in chosen(host, "update", "status")


def test_hold_and_stop_end_the_drain(farm: Farm, builds: Builds, host: Host) -> None:
    running = builds.publish("1")
    builds.publish("2")
    start(farm, host, running)
    begin_task(host)
    begin(host)
    wait_for_state(host, "draining", AGENT)
    chosen(host, "update", "hold", "release")
    wait_for_state(host, "running", AGENT)
    host.wait_for(lambda: updated(host)["held"] == "release", "the run has ended")
    assert updated(host)["os"]["cause"] == "operator"
    chosen(host, "update", "resume")
    wait_for_state(host, "draining", AGENT)
    host.systemctl("stop", UNIT)
    wait_for_state(host, "running", AGENT)

    begin(host)
    wait_for_state(host, "draining", AGENT)
    # It cannot end the drain: the next run does, which systemd starts.
    host.run(["systemctl", "kill", "--signal=KILL", UNIT])
    wait_for_state(host, "running", AGENT)
    host.run(["buildosctl", "update", "hold"])
    assert not host.succeeds("test -e /run/recorder/request")


def trial(host: Host, verdict: str, pair: str, reason: str = "") -> None:
    """Writes the state of a trial, as buildos-os-trial does."""
    image, initrd = pair.split(":")
    text = {"state": verdict, "version": "2", "image": image, "initrd": initrd, "reason": reason}
    host.run("mkdir -p /run/buildos/trial")
    host.write(f"{TRIAL}.new", json.dumps({**text, "since_usec": 1, "deadline_usec": 2}))
    host.run(["mv", f"{TRIAL}.new", TRIAL])


def test_os_that_came_back_is_never_taken_again(
    farm: Farm, builds: Builds, new_host: NewHost, disk: Disk
) -> None:
    running = builds.publish("1")
    new = builds.publish("2")
    first = new_host("first")
    farm.lan.serve_dhcp()
    url = farm.serve()
    start_next(farm, first, running, url)
    plug(first, disk)
    trial(first, "returned", new, "no agent polled")
    begin(first)
    saved = ["grep", "-q", "no agent polled", "/state/updated/os.json"]
    first.wait_for(lambda: first.succeeds(saved), "the state volume has it")
    wait_for_os(first, "bad")
    history = chosen(first, "update", "history")
    assert "returned  no agent polled" in history
    assert f"never again: os 2, image {new.partition(':')[0]}" in history
    first.stop()

    second = new_host("second")
    start_next(farm, second, running, url)
    plug(second, disk)
    state = next_run(second)
    assert (state["os"]["state"], state["os"]["reason"]) == ("bad", "no agent polled")
    assert state["result"].endswith("os 2 is not taken: it came back: no agent polled")
    third = builds.publish("3")
    begin(second)
    request = json.loads(recorded(second, "request"))
    assert request["version"] == "3"
    saved = ["grep", "-q", third, "/state/updated/os.json"]
    second.wait_for(lambda: second.succeeds(saved), "the state volume has the new pair")
    # Hosts in namespaces have the boot id of the machine.
    second.run("sed -i 's/\"boot\":\"[^\"]*\"/\"boot\":\"former\"/' /state/updated/os.json")
    second.stop()

    # It went to 3, runs 1, and has no verdict.
    last = new_host("last")
    start_next(farm, last, running, url)
    plug(last, disk)
    state = next_run(last)
    assert state["os"]["state"] == "bad"
    assert "it did not come up" in state["os"]["reason"]
    assert third.partition(":")[0] in chosen(last, "update", "history")
    last.stop()


def lock_server(farm: Farm) -> str:
    listen = f"{farm.lan.address}:{LOCK_PORT}"
    program = str(TOP / "tests/doubles/fleet_lock.py")
    command = ["/usr/bin/python3", "-u", program, f"--listen={listen}"]
    command.append(f"--log={farm.lan.directory / 'locks.jsonl'}")
    farm.lan.start_server("fleet-lock", command, "listening")
    return f"http://{listen}"


def post(host: Host, url: str, id: str) -> None:
    body = json.dumps({"client_params": {"id": id, "group": "default"}})
    header = "fleet-lock-protocol: true"
    host.run(["curl", "--fail", "--silent", "--header", header, "--data-binary", body, url])


def calls(farm: Farm, of: Sequence[str] = ("path", "status")) -> list[Any]:
    return [[entry[key] for key in of] for entry in farm.lan.json_log("locks.jsonl")]


def test_os_waits_for_a_slot_and_releases_it_after_its_trial(
    farm: Farm, builds: Builds, host: Host
) -> None:
    running = builds.publish("1")
    builds.publish("2")
    url = lock_server(farm)
    start(farm, host, running, f'update.lock = "{url}"\n')
    post(host, f"{url}/v1/pre-reboot", "other")
    begin(host)
    full = "failed_lock: semaphore currently full, all slots are locked already"
    host.wait_for(lambda: full in host.run("buildosctl update status"), "the host waits")
    assert updated(host)["os"]["cause"] == "lock"
    assert state(host, AGENT) == "running"
    post(host, f"{url}/v1/steady-state", "other")
    request = json.loads(recorded(host, "request"))
    assert request["version"] == "2"
    # A new boot has no state of this one.
    ids = {entry["id"] for entry in farm.lan.json_log("locks.jsonl")} - {"other"}
    assert len(ids) == 1 and host.run("cat /etc/machine-id").strip() not in ids
    host.run(["systemctl", "kill", "--signal=KILL", UNIT])
    host.wait_for(lambda: not host.active(UNIT), "the daemon was killed")
    host.run("rm -f /run/buildos/updated/state.json")
    before = len(calls(farm))
    # Also before the trial has written a state.
    host.run(f"mkdir -p {PREVIOUS} && touch {PREVIOUS}/record.json")
    next_run(host)
    wait_for_os(host, "trial")
    trial(host, "trial", running)
    next_run(host)
    host.wait_for(lambda: not host.active(UNIT), "the run has ended")
    assert len(calls(farm)) == before, "it keeps the slot during the trial"
    trial(host, "proven", running)
    host.run(f"rm {PREVIOUS}/record.json")
    host.wait_for(lambda: len(calls(farm)) > before, "the slot is released")
    last = farm.lan.json_log("locks.jsonl")[before]
    assert (last["path"], last["status"], last["holders"]) == ("/v1/steady-state", 200, [])


def test_open_window_permits_and_invalid_one_holds(farm: Farm, builds: Builds, host: Host) -> None:
    running = builds.publish("1")
    builds.publish("2")
    # Always open: it starts each hour.
    start(farm, host, running, 'update.window = ["*:00 + 2h"]\n')
    begin(host)
    assert json.loads(recorded(host, "request"))["version"] == "2"
    host.write("/etc/buildos/updated.conf.d/60-test.toml", 'update.window = ["Moonday 22:00 + 8h"]\n')
    host.run(["systemctl", "kill", "--signal=KILL", UNIT])
    host.wait_for(lambda: not host.active(UNIT), "the daemon was killed")
    cause, reason = held(host)
    assert cause == "policy" and "window Moonday 22:00 + 8h" in reason
