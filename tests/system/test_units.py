"""Tests the units: sandbox, status, and membership in buildos.target."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from operator import attrgetter
from pathlib import Path

import pytest
from buildroot import TOP, Root
from host import Host
from simlan.lan import Lan

# SD_MESSAGE_UNIT_RESTART_SCHEDULED of systemd.
_RESTART_SCHEDULED = "5eb03494b6584870a536b337290809b3"

UNITS = TOP / "units" / "systemd" / "system"
IMAGE = TOP / "image" / "root" / "usr" / "lib" / "systemd" / "system"

EXPOSED = {
    # Agents need sudo, virtual machines and containers; the units name the reasons.
    "buildos-bbot@.service",
    "buildos-bslave@.service",
    # Their mounts must reach the host, which excludes mount namespaces.
    "buildos-machine-ram.service",
    "buildos-machine-volumes.service",
}
MAX_EXPOSURES = {
    "buildos-agent-reap@.service": 2.2,
    "buildos-agentd.service": 2.5,
    # CAP_SYS_ADMIN for subvolumes, and files of all users.
    "buildos-machine-place.service": 4.0,
    # Loads a kernel, and calls buildosctl, which connects to controllers.
    "buildos-os-trial.service": 2.5,
}
"""Maximum exposures that differ from `MAX_EXPOSURE`.

