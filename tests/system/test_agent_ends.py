"""Tests the ends of agents: exit status, and removal of leftovers."""

from __future__ import annotations

import json

import pytest
from agents import (
    BBOT,
    BSLAVE,
    CRASH_LOOP,
    LEAKED,
    bbot,
    bslave,
    instance,
    messages,
    reload,
    restart,
    state,
    wait_for_state,
    wait_until_runs,
)
from host import Host
from simlan.lan import Lan

AGENT = "bslave@x"
REAP = "buildos-agent-reap@bbot@default.service"
FAILED_REAP = "buildos-agent-reap@bbot@default@failed.service"

# Creates everything that outlives a process, then creates /build/ready.
LEAKY = """#!/bin/bash
sleep 1000 &
setsid sleep 1001 &
ip() { sudo -n ip "$@"; }
ip tuntap add tap7 mode tap user build
ip link set tap7 up master br1
sudo -n iptables -t nat -A PREROUTING -m physdev --physdev-in tap7 -d 196.254.111.222 \
    -p udp --dport 69 -j REDIRECT --to-ports 23400
ip netns add build7
trap 'exit 0' TERM
touch /build/ready
while [ ! -e /build/crash ]; do read -rt 0.1 <> <(:); done
exit 3
"""

# buildos-agentd.8 names this directory for other commands.
SUDOERS = ("/etc/sudoers.d/test", "build ALL=(root) NOPASSWD: /usr/*bin/ip ^netns add build7$\n")


@pytest.fixture
def leaky(host: Host, lan: Lan, url: str) -> Host:
    """A host whose bbot@default has created everything that outlives it."""
    host.program("/opt/agent", LEAKY)
    host.file(*SUDOERS)
    host.configure("agentd", bbot(url, 'program = "/opt/agent"'))
    host.start([lan])
    host.wait_for(lambda: host.succeeds("test -e /build/ready"), "the leftovers exist")
    return host


def leftovers(host: Host) -> list[str]:
    """Processes, taps, rules and namespaces, as the tools of an operator list them."""
    commands = [
        "ps -u build -o args= || true",
        "ip -brief link show type tun",
        "iptables-save -t nat | grep -e --dport || true",
        "ls /run/netns || true",
    ]
    return [line for command in commands for line in host.run(command).splitlines()]


def leak_messages(host: Host) -> str:
    return "\n".join(messages(host, LEAKED))


def test_leftovers_of_crashed_agent_are_logged_and_removed(leaky: Host) -> None:
    assert len(leftovers(leaky)) >= 6
    # Taps, rules and namespaces of other users stay.
    leaky.run("ip tuntap add tap8 mode tap user daemon")
    leaky.run("iptables -t nat -A PREROUTING -i tap7 -p tcp --dport 80 -j ACCEPT")
    leaky.run("ip netns add foreign")
    leaky.run("systemctl stop buildos-agentd; touch /build/crash")
    leaky.wait_for(
        lambda: leaky.unit(BBOT, "SubState")["SubState"] == "auto-restart", "the agent has ended"
    )
    leaky.wait_for(
        lambda: [line.split()[0] for line in leftovers(leaky)] == ["tap8", "-A", "foreign"],
        "leftovers of other users are left only",
    )
    assert "-p tcp" in leftovers(leaky)[1]
    for what in ("removing tap tap7", "removing a rule of table nat", "network namespace build7"):
        assert what in leak_messages(leaky)
    # systemd logs the processes of the unit.
    assert leaky.journal("_PID=1", f"UNIT={FAILED_REAP}", "--priority=warning") == []
    journal = leaky.run(f"journalctl --unit={BBOT} --output=cat")
    assert journal.count("(sleep) with signal SIGKILL") == 2
    assert "code=exited, status=3" in journal


def test_leftovers_of_stopped_agent_are_logged_and_removed(leaky: Host) -> None:
    leaky.systemctl("stop", BBOT)
    leaky.wait_for(lambda: leftovers(leaky) == [], "the leftovers are removed")
    for what in ("removing tap tap7", "removing a rule", "namespace build7"):
        assert what in leak_messages(leaky)
    journal = leaky.run(f"journalctl --unit={BBOT} --output=cat")
    assert "(sleep) with signal SIGKILL" in journal
    assert "removing tap tap7, which bbot@default left behind" in journal
    assert leaky.unit(BBOT, "Result") == {"Result": "success"}
    assert leaky.unit(REAP, "Result") == {"Result": "success"}
    leaky.run("rm /build/ready")
    leaky.systemctl("start", BBOT)
    leaky.wait_for(lambda: leaky.succeeds("test -e /build/ready"), "the leftovers exist again")


