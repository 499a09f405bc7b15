"""Tests which agents run, when they start, and when they start again."""

from __future__ import annotations

import json
import os
import re

import pytest
from agents import (
    BBOT,
    BSLAVE,
    CRASH_LOOP,
    ENDED,
    STOPPED,
    WAITING,
    agent1,
    bbot,
    instance,
    messages,
    needs,
    reload,
    restart,
    state,
    wait_until_runs,
)
from host import Host
from simlan.errors import CommandFailed
from simlan.lan import Lan


def test_agent_polls_controller_when_network_is_ready(host: Host, lan: Lan, url: str) -> None:
    prefix = "buildos.agentd.bbot.default"
    host.command_line(f"quiet {prefix}.controllers=0100={url} {prefix}.kvm=waived")
    host.start([lan], plugged=False)
    host.wait_for(
        lambda: "network: " in host.status_text("buildos-agentd"), "agentd waits for the network"
    )
    assert state(host) == "waiting"
    assert not host.active(BBOT)
    host.nics[0].plug()
    wait_until_runs(host)
    host.wait_for(lambda: lan.task_requests(), "the agent polls")
    assert host.status_text("buildos-agentd") == "1 of 1 agents run"
    # The agent was started after the host had its name.
    assert lan.task_requests()[0]["agent"] == host.bus_property("hostname1", "Hostname")
    assert instance(host, "MainPID") == host.main_pid(BBOT)
    # The agent gets all CPU and RAM of the machine.
    threads = len(os.sched_getaffinity(0))
    command = (
        rf"--systemd-daemon --toolchain-name default --cpu {threads} --build-ram (\d+) "
        rf"--auxiliary-ram 0 --bridge br1 0100={re.escape(url)}\n"
    )
    started = re.search(f"ExecStart=/usr/bin/bbot-agent {command}", host.systemctl("cat", BBOT))
    assert started is not None
    memory = host.unit("buildos-agents.slice", "MemoryMax")["MemoryMax"]
    assert int(memory) == int(started[1]) * 1024
    assert "/buildos-agents.slice/" in host.unit(BBOT, "ControlGroup")["ControlGroup"]
    # The journal of the unit contains the messages of agentd and of the agent.
    lines = [(m["SYSLOG_IDENTIFIER"], m["MESSAGE"]) for m in host.journal(f"--unit={BBOT}")]
    assert any(name == "buildos-agentd" and "waits: " in text for name, text in lines)
    assert any(name == "bbot-agent" for name, _ in lines)
    assert host.failed_units() == []


def test_ready_is_delayed_until_first_agents_run(host: Host, lan: Lan, url: str) -> None:
    host.configure("agentd", bbot(url))
    host.start([lan])
    host.wait_for(lambda: host.active("buildos-agentd.service"), "agentd is up")
    assert 0 < up_since(host, BBOT) <= up_since(host, "buildos-agentd.service")


def test_ready_is_delayed_ten_seconds_without_network(host: Host, lan: Lan, url: str) -> None:
    agentd = "buildos-agentd.service"
    host.configure("agentd", bbot(url))
    host.start([lan], plugged=False)
    host.wait_for(lambda: "network: " in host.status_text(agentd), "agentd waits for the network")
    # A reload during the delay takes effect.
    reload(host, bbot(url) + bbot(url, name="other"))
    assert state(host, "bbot@other") == "waiting"
    assert start_took(host, agentd) >= 10_000_000
    # Later starts have no delay: the limit is shorter than that of the first start.
    before = up_since(host, agentd)
    host.run(f"timeout 8 systemctl restart {agentd}")
    assert up_since(host, agentd) > before
    assert state(host) == "waiting"


def test_ready_delay_is_short_when_agent_is_ordered_after_agentd(
    host: Host, lan: Lan, url: str
) -> None:
    """An agent has the same order when its file systems are on a disk that udev finds late."""
    agentd = "buildos-agentd.service"
    late = "[Unit]\nAfter=buildos-agentd.service\n[Service]\nType=oneshot\nExecStart=true\n"
    host.file("/etc/systemd/system/late.service", late)
    host.file("/etc/systemd/system/multi-user.target.d/late.conf", "[Unit]\nWants=late.service\n")
    behind = "[Unit]\nAfter=late.service\n"
    host.file("/etc/systemd/system/buildos-bbot@.service.d/late.conf", behind)
    host.configure("agentd", bbot(url))
    host.start([lan])
    wait_until_runs(host)
    assert 0 < up_since(host, agentd) < up_since(host, BBOT)
    # Less than the full limit.
    assert start_took(host, agentd) < 10_000_000


