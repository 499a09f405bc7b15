"""Tests what operators see of machines, and drains with suspended ones."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
from typing import Any

from agents import bbot, bslave, instance, messages, reload, state, wait_for_state, wait_until_runs
from host import Host
from machine import Machine
from nat import wait_until_ready
from roots import KERNEL
from simlan.lan import Lan

SUSPENDED = "b54ba12a3be54dfc9b37a826e744240a"
RESUMED = "411f1cbb54784c5cb6f882d1772908f1"
ENDED = "86c419d73c6a4059ba7b9b9012934b21"

UNPRIVILEGED = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]


def machines(host: Host) -> list[dict[str, Any]]:
    """Returns the machines as an unprivileged user sees them."""
    shown = host.run([*UNPRIVILEGED, "buildosctl", "machines", "--json"], check=False)
    return list(json.loads(shown)["machines"]) if shown else []


def _typed(host: Host, command: list[str]) -> str:
    """Runs a command on a terminal, types a command of QEMU's monitor and Ctrl-]; returns what
    the terminal shows."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        host.command(command), stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True
    )
    os.close(theirs)
    shown = ""

    def shows(text: str) -> bool:
        nonlocal shown
        while select.select([ours], [], [], 0)[0]:
            try:
                part = os.read(ours, 4096)
            except OSError:  # EIO: the command has ended.
                break
            shown += part.decode(errors="replace")
        return text in shown

    try:
        host.wait_for(lambda: shows("(qemu)"), "the monitor has a prompt")
        os.write(ours, b"info name\r")
        host.wait_for(lambda: shows("info name"), "the monitor echoes")
        os.write(ours, b"\x1d")
        host.wait_for(lambda: shows("detached from"), "the key ends the command")
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        os.close(ours)
    return shown


def virtual(url: str, *lines: str) -> str:
    """Returns the configuration of a bbot whose task takes ten minutes in a virtual machine."""
    variables = ["BBOT_DOUBLE_INTERVAL_MS=200", "BBOT_DOUBLE_MACHINE=vm"]
    variables += [f"BBOT_DOUBLE_KERNEL={KERNEL}", "BBOT_DOUBLE_MISCHIEF=slow=600"]
    return "\n".join([*lines, bbot(url, f"environment = {json.dumps(variables)}")])


def wait_for_virtual_machine(host: Host) -> dict[str, Any]:
    """Waits until the virtual machine of a task has an address; returns it."""

    def found() -> dict[str, Any] | None:
        return next((m for m in machines(host) if m["kind"] == "qemu" and m["address"]), None)

    return host.wait_for(found, "a virtual machine has an address", 120)


