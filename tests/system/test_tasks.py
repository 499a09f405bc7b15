"""Tests whole builds: controller, agent, machine, source, result."""

from __future__ import annotations

import ipaddress
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agents import BBOT, BSLAVE, LEAKED, bbot, bslave, messages, state, wait_until_runs
from host import Host
from roots import KERNEL
from simlan.agent_keys import fingerprint
from simlan.errors import CommandFailed
from simlan.lan import Lan
from task_machine import NAME, SNAPSHOTS, STARTED, TaskMachine, report
from update_farm import Farm, age, revisions, update, volume

PRIVATE = ipaddress.ip_network("172.23.0.0/16")

HELLO = """\
#include <stdio.h>
int main(void)
{
    puts("hello from a build machine");
    return 0;
}
"""

POLL_OFTEN = 'environment = ["BBOT_DOUBLE_INTERVAL_MS=200"]'


def start_site(host: Host, lan: Lan, toml: str) -> None:
    """Boots a host on a LAN with sources in C."""
    lan.serve_dhcp()
    host.configure("agentd", toml)
    host.start([lan])
    wait_until_runs(host)


def serve_sources(lan: Lan, **sources: str) -> str:
    """Starts the web server of the LAN. Returns its URL without a file name."""
    return lan.serve_web("", **{f"{name}.c": text for name, text in sources.items()})[:-4]


def wait_for_results(host: Host, lan: Lan, count: int) -> list[dict[str, str]]:
    """Waits for `count` results of tasks and returns them."""
    host.wait_for(lambda: len(lan.results()) >= count, f"{count} results", 90)
    return [entry["result"] for entry in lan.results()]


def path_of(entry: dict[str, Any]) -> str:
    """Returns the path of the controller that handed out a task: the tenant of its session."""
    return str(entry["session"]).partition("/")[0]


def leftovers(host: Host) -> list[str]:
    """Links, rules, namespaces and processes that tasks use while they run."""
    commands = [
        "ip -brief link show | grep ^tap || true",
        "iptables-save -t nat | grep -e --dport || true",
        "ip netns list",
        "pgrep -a bbot-worker || true",
        "pgrep -a qemu || true",
    ]
    return [line for command in commands for line in host.run(command).splitlines()]


def test_task_is_built_on_br1(host: Host, lan: Lan) -> None:
    web = serve_sources(lan, hello=HELLO)
    url = lan.start_controller()
    task = {"tasks": 1, "source": f"{web}hello.c"}
    start_site(host, lan, bbot(url, POLL_OFTEN))
    lan.script_controller(all=task)
    (result,) = wait_for_results(host, lan, 1)
    assert result == {
        "name": "hello-1",
        "version": "1.0.0",
        "status": "success",
        "update-status": "success",
        "update-log": "tcc source.c",
        "test-status": "success",
        "test-log": "hello from a build machine",
    }
    (entry,) = lan.results()
    assert entry["error"] is None
    # The machine had a lease of br1, and the LAN saw the address of the host only.
    leases = host.read("/run/buildos/dnsmasq/leases").split()
    assert ipaddress.ip_address(leases[2]) in PRIVATE
    (address,) = host.addresses("br0")
    assert lan.web_clients() == [address.split("/")[0]]
    host.wait_for(lambda: not leftovers(host), "the task has left nothing")
    assert messages(host, LEAKED) == []
    assert host.failed_units() == []


