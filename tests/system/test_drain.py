"""Agents that take no new work, and end when their tasks have."""

from __future__ import annotations

import time

import pytest
from agents import (
    BSLAVE,
    DRAINED,
    DRAINING,
    agent1,
    bslave,
    instance,
    messages,
    state,
    wait_for_state,
    wait_until_runs,
)
from host import Host
from lan import Lan
from namespace import CommandFailed

AGENT = "bslave@x"
PROGRAM = "/opt/agent"

# Runs a task, which is a process of its own, while /build/task exists; polls
# without a process, and ends at once when it is told to.
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
    """Processes of the agent but the main one."""
    group = host.unit(BSLAVE, "ControlGroup")["ControlGroup"]
    pids = host.read(f"/sys/fs/cgroup{group}/cgroup.procs").split()
    return [pid for pid in pids if pid != str(host.main_pid(BSLAVE))]


def drain(host: Host, *arguments: str) -> None:
    host.run(["buildosctl", "drain", *arguments])


def test_a_task_ends_before_its_agent_is_stopped(busy: Host) -> None:
    pid = busy.main_pid(BSLAVE)
    drain(busy)
    wait_for_state(busy, "draining", AGENT)
    assert instance(busy, "Wanted", AGENT) is False
    left = instance(busy, "DrainDeadlineUSec", AGENT) / 1e6 - time.time()
    assert 10_700 < left <= 10_800
    said = "drains: its tasks have up to 10800 s to end; remaining tasks are then stopped"
    assert said in busy.status_text("buildos-agentd")
    assert instance(busy, "Reason", AGENT) == said
    assert tasks(busy) and busy.main_pid(BSLAVE) == pid
    end_task(busy)
    wait_for_state(busy, "drained", AGENT)
    stopped = {"ActiveState": "inactive", "Result": "success"}
    busy.wait_for(
        lambda: busy.unit(BSLAVE, "ActiveState", "Result") == stopped, "the unit is stopped"
    )
    assert len(messages(busy, DRAINING)) == len(messages(busy, DRAINED)) == 1
    # Nothing but somebody's wish takes it back.
    busy.systemctl("restart", "buildos-netd")
    busy.systemctl("restart", "buildos-agentd")
    busy.systemctl("reload", "buildos-agentd")
    assert state(busy, AGENT) == "drained"
    assert busy.main_pid(BSLAVE) == 0
    busy.run(["buildosctl", "resume"])
    wait_until_runs(busy, AGENT)
    assert instance(busy, "Wanted", AGENT) is True


def test_a_drain_outlives_agentd(busy: Host) -> None:
    drain(busy, "--budget", "600", AGENT)
    wait_for_state(busy, "draining", AGENT)
    deadline = instance(busy, "DrainDeadlineUSec", AGENT)
    pid, agentd = busy.main_pid(BSLAVE), busy.main_pid("buildos-agentd")
    busy.run(f"kill -KILL {agentd}")
    busy.wait_for(lambda: busy.active("buildos-agentd"), "agentd is back")
    busy.wait_for(lambda: busy.main_pid("buildos-agentd") not in (0, agentd), "it is another")
    wait_for_state(busy, "draining", AGENT)
    assert busy.main_pid(BSLAVE) == pid
    assert abs(instance(busy, "DrainDeadlineUSec", AGENT) - deadline) < 1_000_000
    busy.systemctl("stop", "buildos-agentd")
    end_task(busy)
    busy.systemctl("start", "buildos-agentd")
    wait_for_state(busy, "drained", AGENT)
    busy.wait_for(lambda: busy.main_pid(BSLAVE) == 0, "the unit is stopped")


def test_a_task_that_takes_too_long_is_ended(busy: Host) -> None:
    began = time.monotonic()
    drain(busy, "--wait", "--budget", "2", AGENT)
    assert 2 <= time.monotonic() - began < 20
    assert state(busy, AGENT) == "drained"
    busy.wait_for(lambda: busy.main_pid(BSLAVE) == 0, "the unit is stopped")
    (said,) = messages(busy, DRAINED)
    assert "did not end its tasks in time" in said