def test_agent_restarts_after_its_leftovers_are_removed(leaky: Host) -> None:
    """Without the order, the new agent would fail to make its tap, or lose it."""
    slow = "[Service]\nExecStartPre=/bin/sleep 3\n"
    leaky.write(f"/run/systemd/system/{REAP}.d/slow.conf", slow)
    leaky.systemctl("daemon-reload")
    leaky.run("rm /build/ready")
    leaky.systemctl("restart", BBOT)
    leaky.wait_for(lambda: leaky.succeeds("test -e /build/ready"), "the leftovers exist again")
    assert leaky.unit(BBOT, "NRestarts") == {"NRestarts": "0"}
    reaped = leaky.unit(REAP, "InactiveEnterTimestampMonotonic")
    started = leaky.unit(BBOT, "ExecMainStartTimestampMonotonic")
    assert int(next(iter(reaped.values()))) <= int(next(iter(started.values())))


# The first ip in PATH, of the agent's user. Reports the user that runs it.
IP_OF_AGENT = """#!/bin/bash
id -u >>/build/ip-users
exec /usr/bin/ip "$@"
"""


def test_no_variable_of_agent_reaches_root(host: Host, lan: Lan, url: str) -> None:
    """Therefore `environment` accepts every variable, also those of the loader (ld.so(8))."""
    environment = [
        "PATH=/build/bin:/usr/sbin:/usr/bin",
        "LD_DEBUG=libs",
        "LD_DEBUG_OUTPUT=/build/loader/log",
        "USER=root",
    ]
    host.program("/opt/agent", LEAKY)
    host.file(*SUDOERS)
    host.program("/build/bin/ip", IP_OF_AGENT)
    host.configure(
        "agentd", bbot(url, 'program = "/opt/agent"', f"environment = {json.dumps(environment)}")
    )
    host.file(
        "/etc/tmpfiles.d/test.conf", "d /build/loader 1777\nf /build/ip-users 0666 build build\n"
    )
    host.start([lan])
    host.wait_for(lambda: host.succeeds("test -e /build/ready"), "the leftovers exist")
    host.systemctl("stop", BBOT)
    host.wait_for(lambda: "removing tap tap7" in leak_messages(host), "the leftovers are removed")
    host.wait_for(lambda: leftovers(host) == [], "nothing is left")
    build = host.run("id -u build").strip()
    assert set(host.read("/build/ip-users").split()) <= {build}
    # The variables reach the agent, and no process of root.
    assert host.run("find /build/loader -user build -name 'log.*'") != ""
    assert host.run("find /build/loader -user root -name 'log.*'") == ""


def test_clean_end_of_agent_logs_no_leftovers(host: Host, lan: Lan, url: str) -> None:
    host.configure("agentd", bbot(url))
    host.start([lan])
    wait_until_runs(host)
    host.systemctl("restart", BBOT)
    assert leak_messages(host) == ""
    errors = host.journal(f"--unit={BBOT}", "--priority=warning")
    assert [m["MESSAGE"] for m in errors] == []


def test_agent_that_ignores_sigterm_is_killed(host: Host, lan: Lan) -> None:
    lan.serve_dhcp()
    host.program("/opt/agent", "#!/bin/bash\ntrap '' TERM\nwhile :; do sleep 1; done\n")
    host.configure("agentd", bslave("/opt/agent"))
    host.file(f"/etc/systemd/system/{BSLAVE}.d/test.conf", "[Service]\nTimeoutStopSec=1s\n")
    host.start([lan])
    pid = wait_until_runs(host, AGENT)
    host.systemctl("stop", BSLAVE)
    assert not host.succeeds(f"test -e /proc/{pid}")
    wait_for_state(host, "stopped", AGENT)
    assert str(instance(host, "LastExit", AGENT)) == "signal KILL (timeout)"


def test_removed_agent_leaves_no_failed_unit(host: Host, lan: Lan) -> None:
    lan.serve_dhcp()
    host.program("/opt/agent", "#!/bin/bash\ntrap 'exit 3' TERM\nwhile :; do sleep 0.1; done\n")
    host.configure("agentd", bslave("/opt/agent"))
    host.start([lan])
    wait_until_runs(host, AGENT)
    host.systemctl("stop", BSLAVE)
    wait_for_state(host, "stopped", AGENT)
    assert BSLAVE in host.failed_units()[0]
    restart(host, AGENT)
    wait_until_runs(host, AGENT)
    reload(host, "")
    host.wait_for(
        lambda: not host.systemctl("list-units", "--all", "--no-legend", "buildos-bslave@*"),
        "the unit is unloaded",
    )
    assert "status=3" in host.run(f"journalctl --unit={BSLAVE} --output=cat")
    assert host.failed_units() == []