def test_task_runs_in_its_revision_while_the_next_one_is_published(farm: Farm, host: Host) -> None:
    lan = farm.lan
    url = lan.start_controller()
    task = {"source": f"{serve_sources(lan, hello=HELLO)}hello.c", "machine": NAME}
    host.configure("agentd", bbot(url, POLL_OFTEN))
    machine = TaskMachine(farm, 5_000_000)
    one = machine.publish("one")
    farm.start(host, "machines.keep = 0\n")
    wait_until_runs(host)
    assert update(host)["result"] == "serial 1: 1 placed"
    lan.script_controller(all={"tasks": 1, **task})
    host.wait_for(lambda: host.succeeds(STARTED), "a task runs in the machine")

    two = machine.publish("two")
    assert update(host)["result"] == "serial 2: 1 placed"
    age(host)
    update(host)
    # The task has a snapshot of its own.
    assert revisions(host) == [f"{NAME}-2*"]
    (snapshot,) = host.run(SNAPSHOTS).split()
    assert snapshot.startswith(f"{NAME}-1-tap")
    assert volume(host)["foreign"] == [f"{NAME}/{snapshot}"]
    machine.release()
    assert report(wait_for_results(host, lan, 1)[0]) == one
    lan.script_controller(all={"tasks": 2, **task})
    assert report(wait_for_results(host, lan, 2)[1]) == two
    host.wait_for(lambda: not host.run(SNAPSHOTS) and not leftovers(host), "nothing is left")


def make_key(directory: Path) -> str:
    """Makes an RSA key, with its public key in `directory`; returns the private key."""
    key = subprocess.check_output(["openssl", "genrsa", "2048"], text=True)
    public = ["openssl", "pkey", "-pubout", "-out", str(directory / "agent.pem")]
    subprocess.run(public, input=key, text=True, check=True)
    return key


AUTH_KEY = 'auth_key = "bbot-key:/etc/bbot/key"'


def test_agent_with_key_signs_result_and_uploads(host: Host, lan: Lan, tmp_path: Path) -> None:
    web = serve_sources(lan, hello=HELLO)
    host.file("/etc/bbot/key", make_key(tmp_path))
    url = lan.start_controller(tmp_path)
    lan.script_controller(
        all={"tasks": 1, "source": f"{web}hello.c", "upload": {"archive": 0, "tiny": 1}}
    )
    start_site(host, lan, bbot(url, POLL_OFTEN, AUTH_KEY))
    (result,) = wait_for_results(host, lan, 1)
    assert result["status"] == "success"
    # The operator compares it with the keys of the controller.
    assert f"key: {fingerprint(tmp_path / 'agent.pem')}\n" in host.run("buildosctl agents")
    assert [entry["error"] for entry in lan.results()] == [None]
    requests = lan.json_log("controller.jsonl")
    uploads = [(r["path"], r["status"], r["error"]) for r in requests if "?upload=" in r["path"]]
    assert uploads == [
        ("/?upload=archive", 200, None),
        ("/?upload=tiny", 413, "more than 1 bytes"),
    ]