def start_took(host: Host, unit: str) -> int:
    """Microseconds from a unit's start until it was active."""
    key = "InactiveExitTimestampMonotonic"
    return up_since(host, unit) - int(host.unit(unit, key)[key])


def up_since(host: Host, unit: str) -> int:
    """Time at which a unit became active, CLOCK_MONOTONIC microseconds."""
    key = "ActiveEnterTimestampMonotonic"
    return int(host.unit(unit, key)[key])


def test_status_names_unmet_requirements(host: Host, lan: Lan, url: str) -> None:
    toml = bbot(url) + '[bslave.x]\nprogram = "/opt/bslave"\n[bbot.vm]\n'
    host.configure("agentd", toml + f'controllers = ["{url}"]\n')
    host.start([lan])
    wait_until_runs(host)
    status = host.wait_for(lambda: host.status_text("buildos-agentd"), "a status")
    kvm = 'KVM is missing (switch on virtualization in the firmware, or set kvm = "waived")'
    program = "program /opt/bslave is not installed"
    assert status == f"1 of 3 agents run; bbot@vm waits: {kvm}; bslave@x waits: {program}"
    assert needs(host, "bslave@x") == {"program": program}
    assert needs(host, "bbot@vm") == {"kvm": kvm}
    # The agent starts as soon as its program exists.
    host.run("cp /usr/bin/bslave /opt/bslave")
    host.wait_for(lambda: host.active(BSLAVE), "bslave@x runs")
    assert any(program in text for text in messages(host, WAITING))


def test_killed_agent_is_started_again(running: Host) -> None:
    before = running.main_pid(BBOT)
    running.run(f"kill -KILL {before}")
    running.wait_for(
        lambda: running.main_pid(BBOT) not in (0, before), "bbot@default is started again"
    )
    wait_until_runs(running)
    assert instance(running, "Restarts") == 1
    assert str(instance(running, "LastExit")).startswith("signal KILL")
    (ended,) = messages(running, ENDED)
    assert ended.startswith("bbot@default ended: signal KILL")
    assert running.failed_units() == []


def test_crash_loop_is_reported_and_retried(host: Host, lan: Lan, url: str) -> None:
    host.configure("agentd", bbot(url, 'arguments = ["--no-such-option"]'))
    host.start([lan])
    (third, *_) = host.wait_for(lambda: messages(host, CRASH_LOOP), "the agent ended three times")
    assert "crash loop: exit code 1, 3 times in a row; starts again after" in third
    assert len(messages(host, ENDED)) == 2
    host.wait_for(
        lambda: "in a crash loop" in host.status_text("buildos-agentd"),
        "the status shows the crash loop",
    )
    assert instance(host, "CrashLoop") is True
    assert instance(host, "Failures") >= 3
    assert instance(host, "LastExit") == "exit code 1"
    assert host.unit(BBOT, "SubState")["SubState"] in ("auto-restart", "start", "running")
    # After a fix, Restart does not wait for the end of the delay.
    reload(host, bbot(url))
    restart(host)
    wait_until_runs(host)


def test_stop_by_operator_persists(running: Host) -> None:
    running.systemctl("stop", BBOT)
    running.wait_for(lambda: state(running) == "stopped", "agentd has seen the stop")
    assert messages(running, STOPPED)
    # Restarts of netd and agentd do not start the agent.
    running.systemctl("restart", "buildos-netd")
    running.systemctl("restart", "buildos-agentd")
    running.run(["systemctl", "kill", "--signal=KILL", "buildos-agentd"])
    running.wait_for(lambda: state(running) == "stopped", "agentd is back")
    running.systemctl("reload", "buildos-agentd")
    assert state(running) == "stopped"
    assert running.main_pid(BBOT) == 0
    running.systemctl("start", BBOT)
    wait_until_runs(running)
    # The method Restart also starts a stopped agent.
    running.systemctl("stop", BBOT)
    running.wait_for(lambda: state(running) == "stopped", "agentd has seen the second stop")
    restart(running)
    wait_until_runs(running)