def test_exit_status_survives_restart_of_agentd(host: Host, lan: Lan) -> None:
    lan.serve_dhcp()
    host.program("/opt/agent", "#!/bin/bash\nsleep 0.1\nexit 42\n")
    host.configure("agentd", bslave("/opt/agent"))
    host.start([lan])
    host.wait_for(lambda: messages(host, CRASH_LOOP), "the agent ended three times")
    host.run("systemctl kill --signal=KILL buildos-agentd")
    host.wait_for(lambda: host.active("buildos-agentd"), "agentd is back")
    host.wait_for(lambda: instance(host, "Failures", AGENT) >= 4, "agentd counts further failures")
    assert instance(host, "LastExit", AGENT) == "exit code 42"
    assert instance(host, "CrashLoop", AGENT) is True
    exits = host.journal(f"OBJECT_SYSTEMD_UNIT={BSLAVE}", f"MESSAGE_ID={CRASH_LOOP}")
    assert {m["BUILDOS_EXIT"] for m in exits} == {"exit code 42"}
    assert {"3", "4"} <= {m["BUILDOS_FAILURES"] for m in exits}
    # D-Bus shows the next start. After a fix, Restart starts the agent at once.
    host.wait_for(lambda: state(host, AGENT) == "delayed", "the agent is delayed")
    assert instance(host, "NextStartUSec", AGENT) > instance(host, "SinceUSec", AGENT)
    host.run("printf '#!/bin/bash\\nexec sleep infinity\\n' >/opt/agent")
    restart(host, AGENT)
    wait_until_runs(host, AGENT)
    assert instance(host, "Failures", AGENT) == 0


def test_log_lines_of_agent_keep_level(host: Host, lan: Lan) -> None:
    lan.serve_dhcp()
    lines = "\n".join(f"echo '<{level}>level {level}' >&2" for level in range(8))
    host.program("/opt/agent", f"#!/bin/bash\n{lines}\necho none >&2\nexec sleep infinity\n")
    host.configure("agentd", bslave("/opt/agent"))
    host.start([lan])
    wait_until_runs(host, AGENT)

    def levels() -> dict[str, str]:
        entries = host.journal(f"_SYSTEMD_UNIT={BSLAVE}", "_TRANSPORT=stdout")
        return {m["MESSAGE"]: m["PRIORITY"] for m in entries}

    expected = {f"level {level}": str(level) for level in range(8)} | {"none": "6"}
    host.wait_for(lambda: levels() == expected, "every line has its level")


def test_devices_and_resources_of_agent_are_limited(host: Host, lan: Lan, url: str) -> None:
    script = """#!/bin/bash
    for device in /dev/net/tun /dev/null /build/loop; do
        (: <>$device) 2>/dev/null && echo "$device" >>/build/devices
    done
    touch /build/ready
    exec sleep infinity
    """
    host.program("/opt/agent", script)
    toml = "memory_reserve_mib = 2048\n" + bbot(url, 'program = "/opt/agent"')
    host.configure("agentd", toml)
    host.start([lan])
    host.run("mknod -m 666 /build/loop b 7 0; chmod 666 /dev/net/tun")
    wait_until_runs(host)
    host.systemctl("restart", BBOT)
    wait_until_runs(host)
    host.wait_for(lambda: host.succeeds("test -e /build/ready"), "the agent has tried the devices")
    assert set(host.read("/build/devices").split()) == {"/dev/net/tun", "/dev/null"}
    slice = host.unit("buildos-agents.slice", "MemoryMax", "TasksMax", "Slice")
    assert slice["Slice"] == "buildos.slice"
    assert slice["TasksMax"].isdigit()
    with open("/proc/meminfo") as text:
        total = int(text.readline().split()[1]) // 1024
    assert int(slice["MemoryMax"]) == (total - 2048) << 20
    weights = host.unit("buildos.slice", "CPUWeight", "IOWeight", "Slice")
    assert weights == {"CPUWeight": "20", "IOWeight": "20", "Slice": "-.slice"}
    assert host.unit(BBOT, "OOMPolicy", "OOMScoreAdjust", "DevicePolicy") == {
        "OOMPolicy": "continue",
        "OOMScoreAdjust": "200",
        "DevicePolicy": "closed",
    }
