"""Makes control groups for processes of a test, and removes them with all processes."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from simlan.wait import DEADLINE


def make_cgroup(name: str) -> Path:
    """Makes a control group. `name` is unique in this process.

    A systemd in the group manages all groups below it."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    tops = [Path(fields[1]) for fields in mounts if fields[2] == "cgroup2"]
    assert tops, "no cgroup2 file system is mounted"
    # The numbers of a different PID namespace belong to different processes.
    namespace = Path("/proc/self/ns/pid").stat().st_ino
    for path in tops[0].glob(f"buildos-test-*-{namespace}-*"):
        # Tests that were killed left this group.
        if not Path(f"/proc/{path.name.split('-')[2]}").exists():
            remove_cgroup(path)
    cgroup = tops[0] / f"buildos-test-{os.getpid()}-{namespace}-{name}"
    cgroup.mkdir()
    return cgroup


def remove_cgroup(cgroup: Path) -> None:
    """Kills the processes in and below the group and removes it. Another run of the tests
    may do the same at the same time."""
    with suppress(FileNotFoundError):
        (cgroup / "cgroup.kill").write_text("1")
    end = time.monotonic() + DEADLINE
    while cgroup.exists():
        try:
            for path in sorted(cgroup.rglob("*"), reverse=True):
                if path.is_dir():
                    path.rmdir()
            cgroup.rmdir()
            return
        except OSError:
            # Killed processes leave the group with a delay.
            if time.monotonic() > end:
                raise
            time.sleep(0.02)