def test_suspended_machine_is_listed_and_does_not_hold_drain(host: Host, lan: Lan) -> None:
    web = lan.serve_web("", **{"hello.c": "int main(void) { return 0; }\n"})[:-4]
    url = lan.start_controller()
    lan.script_controller(all={"tasks": 1, "source": f"{web}hello.c"})
    lan.serve_dhcp()
    waits = virtual(url, 'suspended = "wait"', "suspended_after_s = 5", "")
    host.configure("agentd", waits)
    host.start([lan])
    main = wait_until_runs(host)
    machine = wait_for_virtual_machine(host)
    tap, pid = machine["port"], machine["process"]
    assert tap.startswith("tap") and machine["bridge"] == "br1"
    assert machine["agent"] == "bbot@default"
    assert machine["address"].startswith("172.23.")
    assert machine["memory"] > 64 << 20 and machine["cpu_usec"] > 0
    assert machine["received"] > 0 and machine["sent"] > 0
    assert pid != main and f"ifname={tap}" in host.read(f"/proc/{pid}/cmdline")
    row = next(r for r in host.run("buildosctl machines").splitlines() if r.startswith(tap))
    assert row.split()[1:5] == ["br1", machine["address"], "bbot@default", str(pid)]

    shown = host.run(f"echo info status | buildosctl machine attach {tap}")
    assert "VM status: running" in shown
    assert "info name" in _typed(host, ["buildosctl", "machine", "attach", "--monitor", tap])
    denied = host.run([*UNPRIVILEGED, "sh", "-c", f"buildosctl machine attach {tap} 2>&1 || :"])
    assert "only root may" in denied
    denied = host.run(f"buildosctl machine attach --vnc {tap} 2>&1 || :")
    assert f"{tap} has no console for --vnc, only for --monitor" in denied

    # QEMU gets no CPU time, as when an agent pauses it.
    host.run(f"kill -STOP {pid}")
    host.wait_for(lambda: messages(host, SUSPENDED), "the machine is suspended")
    suspended = next(m for m in machines(host) if m["port"] == tap)
    assert suspended["suspended_usec"] > machine["since_usec"]
    assert " suspended for " in host.run("buildosctl machines")
    host.run(["buildosctl", "drain"])
    name = f"{tap} (process {pid})"
    host.wait_for(
        lambda: instance(host, "Reason").endswith(f"; waits for suspended {name}"),
        "the drain waits for the machine",
    )
    assert state(host) == "draining"
    reload(host, waits.replace('"wait"', '"leave"'))
    wait_for_state(host, "drained")
    host.wait_for(lambda: host.main_pid("buildos-bbot@default.service") == 0, "the agent is down")
    host.wait_for(lambda: messages(host, ENDED), "the end of the machine is logged")
    (ended,) = host.journal(f"MESSAGE_ID={ENDED}")
    assert f"machine {name} of bbot@default has ended after" in ended["MESSAGE"]
    assert ended["INTERFACE"] == tap and int(ended["BUILDOS_CPU_MS"]) > 0
    assert int(ended["BUILDOS_MEMORY_PEAK"]) >= machine["memory"]
    assert int(ended["BUILDOS_SENT"]) >= machine["sent"]
    assert instance(host, "MachineTotals")["ended"] == 1
    host.wait_for(lambda: machines(host) == [], "no machine is left")
    assert host.run("buildosctl machines") == "no machines\n"


def test_machine_that_runs_again_holds_drain(host: Host, lan: Lan) -> None:
    web = lan.serve_web("", **{"hello.c": "int main(void) { return 0; }\n"})[:-4]
    url = lan.start_controller()
    lan.script_controller(all={"tasks": 1, "source": f"{web}hello.c"})
    lan.serve_dhcp()
    interactive = virtual(url, 'suspended = "wait"', "suspended_after_s = 5", "")
    host.configure("agentd", f'{interactive}interactive = "both"\n')
    host.start([lan])
    wait_until_runs(host)
    pid = wait_for_virtual_machine(host)["process"]
    host.run(f"kill -STOP {pid}")
    host.wait_for(lambda: messages(host, SUSPENDED), "the machine is suspended")
    host.run(f"kill -CONT {pid}")
    host.wait_for(lambda: messages(host, RESUMED), "the machine runs again")
    assert all(m["suspended_usec"] == 0 for m in machines(host))
    host.run(["buildosctl", "drain"])
    host.wait_for(
        lambda: instance(host, "Reason").endswith(f"(process {pid}) (a person can be logged in)"),
        "the drain names the machine",
    )


def test_containers_are_listed_with_their_agent(host: Host, lan: Lan) -> None:
    lan.serve_dhcp()
    arguments = 'arguments = ["--bridge", "br0", "--port", "7000"]'
    host.configure("agentd", bslave("/usr/bin/bslave", arguments))
    host.start([lan])
    wait_until_runs(host, "bslave@x")
    wait_until_ready(host)
    # A machine that an operator made, on br1, without a process.
    other = Machine(host)
    other.take_lease()

    def found() -> dict[str, dict[str, Any]]:
        return {m["bridge"]: m for m in machines(host)}

    host.wait_for(lambda: "br1" in found(), "the machine on br1 is listed")
    # The agent adds the port before it starts the process.
    host.wait_for(
        lambda: found().get("br0", {}).get("kind") == "container", "the container is listed"
    )
    container, mine = found()["br0"], found()["br1"]
    assert container["kind"] == "container" and container["agent"] == "bslave@x"
    assert container["memory"] > 0 and container["since_usec"] > 0
    process = host.read(f"/proc/{container['process']}/cgroup")
    assert "buildos-bslave@x.service" in process
    assert (mine["port"], mine["kind"], mine["agent"]) == (other.name, "unknown", "")
    host.wait_for(lambda: found()["br1"]["address"] == other.address, "the address is listed")