def test_agent_with_unknown_key_gets_no_task(host: Host, lan: Lan, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    make_key(tmp_path)
    host.file("/etc/bbot/key", make_key(tmp_path / "other"))
    url = lan.start_controller(tmp_path)
    lan.script_controller(all={"tasks": 1})
    start_site(host, lan, bbot(url, POLL_OFTEN, AUTH_KEY))
    host.wait_for(lambda: len(lan.task_requests()) >= 3, "the agent polls")
    assert {entry["status"] for entry in lan.task_requests()} == {200}
    assert {entry["session"] for entry in lan.task_requests()} == {None}


def test_agent_without_key_is_unauthorized(host: Host, lan: Lan, tmp_path: Path) -> None:
    make_key(tmp_path)
    url = lan.start_controller(tmp_path)
    start_site(host, lan, bbot(url, POLL_OFTEN))
    host.wait_for(lambda: lan.task_requests(), "the agent polls")
    assert lan.task_requests()[0]["status"] == 401


# Prints the version of the kernel.
WHERE = """\
#include <stdio.h>
#include <sys/utsname.h>
int main(void)
{
    struct utsname system;
    if (uname(&system) != 0)
        return 1;
    puts(system.release);
    return 0;
}
"""


def virtual(url: str, *mischief: str) -> str:
    """Returns the configuration of a bbot with virtual machines."""
    variables = ["BBOT_DOUBLE_INTERVAL_MS=200", "BBOT_DOUBLE_MACHINE=vm"]
    variables += [f"BBOT_DOUBLE_KERNEL={KERNEL}", *mischief]
    return bbot(url, f"environment = {json.dumps(variables)}")


def test_task_is_built_in_virtual_machine(
    host: Host, lan: Lan, figure: Callable[[str], None]
) -> None:
    web = serve_sources(lan, where=WHERE)
    url = lan.start_controller()
    lan.script_controller(all={"tasks": 1, "source": f"{web}where.c"})
    start_site(host, lan, virtual(url))
    # A process has no arguments for a moment during execve(2), so the test waits for them.
    running = "pgrep -a qemu | grep ifname= || true"
    machine = host.wait_for(lambda: host.run(running), "a machine runs")
    tap = machine.split("ifname=")[1].split(",")[0]
    assert "-device virtio-net-pci" in machine
    assert host.link(tap)["master"] == "br1"
    assert machine.split()[0] in host.run(f"systemctl status {BBOT} --no-pager")
    (result,) = wait_for_results(host, lan, 1)
    assert result["status"] == "success", result
    # The machine runs the configured kernel, not the host's.
    assert host.run(["readlink", KERNEL]).strip().endswith(f"/vmlinuz-{result['test-log']}")
    handed = next(entry["time"] for entry in lan.task_requests() if entry["session"])
    figure(f"a task in QEMU, controller to controller: {lan.results()[0]['time'] - handed:.1f} s")
    # The machine had a lease of br1 for its own MAC address, and used NAT.
    mac, leased = host.read("/run/buildos/dnsmasq/leases").split()[1:3]
    assert int(mac[:2], 16) & 3 == 2
    assert ipaddress.ip_address(leased) in PRIVATE
    assert lan.web_clients() == [host.addresses("br0")[0].split("/")[0]]
    host.wait_for(lambda: not leftovers(host), "the task has left nothing")
    assert messages(host, LEAKED) == []
    assert host.failed_units() == []


def test_virtual_machine_ends_with_agent(host: Host, lan: Lan) -> None:
    """The agent is stopped, then killed, during a long task."""
    web = serve_sources(lan, hello=HELLO)
    url = lan.start_controller()
    lan.script_controller(all={"tasks": 2, "source": f"{web}hello.c"})
    start_site(host, lan, virtual(url, "BBOT_DOUBLE_MISCHIEF=slow=600"))

    def is_building() -> bool:
        """Returns true if each task has fetched its source."""
        return len(lan.web_clients()) == len([e for e in lan.task_requests() if e["session"]])

    host.wait_for(lambda: lan.web_clients() and is_building(), "a machine builds")
    host.systemctl("stop", BBOT)
    assert leftovers(host) == []
    assert messages(host, LEAKED) == []
    assert [entry["result"]["status"] for entry in lan.results()] == ["interrupt"]
    host.systemctl("start", BBOT)
    host.wait_for(lambda: len(lan.web_clients()) == 2, "a second machine builds")
    host.run(f"kill -KILL {host.main_pid(BBOT)}")
    host.wait_for(lambda: not leftovers(host), "the task has left nothing")
    # The tap outlives its process.
    assert any("removing tap tap" in message for message in messages(host, LEAKED))
    wait_until_runs(host)


def test_failed_tasks_leave_nothing(host: Host, lan: Lan) -> None:
    web = serve_sources(
        lan, bad="int main(void) { return x; }\n", fails="int main(void){return 3;}\n"
    )
    url = lan.start_controller()
    lan.script_controller(
        bad={"tasks": 1, "source": f"{web}bad.c"},
        fails={"tasks": 1, "source": f"{web}fails.c"},
        gone={"tasks": 1, "source": f"{web}gone.c"},
    )
    urls = '", "'.join(f"{url}{path}" for path in ("bad", "fails", "gone"))
    start_site(host, lan, bbot(urls, POLL_OFTEN, "instance_max = 3"))
    wait_for_results(host, lan, 3)
    results = {path_of(entry): entry["result"] for entry in lan.results()}
    assert {result["status"] for result in results.values()} == {"error"}
    assert "'x' undeclared" in results["bad"]["update-log"]
    assert "exit status: 3" in results["fails"]["test-log"]
    assert "cannot fetch" in results["gone"]["update-log"]
    assert state(host) == "running"
    host.wait_for(lambda: not leftovers(host), "the tasks have left nothing")


def test_agent_polls_by_priority_and_tolerates_broken_controllers(host: Host, lan: Lan) -> None:
    web = serve_sources(lan, hello=HELLO)
    url = lan.start_controller()
    lan.script_controller(
        all={},
        urgent={"tasks": 2, "source": f"{web}hello.c", "gone": True},
        unauthorized={"answer": 401},
        broken={"answer": 503},
        garbage={"answer": "garbage"},
        away={"answer": "away"},
        slow={"delay": 0.5},
    )
    others = ("unauthorized", "broken", "garbage", "away", "slow", "calm")
    urls = '", "'.join([f"0010={url}urgent", *(f"{url}{path}" for path in others)])
    start_site(host, lan, bbot(urls, POLL_OFTEN))
    pid = host.main_pid(BBOT)
    wait_for_results(host, lan, 2)
    host.wait_for(
        lambda: [e["path"] for e in lan.task_requests()].count("/calm") >= 3,
        "the agent continues to poll",
    )
    polls = [entry["path"] for entry in lan.task_requests()]
    assert polls[0] == "/urgent"
    assert {f"/{path}" for path in others} < set(polls)
    # While a task with a higher B ran, no other controller was polled.
    assert polls.index("/calm") > polls.index("/urgent") + 1
    # The controller refuses late results without an error for the agent.
    assert {entry["error"] for entry in lan.results()} == {"expired session: no package build"}
    assert host.main_pid(BBOT) == pid
    warnings = host.run(f"journalctl --unit={BBOT} --priority=warning --output=cat")
    for word in ("401", "503", "Peer disconnected", "valid UTF-8"):
        assert word in warnings


def test_urgent_task_interrupts_other_task(host: Host, lan: Lan) -> None:
    web = serve_sources(lan, hello=HELLO)
    url = lan.start_controller()
    calm = {"tasks": 1, "source": f"{web}hello.c"}
    lan.script_controller(calm=calm)
    environment = '"BBOT_DOUBLE_INTERVAL_MS=200", "BBOT_DOUBLE_MISCHIEF=slow=5"'
    urls = f'{url}calm", "1000={url}urgent'
    start_site(host, lan, bbot(urls, f"environment = [{environment}]"))
    host.wait_for(lambda: leftovers(host), "a task runs")
    lan.script_controller(calm=calm, urgent=calm)
    wait_for_results(host, lan, 2)
    results = {path_of(entry): entry["result"]["status"] for entry in lan.results()}
    assert results == {"calm": "interrupt", "urgent": "success"}
    host.wait_for(lambda: not leftovers(host), "the tasks have left nothing")


def test_drained_agent_ends_task_first(host: Host, lan: Lan) -> None:
    web = serve_sources(lan, hello=HELLO)
    url = lan.start_controller()
    lan.script_controller(all={"tasks": 9, "source": f"{web}hello.c"})
    environment = '"BBOT_DOUBLE_INTERVAL_MS=200", "BBOT_DOUBLE_MISCHIEF=slow=3"'
    start_site(host, lan, bbot(url, f"environment = [{environment}]"))
    host.wait_for(lambda: leftovers(host), "a task runs")
    host.run(["buildosctl", "drain", "--wait"], deadline=60)
    host.wait_for(lambda: host.main_pid(BBOT) == 0, "the agent is stopped")
    # The first task was finished, and every task has a result.
    handed = [e["session"] for e in lan.task_requests() if e["session"]]
    finished = {entry["session"]: entry["result"]["status"] for entry in lan.results()}
    assert finished[handed[0]] == "success"
    assert set(handed) == set(finished)
    assert leftovers(host) == []


def test_agent_crash_during_task_leaves_nothing(host: Host, lan: Lan) -> None:
    web = serve_sources(lan, hello=HELLO)
    url = lan.start_controller()
    environment = '"BBOT_DOUBLE_INTERVAL_MS=200", "BBOT_DOUBLE_MISCHIEF=slow=600"'
    start_site(host, lan, bbot(url, f"environment = [{environment}]"))
    lan.script_controller(all={"tasks": 1, "source": f"{web}hello.c"})
    host.wait_for(lambda: len(leftovers(host)) >= 2, "a task runs")
    host.run(f"kill -KILL {host.main_pid(BBOT)}")
    host.wait_for(lambda: not leftovers(host), "the task has left nothing")
    wait_until_runs(host)


def test_misbehaving_agents_are_contained(host: Host, lan: Lan) -> None:
    """The agents hang, leak, crash after some polls, and ignore SIGTERM."""
    url = lan.start_controller()

    def misbehaving(name: str, mischief: str) -> str:
        variables = f'"BBOT_DOUBLE_INTERVAL_MS=100", "BBOT_DOUBLE_MISCHIEF={mischief}"'
        return bbot(f"{url}{name}", f"environment = [{variables}]", name=name)

    impatient = "/etc/systemd/system/buildos-bbot@stubborn.service.d/test.conf"
    host.file(impatient, "[Service]\nTimeoutStopSec=1s\n")
    start_site(
        host,
        lan,
        bbot(url)
        + misbehaving("hangs", "hang")
        + misbehaving("leaks", "leak,crash-after=2")
        + misbehaving("stubborn", "ignore-term"),
    )
    crash = "exit code 70"
    host.wait_for(lambda: crash in host.status_text("buildos-agentd"), "the crash is reported")
    host.wait_for(lambda: len(messages(host, LEAKED)) >= 3, "the leftovers are logged")
    wait_until_runs(host, "bbot@hangs")
    assert [e for e in lan.task_requests() if e["path"] == "/hangs"] == []
    began = time.monotonic()
    host.systemctl("stop", "buildos-bbot@stubborn", "buildos-bbot@hangs", "buildos-bbot@leaks")
    assert time.monotonic() - began < 15
    host.wait_for(lambda: not leftovers(host), "the agents have left nothing")
    assert wait_until_runs(host)


def test_container_of_bslave_is_reached_from_lan(host: Host, lan: Lan) -> None:
    lan.serve_dhcp()
    arguments = 'arguments = ["--bridge", "br0", "--port", "7000"]'
    host.configure("agentd", bslave("/usr/bin/bslave", arguments))
    host.start([lan])
    pid = wait_until_runs(host, "bslave@x")
    host.wait_for(lambda: len(lan.leases()) == 2, "two leases")
    (address,) = (ip for mac, ip in lan.leases().items() if mac != host.nics[0].mac)
    ask = "import socket; s = socket.create_connection(('%s', 7000), 5); print(s.makefile().read())"
    name = host.wait_for(lambda: run_on(lan, ask % address), "the container answers from the LAN")
    assert name.startswith("tap")
    assert host.link(name)["master"] == "br0"
    # The container is in the unit and ends with it.
    assert pid and host.run(f"systemctl status {BSLAVE} --no-pager").count("--inside") >= 1
    host.systemctl("stop", BSLAVE)
    assert not run_on(lan, ask % address)
    assert leftovers(host) == []
    assert messages(host, LEAKED) == []


def run_on(lan: Lan, program: str) -> str:
    """Runs a Python program on the LAN. Returns its output, or nothing if it fails."""
    try:
        return lan.run(["python3", "-c", program]).strip()
    except CommandFailed:
        return ""
