"""A station runs one DHCP client: namespaces with a Debian 13 root, and NICs in LANs."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cgroup import make_cgroup, remove_cgroup
from simlan.lan import Lan, Nic
from simlan.process import child_of, close, start
from simlan.wait import wait_for

Event = dict[str, Any]

_INIT = Path(__file__).with_name("station_init.py")

# Assembles the root and executes station_init.py. /sys is read-only: clients take that
# for a container and do not wait for udev.
_SETUP = """
lower=$1 top=$2 init=$3
mount -t tmpfs -o mode=755 tmpfs $top
mkdir $top/upper $top/work $top/root
mount -t overlay -o "lowerdir=$lower,upperdir=$top/upper,workdir=$top/work" overlay $top/root
root=$top/root
mount -t proc proc $root/proc
mount -t sysfs -o ro sysfs $root/sys
mount --rbind /dev $root/dev
mount -t tmpfs -o mode=755 tmpfs $root/run
mount -t tmpfs -o mode=1777 tmpfs $root/tmp
ip link set lo up
exec /usr/bin/python3 -I -S "$init" "$root"
"""

_NUMBERS = itertools.count(1)


class Station:
    """Namespaces, NICs eth0, eth1, …, and station_init.py, which starts clients."""

    def __init__(self, root: Sequence[Path], files: Mapping[str, str]):
        number = next(_NUMBERS)
        self._number = number
        self.nics: list[Nic] = []
        self.cgroup = make_cgroup(f"station{number}")
        self._top = Path(f"/run/buildos-bench-{os.getpid()}-{number}")
        self._top.mkdir()
        self._events: list[Event] = []
        self._lock = threading.Lock()
        unshare = ["unshare", "--mount", "--pid", "--uts", "--ipc", "--net"]
        unshare += ["--fork", "--kill-child", "--propagation=private"]
        lower = ":".join(str(path) for path in root)
        setup = ["sh", "-euc", _SETUP, "setup", lower, str(self._top), str(_INIT)]
        self._process = start([*unshare, *setup], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._wait("ready")
        pid = child_of(self._process)
        assert pid is not None
        self._pid = pid
        self.root = Path(f"/proc/{pid}/root{self._top}/root")
        # networkd derives its DHCP client identifier from the machine id.
        machine_id = {"/etc/machine-id": f"{number + (1 << 64):032x}\n"}
        for path, content in {**machine_id, **files}.items():
            target = self.root / path.lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(content)
            # NetworkManager ignores connections that other users can read.
            target.chmod(0o600 if "system-connections" in path else 0o644)

    def close(self) -> None:
        """Ends the station and its processes."""
        remove_cgroup(self.cgroup)
        self._process.kill()
        self._process.wait()
        self._reader.join()
        close(self._process.stdin)
        close(self._process.stdout)
        shutil.rmtree(self._top, ignore_errors=True)

    def connect(self, lan: Lan, plugged: bool = True) -> Nic:
        """Adds a NIC in a LAN."""
        index = len(self.nics)
        mac = f"02:bd:02:{self._number // 256:02x}:{self._number % 256:02x}:{index:02x}"
        nic = lan.connect(f"eth{index}", mac, self._pid, plugged)
        self.nics.append(nic)
        return nic

    # Commands, see station_init.py

    def run(self, *argv: str) -> str:
        """Runs a program in the station; returns its output."""
        mark = self.mark()
        self._command(do="run", argv=argv)
        event = self._wait("ran", mark)
        assert event["status"] == 0, f"{' '.join(argv)}: {event['output']}"
        return str(event["output"])

    def execute(self, *argv: str) -> tuple[int, float]:
        """Starts a client; returns its process and the time of its execve."""
        mark = self.mark()
        self._command(do="exec", argv=argv, cgroup=str(self.cgroup))
        event = self._wait("exec", mark)
        return event["pid"], event["time"]

    def signal(self, pid: int, number: int) -> float:
        """Sends a signal to a client; returns the time."""
        mark = self.mark()
        self._command(do="signal", pid=pid, signal=number)
        return float(self._wait("signalled", mark)["time"])

    def _command(self, **fields: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(fields) + "\n")
        self._process.stdin.flush()

    # Events

    def mark(self) -> int:
        """Returns the current end of the events, for `events`."""
        with self._lock:
            return len(self._events)

    def events(self, kind: str, since: int = 0) -> list[Event]:
        with self._lock:
            return [event for event in self._events[since:] if event["event"] == kind]

    def log(self) -> str:
        """Returns the output of the clients."""
        path = self.root / "run/client.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def _wait(self, kind: str, since: int = 0) -> Event:
        return wait_for(lambda: self.events(kind, since), f"the event {kind}")[0]

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            event = json.loads(line)
            with self._lock:
                self._events.append(event)

    # Resources of the clients

    def cpu(self) -> float:
        """Returns the CPU time of the clients and their children, in seconds."""
        fields = dict(line.split() for line in (self.cgroup / "cpu.stat").read_text().splitlines())
        return int(fields["usage_usec"]) / 1e6

    def memory(self) -> tuple[int, int]:
        """Returns resident and private dirty memory of the clients, in kB."""
        resident = dirty = 0
        for pid in (self.cgroup / "cgroup.procs").read_text().split():
            try:
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
            except (FileNotFoundError, ProcessLookupError):
                continue
            values = {line.split(":")[0]: int(line.split()[1]) for line in lines}
            resident += values["Rss"]
            dirty += values["Private_Dirty"]
        return resident, dirty
