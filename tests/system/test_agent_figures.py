"""Measures agentd, and tests that many starts and ends leave nothing."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable

from agents import BBOT, RUNNING, bbot, bslave, restart, state
from host import Host
from nat import wait_until_ready
from simlan.lan import Lan

AGENTS = 50
CRASHES = 1000


def residents(host: Host) -> dict[str, int]:
    """Memory of agentd, kB."""
    pid = host.main_pid("buildos-agentd")
    rollup = host.read(f"/proc/{pid}/smaps_rollup")
    return {
        name: int(re.findall(rf"^{name}: +(\d+) kB$", rollup, re.MULTILINE)[0])
        for name in ("Rss", "Private_Dirty")
    }


def population(host: Host) -> dict[str, int]:
    """Counts everything that agents could leave."""
    commands = {
        "units": "systemctl list-units --all --no-legend 'buildos-b*@*'",
        "jobs": "systemctl list-jobs --no-legend",
        "processes": "ps -u build -o pid=",
        "links": "ip -brief link",
        "rules": "iptables-save -t nat | grep -e --dport",
        "namespaces": "ip netns list",
        "control groups": "find /sys/fs/cgroup/buildos.slice -name '*.service'",
        "descriptors": f"ls /proc/{host.main_pid('buildos-agentd')}/fd",
    }
    return {
        name: len(host.run(f"{command} || true").splitlines())
        for name, command in commands.items()
    }


def nothing_new(host: Host, before: dict[str, int]) -> bool:
    """Returns true if no count is higher than before. Counts can be lower: natd might have
    ended a probe."""
    return all(count <= before[name] for name, count in population(host).items())


def time_of(host: Host, identifier: str, grep: str) -> float:
    """Time of the last matching message of a program."""
    entries = host.journal(f"SYSLOG_IDENTIFIER={identifier}", f"--grep={grep}")
    return float(entries[-1]["__REALTIME_TIMESTAMP"]) / 1e6 if entries else 0.0


def test_agent_starts_and_then_polls_after_network_is_ready(
    host: Host, lan: Lan, url: str, figure: Callable[[str], None]
) -> None:
    """Measures from the lease of br0 and the NAT of br1 to the first poll."""
    host.configure("agentd", bbot(url))
    host.start([lan], plugged=False)
    host.wait_for_boot()
    until_start: list[float] = []
    until_poll: list[float] = []
    for _ in range(6):
        before = len(lan.task_requests())
        host.nics[0].plug()
        wait_for_poll(host, lan, before)
        ready = max(
            time_of(host, "buildos-netd", "bound to|extended|confirmed"),
            time_of(host, "buildos-natd", "goes out through br0"),
        )
        # The first message of the program.
        until_start.append(time_of(host, "bbot-agent", "^toolchain") - ready)
        until_poll.append(lan.task_requests()[before]["time"] - ready)
        host.nics[0].unplug()
        host.systemctl("stop", BBOT)
        host.wait_for(lambda: state(host) == "stopped", "the agent is stopped")
        host.wait_for(lambda: not host.bus_property("network1", "Online"), "the host is offline")
        restart(host)
    for what, delays in (("program running", until_start), ("first poll", until_poll)):
        cold, *warm = (delay * 1000 for delay in delays)
        figure(
            f"network ready to {what}: {cold:.0f} ms at boot, "
            f"{min(warm):.0f}-{max(warm):.0f} ms (median {statistics.median(warm):.0f}) later"
        )
    assert 0 < statistics.median(until_start) < statistics.median(until_poll)


def wait_for_poll(host: Host, lan: Lan, before: int) -> None:
    host.wait_for(lambda: len(lan.task_requests()) > before, "a poll")


def test_fifty_agents_leave_nothing(host: Host, lan: Lan, figure: Callable[[str], None]) -> None:
    lan.serve_dhcp()
    names = [f"a{number}" for number in range(AGENTS)]
    toml = "".join(bslave("/usr/bin/bslave", name=name) for name in names)
    host.start([lan])
    host.wait_for_boot()
    wait_until_ready(host)
    empty, before = residents(host), population(host)
    write = "cat >/etc/buildos/agentd.conf.d/50-test.toml; systemctl reload buildos-agentd"
    host.run("mkdir -p /etc/buildos/agentd.conf.d")
    for _ in range(3):
        host.run(["sh", "-ec", f'printf %s "$1" | ({write})', "sh", toml])
        host.wait_for(
            lambda: f"{AGENTS} of {AGENTS} agents run" in host.status_text("buildos-agentd"),
            "all agents run",
            120,
        )
        full = residents(host)
        host.run(["sh", "-ec", f": | ({write})"])
        host.wait_for(
            lambda: host.status_text("buildos-agentd") == "no agents configured",
            "no agent runs",
            120,
        )
        host.wait_for(lambda: population(host)["processes"] == 0, "all agents have ended", 120)
    started = host.journal(f"MESSAGE_ID={RUNNING}")
    # agentd can write the second and third start of an agent as one line.
    assert len({entry["BUILDOS_AGENT"] for entry in started}) == AGENTS
    # agentd returns freed memory some seconds after the last event.
    host.wait_for(
        lambda: residents(host)["Private_Dirty"] < full["Private_Dirty"] * 9 // 10,
        "agentd has returned memory",
    )
    after = residents(host)
    figure(f"agentd without agents: RSS {empty['Rss']} kB, dirty {empty['Private_Dirty']} kB")
    figure(f"agentd with {AGENTS}: RSS {full['Rss']} kB, dirty {full['Private_Dirty']} kB")
    figure(f"agentd after them: RSS {after['Rss']} kB, dirty {after['Private_Dirty']} kB")
    host.wait_for(lambda: nothing_new(host, before), "the agents have left nothing")
    assert host.failed_units() == []


def test_thousand_crashes_leave_nothing(
    host: Host, lan: Lan, figure: Callable[[str], None]
) -> None:
    """Each agent creates a tap and a redirection and leaves them."""
    lan.serve_dhcp()
    url = lan.start_controller()
    names = [f"a{number}" for number in range(AGENTS)]
    mischief = 'environment = ["BBOT_DOUBLE_INTERVAL_MS=10", "BBOT_DOUBLE_MISCHIEF={}"]'
    crash = mischief.format("leak,crash-after=1")
    host.configure("agentd", "".join(bbot(url, crash, name=name) for name in names))
    host.start([lan])
    host.wait_for_boot()
    agents = [f"bbot@{name}" for name in names]

    def crashes() -> int:
        ended = host.run("journalctl --output=cat --grep='status=70' _PID=1 | wc -l")
        return int(ended)

    sizes: list[int] = []
    while crashes() < CRASHES:
        known = crashes()
        sizes.append(residents(host)["Rss"])
        for agent in agents:
            restart(host, agent)
        wait_for_crash(crashes, host, known)
    figure(f"RSS of agentd over {crashes()} crashes: {sizes[0]} to {max(sizes)} kB")
    host.run("echo >/etc/buildos/agentd.conf.d/50-test.toml; systemctl reload buildos-agentd")
    host.wait_for(lambda: population(host)["processes"] == 0, "all agents have ended", 120)

    def nothing_left() -> bool:
        left, names = population(host), ("units", "jobs", "rules", "namespaces")
        assert {name: left[name] for name in names} == dict.fromkeys(names, 0)
        return True

    host.wait_for(nothing_left, "the agents have left nothing")
    # lo, eth0, br0, br1, and temporarily the link of a probe.
    host.wait_for(lambda: population(host)["links"] == 4, "no tap is left")
    assert population(host)["control groups"] == 0
    assert host.run("systemctl is-system-running || true").strip() == "running"


def wait_for_crash(crashes: Callable[[], int], host: Host, known: int) -> None:
    host.wait_for(lambda: crashes() > known, "an agent crashes again", 120)
