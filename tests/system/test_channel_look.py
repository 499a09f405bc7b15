"""A host notices a new channel within five minutes, at little cost."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from buildroot import TOP
from host import Host
from update_farm import Farm, update, updated

LOOK = "buildos-channel-look.service"
TIMER = "buildos-channel-look.timer"
UPDATED = "buildos-updated.service"
UNITS = TOP / "units" / "systemd" / "system"


def look(host: Host) -> None:
    host.systemctl("start", LOOK)


def requests(farm: Farm) -> list[dict[str, Any]]:
    log = farm.lan.json_log("updates.jsonl")
    return [entry for entry in log if entry["path"] == "/channel/stable"]


def seconds(unit: Path, key: str) -> int:
    """Returns a time of a unit file in seconds."""
    found = re.search(rf"^{key}=(\d+)(s|min)$", unit.read_text(), re.MULTILINE)
    assert found, f"{unit.name}: {key}"
    return int(found[1]) * {"s": 1, "min": 60}[found[2]]


def start(farm: Farm, host: Host, *timers: str) -> None:
    """Boots a host that follows the channel, without a machine volume."""
    farm.desk("true")
    farm.sign()
    farm.lan.serve_dhcp()
    farm.prepare(host, farm.serve(), timers=timers)
    host.start([farm.lan])
    host.wait_for(lambda: host.addresses("br0"), "br0 has an address")


def run(host: Host) -> dict[str, Any]:
    """Lets a run take place; returns the state after the end of the daemon."""
    found = update(host)
    wait_for_end(host)
    return found


def wait_for_end(host: Host) -> None:
    def ended() -> bool:
        return host.unit(UPDATED, "ActiveState")["ActiveState"] == "inactive"

    host.wait_for(ended, "buildos-updated has ended")


def cursor(host: Host) -> str:
    return str(host.journal("--lines=1")[-1]["__CURSOR"])


def lines(host: Host, after: str) -> list[str]:
    """Returns what the looks and buildos-updated logged, and systemd about them."""
    units = {LOOK, TIMER, UPDATED}
    entries = host.journal(f"--after-cursor={after}")
    found = []
    for entry in entries:
        if {entry.get("UNIT"), entry.get("_SYSTEMD_UNIT")} & units:
            found.append(str(entry["MESSAGE"]))
    return found


def test_interval_and_request_fit_into_five_minutes() -> None:
    timer = UNITS / TIMER
    service = UNITS / LOOK
    interval = seconds(timer, "OnUnitInactiveSec") + seconds(timer, "RandomizedDelaySec")
    interval += seconds(timer, "AccuracySec")
    assert interval <= 250
    # Of a request, curl ends the rest after 30 s.
    assert interval + seconds(service, "TimeoutStartSec") <= 300


def test_unchanged_channel_costs_a_small_request_and_no_line(
    farm: Farm, host: Host, figure: Callable[[str], None]
) -> None:
    start(farm, host)
    run(host)
    began = updated(host)["began_usec"]
    before, after = len(requests(farm)), cursor(host)
    for _ in range(3):
        look(host)
    found = requests(farm)[before:]
    assert [entry["status"] for entry in found] == [304] * 3
    assert [entry["bytes"] for entry in found] == [0] * 3
    assert lines(host, after) == []
    assert updated(host)["began_usec"] == began, "no run took place"
    figure(f"bytes of request and answer, channel unchanged: {found[-1]['headers']}")


@pytest.mark.long
def test_new_channel_is_noticed_within_five_minutes(
    farm: Farm, host: Host, figure: Callable[[str], None]
) -> None:
    start(farm, host, TIMER)
    assert update(host)["serial"] == 1
    host.wait_for(lambda: host.active(TIMER), "the timer runs")
    seen = len(requests(farm))
    host.wait_for(lambda: len(requests(farm)) > seen, "a look", 300)
    farm.sign()
    began = time.monotonic()
    host.wait_for(lambda: updated(host)["serial"] == 2, "the host has the new channel", 300)
    figure(f"seconds from a channel, just after a look, to its run: {time.monotonic() - began:.0f}")


def test_new_channel_leads_to_a_run(farm: Farm, host: Host) -> None:
    start(farm, host)
    assert run(host)["serial"] == 1
    host.wait_for(lambda: host.active("buildos-updated.path"), "the path unit watches")
    farm.sign()
    look(host)
    host.wait_for(lambda: updated(host)["serial"] == 2, "the host has the new channel")


def test_new_channel_is_noticed_while_buildos_updated_runs(farm: Farm, host: Host) -> None:
    """The daemon that a call started stays for ten seconds: its start has no effect then."""
    start(farm, host)
    assert run(host)["serial"] == 1
    host.wait_for(lambda: host.active("buildos-updated.path"), "the path unit watches")
    farm.sign()
    host.bus_property("update1", "Activity")
    look(host)
    host.wait_for(lambda: updated(host)["serial"] == 2, "the host has the new channel")


def test_refused_channel_leads_to_one_run(farm: Farm, host: Host) -> None:
    start(farm, host)
    run(host)
    good = farm.signed.read_text()
    farm.signed.write_text(good.replace("serial = 1", "serial = 9"))
    look(host)

    def refused() -> bool:
        return "is refused" in updated(host)["result"]

    host.wait_for(refused, "the run refuses the channel")
    wait_for_end(host)
    began = updated(host)["began_usec"]
    after = cursor(host)
    look(host)
    assert requests(farm)[-1]["status"] == 304
    assert lines(host, after) == []
    assert updated(host)["began_usec"] == began, "no run took place"
    farm.signed.write_text(good)
    look(host)
    host.wait_for(lambda: not refused(), "the run accepts the channel again")


def test_held_host_does_not_ask(farm: Farm, host: Host) -> None:
    start(farm, host)
    update(host)
    host.run("buildosctl update hold test")
    before = len(requests(farm))
    farm.sign()
    look(host)
    assert len(requests(farm)) == before
