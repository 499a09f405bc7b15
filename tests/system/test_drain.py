"""Tests draining: tasks end, then their agent is stopped."""

from __future__ import annotations

import time

import pytest
from agents import (
    BSLAVE,
    DRAINED,
    DRAINING,
    STOPPED,
    agent1,
    bslave,
    instance,
    messages,
    state,
    wait_for_state,
    wait_until_runs,
)
from host import Host
from simlan.errors import CommandFailed
from simlan.lan import Lan

AGENT = "bslave@x"
PROGRAM = "/opt/agent"

# Runs a task, a separate process, while /build/task exists. Polls without a process
# otherwise, and ends at once on SIGTERM.
SCRIPT = """#!/bin/bash
trap 'exit 0' TERM
exec {clock}<> <(:)
while :; do
    if [ -e /build/task ]; then
        (while [ -e /build/task ]; do sleep 0.1; done) &
        wait $!
    fi
    read -rt 0.1 -u $clock
done
"""


@pytest.fixture
def busy(host: Host, lan: Lan) -> Host:
    """A host on which bslave@x runs a task."""
    lan.serve_dhcp()
    host.program(PROGRAM, SCRIPT)
    host.configure("agentd", bslave(PROGRAM, 'drain = "idle"'))
    host.start([lan])
    wait_until_runs(host, AGENT)
    begin_task(host)
    return host


def begin_task(host: Host) -> None:
    host.run("touch /build/task")
    host.wait_for(lambda: tasks(host), "the task runs")


def end_task(host: Host) -> None:
    host.run("rm /build/task")


def tasks(host: Host) -> list[str]:
    """Processes of the agent besides the main process."""
    group = host.unit(BSLAVE, "ControlGroup")["ControlGroup"]
    pids = host.read(f"/sys/fs/cgroup{group}/cgroup.procs").split()
    return [pid for pid in pids if pid != str(host.main_pid(BSLAVE))]


def drain(host: Host, *arguments: str) -> None:
    host.run(["buildosctl", "drain", *arguments])


def test_isolate_keeps_agent_and_task(busy: Host) -> None:
    pid = busy.main_pid(BSLAVE)
    (task, *_) = tasks(busy)
    busy.systemctl("isolate", "multi-user.target")
    assert busy.main_pid(BSLAVE) == pid
    assert task in tasks(busy)
    assert state(busy, AGENT) == "running"
    assert messages(busy, STOPPED) == []


def test_stop_of_all_units_is_fast_and_final(busy: Host) -> None:
    end_task(busy)
    # Less than the limit of a method call.
    busy.run("timeout 10 systemctl stop buildos.target 'buildos-*.service'")
    busy.wait_for(lambda: not busy.systemctl("list-jobs", "--no-legend"), "all units are stopped")
    assert not busy.active("buildos-agentd.service")
    # Nothing starts agentd when it reads the host.
    busy.run("buildosctl status", check=False)
    drained = "buildosctl drain --wait 2>&1 || echo status $?"
    assert busy.run(drained) == "buildosctl: buildos-agentd is not running\nstatus 1\n"
    assert not busy.active("buildos-agentd.service")
    assert busy.failed_units() == []
    busy.systemctl("start", "buildos.target")
    busy.wait_for(lambda: busy.active("buildos-agentd.service"), "agentd runs again")


def test_drain_waits_for_restart_of_agentd(busy: Host) -> None:
    end_task(busy)
    busy.run("systemctl kill --signal=KILL buildos-agentd && buildosctl drain --wait")
    assert state(busy, AGENT) == "drained"