def test_stop_and_crash_while_agentd_is_down_are_distinguished(running: Host) -> None:
    running.systemctl("stop", "buildos-agentd")
    running.systemctl("stop", BBOT)
    running.systemctl("start", "buildos-agentd")
    assert state(running) == "stopped"
    running.systemctl("start", BBOT)
    pid = wait_until_runs(running)
    running.systemctl("stop", "buildos-agentd")
    running.run(f"kill -TERM {pid}")
    running.wait_for(
        lambda: running.unit(BBOT, "SubState")["SubState"] == "auto-restart", "the agent has ended"
    )
    running.systemctl("start", "buildos-agentd")
    assert wait_until_runs(running) != pid


def test_agents_survive_restart_of_agentd(running: Host) -> None:
    pid = running.main_pid(BBOT)
    agentd = running.main_pid("buildos-agentd")
    running.run(f"kill -KILL {agentd}")
    running.wait_for(
        lambda: (
            running.main_pid("buildos-agentd") not in (0, agentd)
            and running.active("buildos-agentd")
        ),
        "agentd is back",
    )
    assert running.status_text("buildos-agentd") == "1 of 1 agents run"
    running.systemctl("restart", "buildos-agentd")
    running.systemctl("reload", "buildos-agentd")
    assert running.main_pid(BBOT) == pid
    assert state(running) == "running"
    assert messages(running, ENDED) == []


def test_waiting_agent_can_be_stopped(host: Host, lan: Lan, url: str) -> None:
    host.configure("agentd", bbot(url))
    host.start([lan], plugged=False)
    host.wait_for(
        lambda: "network: " in host.status_text("buildos-agentd"), "agentd waits for the network"
    )
    host.systemctl("stop", BBOT)
    host.wait_for(lambda: state(host) == "stopped", "agentd has seen the stop")
    host.nics[0].plug()
    host.wait_for(lambda: instance(host, "Needs") == [], "all requirements are met")
    assert state(host) == "stopped"
    host.systemctl("start", BBOT)
    wait_until_runs(host)


def test_refused_start_by_operator_is_not_a_stop(host: Host, lan: Lan, url: str) -> None:
    host.configure("agentd", "[bbot.default]\n")
    host.start([lan])
    host.wait_for(lambda: state(host) == "invalid", "the agent has no controller")
    assert not host.succeeds(["systemctl", "start", BBOT])
    assert not host.succeeds(["systemctl", "start", BBOT])
    assert state(host) == "invalid"
    reload(host, bbot(url))
    wait_until_runs(host)


def test_unmasked_agent_is_supervised_again(host: Host, lan: Lan, url: str) -> None:
    host.configure("agentd", bbot(url))
    host.start([lan], plugged=False)
    host.wait_for(lambda: state(host) == "waiting", "agentd waits for the network")
    host.systemctl("mask", "--runtime", BBOT)
    host.systemctl("restart", "buildos-agentd.service")
    host.nics[0].plug()
    host.wait_for(lambda: "masked" in instance(host, "Reason"), "the reason names the mask")
    host.systemctl("unmask", "--runtime", BBOT)
    wait_until_runs(host)
    host.systemctl("stop", BBOT)
    host.wait_for(lambda: state(host) == "stopped", "agentd has seen the stop")


def test_requirement_lost_later_does_not_end_agent(running: Host) -> None:
    pid = running.main_pid(BBOT)
    running.systemctl("stop", "buildos-natd")
    running.wait_for(lambda: instance(running, "Needs"), "agentd has seen the loss")
    assert needs(running) == {"private-network": "buildos-natd is not running"}
    assert running.main_pid(BBOT) == pid
    # The requirement applies to the next start.
    running.run(f"kill -KILL {pid}")
    running.wait_for(lambda: state(running) == "waiting", "bbot@default waits for natd")
    running.systemctl("start", "buildos-natd")
    wait_until_runs(running)


