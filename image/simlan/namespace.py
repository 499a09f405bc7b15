"""Network namespaces that end with this program."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from typing import Any

from .closing import Closing
from .errors import SimlanError
from .process import end, run, start

# sysfs shows the links of the network namespace of the process that mounted it.
_HOLD = "mount -t sysfs sysfs /sys && echo ready && exec cat"


class Namespace(Closing):
    """A network namespace, with a mount namespace for its sysfs.

    A process holds it until `close`, which also ends the processes of `start`, or until
    this program ends."""

    def __init__(self) -> None:
        self._processes: list[subprocess.Popen[str]] = []
        self._holder = start(
            ["unshare", "--net", "--mount", "sh", "-c", _HOLD],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert self._holder.stdout and self._holder.stderr
        if self._holder.stdout.readline() != "ready\n":
            reason = self._holder.stderr.read().strip()
            self.close()
            raise SimlanError(f"no network namespace ({reason}): run this as root")
        run(self.command(["ip", "link", "set", "lo", "up"]))

    @property
    def pid(self) -> int:
        """The process that holds the namespace."""
        return self._holder.pid

    def command(self, command: Sequence[str]) -> list[str]:
        """Returns the command line that runs `command` in the namespace."""
        return ["nsenter", f"--target={self.pid}", "--net", "--mount", "--", *command]

    def run(self, command: Sequence[str], **options: Any) -> str:
        """Runs `command` in the namespace, see `process.run`."""
        return run(self.command(command), **options)

    def start(self, command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
        """Starts `command` in the namespace, see `process.start`."""
        process = start(self.command(command), **options)
        self._processes.append(process)
        return process

    def close(self) -> None:
        """Ends the namespace; a second call does nothing."""
        for process in [*self._processes, self._holder]:
            end(process)
        self._processes.clear()