def test_task_ends_before_agent_is_stopped(busy: Host) -> None:
    pid = busy.main_pid(BSLAVE)
    drain(busy)
    wait_for_state(busy, "draining", AGENT)
    assert instance(busy, "Wanted", AGENT) is False
    left = instance(busy, "DrainDeadlineUSec", AGENT) / 1e6 - time.time()
    assert 10_700 < left <= 10_800
    reason = "drains: its tasks have up to 10800 s to end; remaining tasks are then stopped"
    assert reason in busy.status_text("buildos-agentd")
    assert instance(busy, "Reason", AGENT) == reason
    assert tasks(busy) and busy.main_pid(BSLAVE) == pid
    end_task(busy)
    wait_for_state(busy, "drained", AGENT)
    stopped = {"ActiveState": "inactive", "Result": "success"}
    busy.wait_for(
        lambda: busy.unit(BSLAVE, "ActiveState", "Result") == stopped, "the unit is stopped"
    )
    assert len(messages(busy, DRAINING)) == len(messages(busy, DRAINED)) == 1
    # Only Resume starts the agent again.
    busy.systemctl("restart", "buildos-netd")
    busy.systemctl("restart", "buildos-agentd")
    busy.systemctl("reload", "buildos-agentd")
    assert state(busy, AGENT) == "drained"
    assert busy.main_pid(BSLAVE) == 0
    busy.run(["buildosctl", "resume"])
    wait_until_runs(busy, AGENT)
    assert instance(busy, "Wanted", AGENT) is True


def test_drain_survives_restart_of_agentd(busy: Host) -> None:
    drain(busy, "--budget", "600", AGENT)
    wait_for_state(busy, "draining", AGENT)
    deadline = instance(busy, "DrainDeadlineUSec", AGENT)
    pid, agentd = busy.main_pid(BSLAVE), busy.main_pid("buildos-agentd")
    busy.run(f"kill -KILL {agentd}")
    busy.wait_for(lambda: busy.active("buildos-agentd"), "agentd is back")
    busy.wait_for(
        lambda: busy.main_pid("buildos-agentd") not in (0, agentd), "the process has changed"
    )
    wait_for_state(busy, "draining", AGENT)
    assert busy.main_pid(BSLAVE) == pid
    assert abs(instance(busy, "DrainDeadlineUSec", AGENT) - deadline) < 1_000_000
    busy.systemctl("stop", "buildos-agentd")
    end_task(busy)
    busy.systemctl("start", "buildos-agentd")
    wait_for_state(busy, "drained", AGENT)
    busy.wait_for(lambda: busy.main_pid(BSLAVE) == 0, "the unit is stopped")


def test_task_is_stopped_at_drain_deadline(busy: Host) -> None:
    began = time.monotonic()
    drain(busy, "--wait", "--budget", "2", AGENT)
    assert 2 <= time.monotonic() - began < 20
    assert state(busy, AGENT) == "drained"
    busy.wait_for(lambda: busy.main_pid(BSLAVE) == 0, "the unit is stopped")
    (message,) = messages(busy, DRAINED)
    assert "did not end its tasks in time" in message


def test_resume_during_drain_keeps_task_running(busy: Host) -> None:
    pid = busy.main_pid(BSLAVE)
    drain(busy)
    wait_for_state(busy, "draining", AGENT)
    busy.run(["buildosctl", "resume", AGENT])
    wait_for_state(busy, "running", AGENT)
    end_task(busy)
    busy.wait_for(lambda: not tasks(busy), "the task has ended")
    busy.systemctl("reload", "buildos-agentd")
    assert wait_until_runs(busy, AGENT) == pid


def test_stop_and_start_by_operator_end_drain(busy: Host) -> None:
    drain(busy)
    wait_for_state(busy, "draining", AGENT)
    busy.systemctl("stop", BSLAVE)
    wait_for_state(busy, "drained", AGENT)
    busy.run(["systemctl", "start", BSLAVE])
    wait_until_runs(busy, AGENT)
    # A stopped agent stays stopped.
    busy.systemctl("stop", BSLAVE)
    wait_for_state(busy, "stopped", AGENT)
    drain(busy, "--wait")
    busy.run(["buildosctl", "resume"])
    assert state(busy, AGENT) == "stopped"