def test_slow_reload_of_systemd_does_not_end_agentd(running: Host, url: str) -> None:
    # systemd runs generators during a reload. This one takes longer than a method call may.
    generator = "/etc/systemd/system-generators/slow"
    running.write(generator, "#!/bin/sh\nexec sleep 16\n")
    running.run(["chmod", "+x", generator])
    pid = running.main_pid("buildos-agentd.service")
    reload(running, bbot(url, 'arguments = ["--verbose", "2"]') + bbot(url, name="other"))
    running.run(["rm", generator])
    assert running.main_pid("buildos-agentd.service") == pid
    wait_until_runs(running, "bbot@other")


def test_reload_adds_changes_and_removes_agents(running: Host, url: str) -> None:
    pid = running.main_pid(BBOT)
    # An error in the configuration ends no agent.
    reload(running, "[bbot.defualt\n")
    assert running.main_pid(BBOT) == pid
    assert "degraded" in running.status_text("buildos-agentd")
    # A new command line applies from the next start.
    reload(running, bbot(url, 'arguments = ["--verbose", "2"]') + "[bslave.x]\n")
    assert running.main_pid(BBOT) == pid
    assert "--verbose 2" in running.systemctl("cat", BBOT)
    running.wait_for(lambda: running.active(BSLAVE), "bslave@x runs")
    restart(running)
    running.wait_for(lambda: running.main_pid(BBOT) not in (0, pid), "the process has changed")
    cmdline = running.read(f"/proc/{wait_until_runs(running)}/cmdline").split("\0")
    assert "--verbose" in cmdline
    # A removed agent is stopped.
    reload(running, "[bslave.x]\n")
    running.wait_for(lambda: not running.active(BBOT), "bbot@default is stopped")
    assert running.bus_property("agent1", "Instances") == [
        "/org/build2/buildos/agent1/instance/buildos_2dbslave_40x"
    ]
    assert not running.succeeds(["test", "-e", f"/run/systemd/system/{BBOT}.d"])
    assert not running.succeeds(["systemctl", "start", BBOT])
    reload(running, bbot(url))
    wait_until_runs(running)


def test_systemctl_edit_takes_precedence(running: Host) -> None:
    pid = running.main_pid(BBOT)
    # The file that systemctl edit writes.
    lines = "[Service]\\nNice=7\\nEnvironment=BBOT_DOUBLE_INTERVAL_MS=100\\n"
    directory = f"/etc/systemd/system/{BBOT}.d"
    running.run(f"mkdir -p {directory}; printf '{lines}' >{directory}/override.conf")
    running.systemctl("daemon-reload")
    assert running.main_pid(BBOT) == pid
    running.systemctl("restart", BBOT)
    after = wait_until_runs(running)
    assert after != pid
    assert running.run(f"ps -o ni= -p {after}").strip() == "7"
    assert "BBOT_DOUBLE_INTERVAL_MS=100" in running.read(f"/proc/{after}/environ")


def test_agent_configured_again_during_stop_starts_again(host: Host, lan: Lan, url: str) -> None:
    slow = "#!/bin/sh\ntrap : TERM\nwhile [ ! -e /build/end-$$ ]; do sleep 0.1; done\n"
    host.file("/opt/agent", slow)
    toml = bbot(url, 'program = "/opt/agent"')
    host.configure("agentd", toml)
    host.start([lan])
    host.run("chmod +x /opt/agent")
    pid = wait_until_runs(host)
    reload(host, toml + "enabled = false\n")
    assert host.status_text("buildos-agentd") == "no agents configured; bbot@default is disabled"
    host.wait_for(
        lambda: host.unit(BBOT, "ActiveState")["ActiveState"] == "deactivating", "the unit stops"
    )
    reload(host, toml)
    host.wait_for(
        lambda: "its unit is being stopped" in host.status_text("buildos-agentd"),
        "agentd waits for the end of the stop",
    )
    host.run(f"touch /build/end-{pid}")
    assert wait_until_runs(host) != pid


def test_all_users_read_and_administrators_call_methods(running: Host) -> None:
    def unprivileged(groups: str, *arguments: str) -> list[str]:
        command = ["setpriv", "--reuid=65534", "--regid=65534", groups, "busctl"]
        return [*command, arguments[0], *agent1(), *arguments[1:]]

    restart = ["call", "Restart", "s", "bbot@default"]
    reason = running.run(unprivileged("--clear-groups", "get-property", "Reason"))
    assert reason == 's "1 of 1 agents run"\n'
    assert not running.succeeds(unprivileged("--clear-groups", *restart))
    admin = running.run("getent group buildos-admin | cut -d: -f3").strip()
    pid = running.main_pid(BBOT)
    running.run(unprivileged(f"--groups={admin}", *restart))
    running.wait_for(lambda: running.main_pid(BBOT) not in (0, pid), "the process has changed")
    with pytest.raises(CommandFailed, match="bbot@other is not configured"):
        running.run(["busctl", "call", *agent1(), "Restart", "s", "bbot@other"])


