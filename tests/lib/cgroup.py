"""Control groups of processes that a test starts: killing one leaves nothing behind."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from simlan.wait import DEADLINE


def make_cgroup(name: str) -> Path:
    """A control group of its own: systemd rules over all below it, and killing
    it leaves nothing behind. `name` is for one of this process."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    tops = [Path(fields[1]) for fields in mounts if fields[2] == "cgroup2"]
    assert tops, "no cgroup2 file system is mounted"
    # Tests in another PID namespace have other processes under the same numbers.
    namespace = Path("/proc/self/ns/pid").stat().st_ino
    for path in tops[0].glob(f"buildos-test-*-{namespace}-*"):
        # Left by tests that were killed.
        if not Path(f"/proc/{path.name.split('-')[2]}").exists():
            remove_cgroup(path)
    cgroup = tops[0] / f"buildos-test-{os.getpid()}-{namespace}-{name}"
    cgroup.mkdir()
    return cgroup


def remove_cgroup(cgroup: Path) -> None:
    """Kills what is in the group and below it, and removes it, unless another run of
    tests is faster."""
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
            # Killed processes take a moment to go.
            if time.monotonic() > end:
                raise
            time.sleep(0.02)