systemd-analyze does not count ReadOnlyPaths=/proc /sys, the replacement of
ProtectKernelTunables= and, in services of uid 0, of ProtectControlGroups=."""
MAX_EXPOSURE = 2.1
"""Maximum exposure of the other services."""

WRITABLE = {
    "buildos-agentd.service": set(),
    # buildos-console writes files for agetty.
    "buildos-console.service": {"/run"},
    "buildos-hostnamed.service": set(),
    # Files of /sys belong to root; these services run as other users.
    "buildos-dnsmasq.service": {"/sys"},
    "buildos-natd.service": {"/proc", "/sys"},
    "buildos-netd.service": {"/sys"},
}
"""The writable ones of /, /proc, /run, /sys and /sys/fs/cgroup, by service."""

STATUS = {
    "buildos-agentd.service": "no agent",
    "buildos-console.service": "agetty shows /run/issue.d/50-buildos.issue",
    "buildos-dnsmasq.service": "dnsmasq serves",
    "buildos-hostnamed.service": "waiting for a lease",
    "buildos-natd.service": "waiting for an uplink: no Ethernet NIC",
    "buildos-netd.service": "no Ethernet NIC",
    "buildos-netd-wait-online.service": "waiting: no Ethernet NIC",
}


@pytest.fixture(scope="module")
def alone(root: Root) -> Iterator[Host]:
    """A host without a NIC."""
    with Host(root) as host:
        host.start([])
        # No other unit starts it on this host.
        host.systemctl("start", "--no-block", "buildos-netd-wait-online.service")
        host.wait_for(lambda: host.active("buildos-natd.service"), "natd runs")
        yield host


def services() -> list[Path]:
    found = sorted(UNITS.glob("*.service"))
    assert len(found) > 10
    return found


@pytest.mark.parametrize("unit", [path.name for path in services()])
def test_service_exposure_is_low(alone: Host, unit: str) -> None:
    """An exposure is between 0 and 10, see security in systemd-analyze(1)."""
    instance = unit.replace("@.", "@x.")
    report = alone.run(["systemd-analyze", "security", "--no-pager", instance])
    exposure = float(report.splitlines()[-1].split(":")[1].split()[0])
    if unit in EXPOSED:
        assert exposure > MAX_EXPOSURE, "the exception is no longer needed"
    else:
        assert exposure <= MAX_EXPOSURES.get(unit, MAX_EXPOSURE), report


@pytest.mark.parametrize(
    "path",
    [path for path in [*services(), *sorted(IMAGE.glob("*.service"))] if path.name not in EXPOSED],
    ids=attrgetter("name"),
)
def test_service_read_only_options_are_effective(path: Path) -> None:
    """See "Read-only means read-only" in docs/decisions.md."""
    keys = re.findall(r"^(\w+)=(.*)$", path.read_text(), re.MULTILINE)
    unit = dict(keys)
    implying = {"ProtectControlGroups", "ProtectKernelTunables", "ProtectProc"}
    read_only = unit["ReadOnlyPaths"].split()
    if unit.get("User", "root") == "root":
        assert not implying & unit.keys(), "/run and /sys would be writable"
        assert {"/proc", "/sys"} <= set(read_only)
    else:
        assert "/run" in read_only


@pytest.mark.parametrize("path", services(), ids=attrgetter("name"))
def test_restart_delay_of_service_grows(path: Path) -> None:
    """A fault that lasts must not fill the journal. agentd delays the starts of agents."""
    unit = dict(re.findall(r"^(\w+)=(.*)$", path.read_text(), re.MULTILINE))
    if unit.get("Restart", "no") == "no" or unit["RestartSec"] == "infinity":
        return
    assert int(unit["RestartSteps"]) >= 3
    assert unit["RestartMaxDelaySec"] in ("5s", "10s", "1min")
    assert "MemoryMax" in unit


@pytest.mark.parametrize("path", services(), ids=attrgetter("name"))
def test_service_has_no_io_controller(path: Path) -> None:
    """With one, a machine volume in RAM would count for MemoryMax= of the service that writes it:
    the kernel counts pages of a loop device for the nearest group with this controller."""
    text = path.read_text()
    assert not re.search(r"^IO(?!SchedulingClass=|SchedulingPriority=)\w+=", text, re.MULTILINE)


def test_daemon_without_bus_restarts_with_growing_delay(host: Host, lan: Lan) -> None:
    lan.serve_dhcp()
    host.start([lan])
    daemons = ("buildos-natd.service", "buildos-agentd.service")
    for unit in daemons:
        host.wait_for(partial(host.active, unit), f"{unit} runs")
    host.run("systemctl mask --runtime --now dbus.service dbus.socket")
    for unit in daemons:
        host.wait_for(partial(_restarts, host, unit, 5), f"{unit} restarted five times")
        times = _restarts(host, unit, 5)
        # By the unit the delays are 0.1, 0.25, 0.63, 1.6, 4 and 10 s.
        assert times[4] - times[3] >= 1.5


def _restarts(host: Host, unit: str, number: int) -> list[float]:
    """Returns the times of the first `number` restarts of `unit` in seconds, or nothing."""
    messages = host.journal(f"MESSAGE_ID={_RESTART_SCHEDULED}", f"UNIT={unit}")
    times = [int(message["__REALTIME_TIMESTAMP"]) / 1e6 for message in messages]
    return times[:number] if len(times) >= number else []


def test_daemon_writable_mounts_are_few(host: Host, lan: Lan) -> None:
    lan.serve_dhcp()
    host.start([lan])
    for unit in WRITABLE:
        host.wait_for(partial(host.active, unit), f"{unit} runs")
    assert {unit: writable(host, host.main_pid(unit)) for unit in WRITABLE} == WRITABLE


def writable(host: Host, pid: int) -> set[str]:
    """Returns the protected directories that a process could write as uid 0."""
    findmnt = ["findmnt", "--noheadings", "--raw", "--output=TARGET,VFS-OPTIONS"]
    mounts = host.run(["nsenter", f"--target={pid}", "--mount", *findmnt])
    options = dict(line.split() for line in mounts.splitlines())
    protected = ["/", "/proc", "/run", "/sys", "/sys/fs/cgroup"]
    return {path for path in protected if "rw" in options[path].split(",")}


def test_systemd_analyze_verify_finds_no_mistake(alone: Host) -> None:
    names = [path.name.replace("@.", "@x.") for path in sorted(UNITS.glob("buildos*"))]
    assert alone.run(["systemd-analyze", "verify", "--man=no", *names]) == ""


@pytest.mark.parametrize("unit", STATUS)
def test_unit_status_shows_state_or_reason_to_wait(alone: Host, unit: str) -> None:
    def shown() -> bool:
        status = alone.run(["systemctl", "show", "-P", "StatusText", unit])
        assert STATUS[unit] in status, status
        return True

    alone.wait_for(shown, f"{unit} shows {STATUS[unit]!r}")


def test_target_lists_units_of_build_host(alone: Host) -> None:
    listed = alone.run(["systemctl", "list-dependencies", "--plain", "buildos.target"])
    assert [line.strip() for line in listed.splitlines()] == [
        "buildos.target",
        "buildos-agent-place.path",
        "buildos-agentd.service",
        "buildos-channel-look.timer",
        "buildos-console.service",
        "buildos-dnsmasq.service",
        "buildos-drain.service",
        "buildos-hostnamed.service",
        "buildos-machine-place.path",
        "buildos-natd.service",
        "buildos-netd.service",
        "buildos-os-handover.path",
        "buildos-os-trial.service",
        "buildos-os-verdict.path",
        "buildos-pieces-http.socket",
        "buildos-pieces.socket",
        "buildos-probe.path",
        "buildos-updated.path",
        "buildos-updated.timer",
        "buildos-views.service",
    ]