def test_a_drain_is_taken_back_while_the_task_runs(busy: Host) -> None:
    pid = busy.main_pid(BSLAVE)
    drain(busy)
    wait_for_state(busy, "draining", AGENT)
    busy.run(["buildosctl", "resume", AGENT])
    wait_for_state(busy, "running", AGENT)
    end_task(busy)
    busy.wait_for(lambda: not tasks(busy), "the task has ended")
    busy.systemctl("reload", "buildos-agentd")
    assert wait_until_runs(busy, AGENT) == pid


def test_what_an_operator_does_wins_over_a_drain(busy: Host) -> None:
    drain(busy)
    wait_for_state(busy, "draining", AGENT)
    busy.systemctl("stop", BSLAVE)
    wait_for_state(busy, "drained", AGENT)
    busy.run(["systemctl", "start", BSLAVE])
    wait_until_runs(busy, AGENT)
    # A stopped agent takes no work, and stays what it is.
    busy.systemctl("stop", BSLAVE)
    wait_for_state(busy, "stopped", AGENT)
    drain(busy, "--wait")
    busy.run(["buildosctl", "resume"])
    assert state(busy, AGENT) == "stopped"


def test_a_program_may_have_a_signal_for_it(host: Host, lan: Lan) -> None:
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
    # It is not asked whether it has tasks: it has none for a moment, and goes on.
    end_task(host)
    wait_for_state(host, "drained", AGENT)
    # It ended by itself, and systemd waits for no start.
    host.wait_for(
        lambda: host.unit(BSLAVE, "ActiveState")["ActiveState"] == "inactive", "it is stopped"
    )
    host.run(["buildosctl", "resume"])
    wait_until_runs(host, AGENT)


def test_who_waits_is_drained_at_once(host: Host, lan: Lan) -> None:
    host.program(PROGRAM, SCRIPT)
    host.configure("agentd", bslave(PROGRAM))
    lan.serve_dhcp()
    host.start([lan], plugged=False)
    wait_for_state(host, "waiting", AGENT)
    drain(host, "--wait")
    assert state(host, AGENT) == "drained"
    host.nics[0].plug()
    host.wait_for(lambda: not instance(host, "Needs", AGENT), "nothing is missing")
    assert state(host, AGENT) == "drained"
    host.run(["buildosctl", "resume"])
    wait_until_runs(host, AGENT)


def test_only_administrators_drain(busy: Host) -> None:
    nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    with pytest.raises(CommandFailed, match="only root and members of buildos-admin"):
        busy.run([*nobody, "buildosctl", "drain"])
    with pytest.raises(CommandFailed, match="bbot@other is not configured"):
        drain(busy, "bbot@other")
    listed = busy.run([*nobody, "buildosctl", "agents"])
    assert listed == f"{AGENT}  running  runs as process {busy.main_pid(BSLAVE)}\n"
    busy.run(["busctl", "call", *agent1(), "Drain", "ast", "1", AGENT, "0"])
    wait_for_state(busy, "draining", AGENT)


# On the LAN somebody counts what the agent says before it goes: the order in which
# the host goes down is right if it can.
GOODBYE = SCRIPT.replace("'exit 0'", "'curl --silent --max-time 5 $URL/goodbye; exit 0'").replace(
    "    fi", "        curl --silent --max-time 5 $URL/task-ended\n    fi"
)


def shut_down(host: Host, lan: Lan, budget: int) -> None:
    """Lets a host with a task go down."""
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


def said(lan: Lan) -> list[str]:
    return [word for word in ("task-ended", "goodbye") if f"GET /{word} " in lan.log("web.log")]


def test_a_host_that_goes_down_lets_tasks_end(host: Host, lan: Lan) -> None:
    shut_down(host, lan, budget=600)
    assert instance(host, "DrainDeadlineUSec", AGENT) / 1e6 - time.time() < 600
    # Whatever it needs is still there.
    assert host.addresses("br0") and host.active("buildos-dnsmasq")
    assert said(lan) == []
    end_task(host)
    host.wait_for_end(60)
    assert said(lan) == ["task-ended", "goodbye"]


def test_a_host_goes_down_although_a_task_does_not_end(host: Host, lan: Lan) -> None:
    began = time.monotonic()
    shut_down(host, lan, budget=3)
    host.wait_for_end(60)
    assert time.monotonic() - began >= 3
    assert said(lan) == ["goodbye"]