def test_drain_by_signal_waits_for_end_of_agent(host: Host, lan: Lan) -> None:
    lan.serve_dhcp()
    host.program(PROGRAM, SCRIPT.replace("trap", "trap 'last=yes' USR1\ntrap").replace(
        "    read", '    [ -z "$last" ] || exit 0\n    read'
    ))  # fmt: skip
    host.configure("agentd", bslave(PROGRAM, 'drain = "SIGUSR1"'))
    host.start([lan])
    wait_until_runs(host, AGENT)
    begin_task(host)
    drain(host)
    wait_for_state(host, "draining", AGENT)
    # agentd does not poll for tasks: a moment without tasks does not end the drain.
    end_task(host)
    wait_for_state(host, "drained", AGENT)
    # The agent ended by itself, and its unit does not wait in auto-restart.
    host.wait_for(
        lambda: host.unit(BSLAVE, "ActiveState")["ActiveState"] == "inactive",
        "the unit is inactive",
    )
    host.run(["buildosctl", "resume"])
    wait_until_runs(host, AGENT)


def test_waiting_agent_is_drained_at_once(host: Host, lan: Lan) -> None:
    host.program(PROGRAM, SCRIPT)
    host.configure("agentd", bslave(PROGRAM))
    lan.serve_dhcp()
    host.start([lan], plugged=False)
    wait_for_state(host, "waiting", AGENT)
    drain(host, "--wait")
    assert state(host, AGENT) == "drained"
    host.nics[0].plug()
    host.wait_for(lambda: not instance(host, "Needs", AGENT), "all requirements are met")
    assert state(host, AGENT) == "drained"
    host.run(["buildosctl", "resume"])
    wait_until_runs(host, AGENT)


def test_only_administrators_drain(busy: Host) -> None:
    unprivileged = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    with pytest.raises(CommandFailed, match="only root and members of buildos-admin"):
        busy.run([*unprivileged, "buildosctl", "drain"])
    with pytest.raises(CommandFailed, match="bbot@other is not configured"):
        drain(busy, "bbot@other")
    listed = busy.run([*unprivileged, "buildosctl", "agents"])
    assert listed == f"{AGENT}  running  runs as process {busy.main_pid(BSLAVE)}\n"
    busy.run(["busctl", "call", *agent1(), "Drain", "ast", "1", AGENT, "0"])
    wait_for_state(busy, "draining", AGENT)


# Sends requests to a web server on the LAN before it ends: they arrive only if the host
# stops its network after the agent.
GOODBYE = SCRIPT.replace("'exit 0'", "'curl --silent --max-time 5 $URL/goodbye; exit 0'").replace(
    "    fi", "        curl --silent --max-time 5 $URL/task-ended\n    fi"
)


def shut_down(host: Host, lan: Lan, budget: int) -> None:
    """Shuts down a host whose agent runs a task."""
    lan.serve_dhcp()
    lan.serve_web("")
    host.program(PROGRAM, GOODBYE)
    lines = ['drain = "idle"', f'environment = ["URL=http://{lan.address}"]']
    host.configure("agentd", f"shutdown_budget_s = {budget}\n" + bslave(PROGRAM, *lines))
    host.start([lan])
    wait_until_runs(host, AGENT)
    begin_task(host)
    host.run(["systemctl", "poweroff", "--no-block"])
    wait_for_state(host, "draining", AGENT)


def goodbyes(lan: Lan) -> list[str]:
    """Requests that the agent sent before it ended."""
    paths = [visit["path"] for visit in lan.visits()]
    return [name for name in ("task-ended", "goodbye") if f"/{name}" in paths]


def test_shutdown_lets_tasks_end(host: Host, lan: Lan) -> None:
    shut_down(host, lan, budget=600)
    assert instance(host, "DrainDeadlineUSec", AGENT) / 1e6 - time.time() < 600
    # The network of the agent still works.
    assert host.addresses("br0") and host.active("buildos-dnsmasq")
    assert goodbyes(lan) == []
    end_task(host)
    host.wait_for_end(60)
    assert goodbyes(lan) == ["task-ended", "goodbye"]


def test_shutdown_continues_after_budget(host: Host, lan: Lan) -> None:
    began = time.monotonic()
    shut_down(host, lan, budget=3)
    host.wait_for_end(60)
    assert time.monotonic() - began >= 3
    assert goodbyes(lan) == ["goodbye"]