def test_status_without_agents_is_no_agents_configured(host: Host, lan: Lan) -> None:
    host.start([lan])
    host.wait_for_boot()
    assert host.active("buildos-agentd")
    assert host.status_text("buildos-agentd") == "no agents configured"
    assert host.bus_property("agent1", "Instances") == []


def test_arguments_and_environment_reach_agent_unchanged(host: Host, lan: Lan) -> None:
    arguments = [
        "",
        "a b",
        "$HOME ${HOME}",
        "100% %n",
        'say "x"',
        "a\\b",
        "line\nfeed",
        ";",
        "#",
        "'",
        "ü",
    ]
    variables = ["A=", "B=a b $HOME %n", 'C="x"\\']
    lan.serve_dhcp()
    host.configure(
        "agentd",
        f"[bslave.x]\narguments = {json.dumps(arguments)}\nenvironment = {json.dumps(variables)}\n",
    )
    host.start([lan])
    host.wait_for(lambda: host.active(BSLAVE), "bslave@x runs")
    pid = host.main_pid(BSLAVE)
    cmdline = host.read(f"/proc/{pid}/cmdline").split("\0")
    assert cmdline[1:-1] == arguments
    environment = host.read(f"/proc/{pid}/environ").split("\0")
    assert set(variables) < set(environment)


def test_sandbox_permits_operations_of_bbot_agent(host: Host, lan: Lan, url: str) -> None:
    script = """#!/bin/sh -eu
        [ "$(id -un)" = build ]
        sudo -n ip tuntap add tap7 mode tap user build
        sudo -n ip link set tap7 up master br1
        sudo -n iptables -t nat -A PREROUTING -m physdev --physdev-in tap7 \\
            -d 196.254.111.222 -p udp --dport 69 -j REDIRECT --to-ports 23400
        # The host has no btrfs.
        sudo -n -l btrfs subvolume create /build/machines/x
        if sudo -n true; then exit 1; fi
        if sudo -n ip netns exec x true; then exit 1; fi
        if touch /usr/here; then exit 1; fi
        touch /tmp/private /build/machines/here
        exec sleep infinity
        """
    host.file("/opt/agent", script)
    host.configure("agentd", bbot(url, 'program = "/opt/agent"'))
    host.start([lan])
    program = "program /opt/agent is not executable"
    host.wait_for(lambda: needs(host) == {"program": program}, "only the program is missing")
    host.run("chmod +x /opt/agent")
    host.wait_for(
        lambda: host.run(f"ps -o comm= -p {host.main_pid(BBOT)}", check=False) == "sleep\n",
        "the agent has finished the operations",
    )
    assert host.link("tap7")["master"] == "br1"
    assert "redir ports 23400" in host.run("iptables -t nat -L PREROUTING -n")
    assert not host.succeeds("test -e /tmp/private")
    # systemd removes the unit's private /tmp with the unit.
    host.systemctl("stop", BBOT)
    assert host.run("find /tmp -name private") == ""


def test_unwritable_state_file_is_degraded_state(host: Host, lan: Lan, url: str) -> None:
    host.configure("agentd", bbot(url))
    host.start([lan])
    wait_until_runs(host)
    agentd = host.main_pid("buildos-agentd")
    host.run("mkdir /run/buildos/agentd/state.json.new")
    host.systemctl("stop", BBOT)
    host.systemctl("start", BBOT)
    host.run("buildosctl drain bbot@default")
    host.wait_for(
        lambda: "cannot write /run/buildos/agentd/state.json" in host.status_text("buildos-agentd"),
        "the status names the file",
    )
    host.run("rmdir /run/buildos/agentd/state.json.new")
    host.wait_for(
        lambda: "cannot write" not in host.status_text("buildos-agentd"), "the state is saved"
    )
    assert host.main_pid("buildos-agentd") == agentd
