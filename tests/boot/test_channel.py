"""A machine is published at a desk; two hosts with empty disks fetch it, one from the other, and
agents run tasks in it; only with --all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from booted_host import BOOT_SECONDS, Boot, BootedHost
from roots import host_debs, host_root
from simlan.boot_lan import ADDRESS, agent_parameters
from simlan.process import run
from task_machine import DIRECTORY, NAME, SNAPSHOTS, STARTED, TaskMachine, report
from update_farm import PORT, Farm

pytestmark = pytest.mark.long

_MACHINES = "/build/machines/default"
_SIZE = 600 << 20
_APPEND = (
    f"console=ttyS0 {agent_parameters()} buildos.updated.update.source=http://{ADDRESS.ip}:{PORT}"
)


@pytest.fixture
def hosts(boot_once: Boot, tmp_path: Path) -> list[BootedHost]:
    """Two hosts on one LAN, each with an empty machine volume, after their first polls."""
    found: list[BootedHost] = []
    for number in range(2):
        disk = tmp_path / f"disk{number}"
        with disk.open("wb") as image:
            image.truncate(_SIZE)
        run(["mkfs.btrfs", "--quiet", "--label", "buildos.machines", str(disk)])
        drive = f"if=none,id=machines,file={disk},format=raw"
        host = boot_once(
            # The MAC address of a NIC depends on its number.
            *["e1000@quiet"] * number,
            "e1000@lan",
            append=_APPEND,
            lan=found[0].lan if found else None,
            extra=["-drive", drive, "-device", "virtio-blk-pci,drive=machines,serial=machines"],
        )
        mounted = f"findmnt --noheadings --output FSTYPE {_MACHINES}"
        host.shell.wait(BOOT_SECONDS)
        host.guest.wait_for(
            lambda host=host: host.shell.run(mounted).output.strip() == "btrfs",  # type: ignore[misc]
            "the volume",
            BOOT_SECONDS,
        )
        assert host.wait_for_systemd() == "running"
        found.append(host)
    return found


@pytest.fixture
def farm(hosts: list[BootedHost], tmp_path: Path) -> Iterator[Farm]:
    with Farm(host_root(host_debs()), tmp_path / "farm", hosts[0].lan) as farm:
        for host in hosts:
            host.shell.output("mkdir -p /etc/buildos/keys")
            key = '[ -n "$1" ] && printf %s "$1" >/etc/buildos/keys/op.asc'
            host.run(["sh", "-c", key, "sh", farm.key])
        yield farm


def _update(host: BootedHost) -> dict[str, Any]:
    host.shell.output("buildosctl update check --wait", 900)
    state: dict[str, Any] = json.loads(host.shell.output("cat /run/buildos/updated/state.json"))
    return state


def _results(hosts: list[BootedHost], count: int) -> list[dict[str, str]]:
    """Waits for so many results of tasks in all."""
    lan = hosts[0].lan
    hosts[0].guest.wait_for(
        lambda: len(lan.results()) >= count, f"{count} results of tasks", BOOT_SECONDS
    )
    return [entry["result"] for entry in lan.results()]


def test_hosts_fetch_from_each_other_and_running_tasks_keep_their_revision(
    farm: Farm, hosts: list[BootedHost]
) -> None:
    first, second = hosts
    machine = TaskMachine(farm, 60_000_000)
    one = machine.publish("one")
    farm.serve()
    assert _update(first)["result"] == "serial 1: 1 placed"
    copy = farm.sent()
    assert copy > 60_000_000
    assert _update(second)["result"] == "serial 1: 1 placed"
    assert farm.sent() - copy < 100_000, "the second host took the pieces from the first"

    # A task on each host: an agent runs one at a time.
    first.lan.hand_out_tasks(2, machine=NAME)
    for host in hosts:
        host.guest.wait_for(
            lambda host=host: host.shell.run(STARTED).status == 0,  # type: ignore[misc]
            "a task runs in the machine",
            BOOT_SECONDS,
        )
    two = machine.publish("two")
    for host in (second, first):
        assert _update(host)["result"] == "serial 2: 1 placed"
        assert host.shell.output(f"cat {DIRECTORY}/{NAME}/version").strip() == "two"
        assert host.shell.run(STARTED).status == 0, "the task still runs"
    assert farm.sent() - copy < 1.1 * (3 << 20) + 200_000, "one increment for both hosts"
    machine.release()
    assert [report(result) for result in _results(hosts, 2)] == [one, one]

    first.lan.hand_out_tasks(4, machine=NAME)
    assert [report(result) for result in _results(hosts, 4)[2:]] == [two, two]
    for host in hosts:
        host.guest.wait_for(
            lambda host=host: not host.shell.output(SNAPSHOTS),  # type: ignore[misc]
            "the snapshots of the tasks are gone",
            BOOT_SECONDS,
        )
