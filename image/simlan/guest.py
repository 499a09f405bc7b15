"""A machine that runs on the LAN without a terminal, for tests."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from . import qemu, shell
from .network import Lan

T = TypeVar("T")


class GuestError(Exception):
    """The machine ended, or did not do in time what was waited for."""


class Guest:
    """A running machine: its console in a file, a shell in it."""

    def __init__(self, lan: Lan, machine: qemu.Machine, kernel: Path, directory: Path) -> None:
        """Starts `machine`. `kernel` is what it will run, for the choice of the
        accelerator; the console goes to console.log in `directory`."""
        self._lan = lan
        self._console = directory / "console.log"
        self._errors = directory / "qemu.log"
        channel = directory / "shell"
        taps = [lan.plug(nic.segment) for nic in machine.nics]
        argv = machine.arguments(qemu.accelerator(kernel), taps)
        argv += ["-serial", f"file:{self._console}", *shell.arguments(channel)]
        with self._errors.open("wb") as log:
            self._process = lan.sandbox.start(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
            )
        self.started = time.time()
        """When QEMU was started, seconds since the epoch."""
        try:
            self.shell = shell.Shell(channel, self.check)
        except BaseException:
            self._switch_off()
            raise

    def check(self) -> None:
        """Raises when the machine or a server of the LAN has ended."""
        self._lan.check()
        status = self._process.poll()
        if status is not None:
            text = self._errors.read_text(errors="replace")
            raise GuestError(f"QEMU ended ({status}):\n{text}{self.console()[-4000:]}")

    def console(self) -> str:
        """All that the machine wrote to its serial line so far."""
        try:
            return self._console.read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def wait_for(self, what: str, seconds: float, look: Callable[[], T]) -> T:
        """Looks until `look` returns something true, and returns that.

        `what` completes "waited … for" in the error after `seconds`.
        """
        deadline = time.monotonic() + seconds
        while True:
            found = look()
            if found:
                return found
            self.check()
            if time.monotonic() > deadline:
                raise GuestError(f"waited {seconds:.0f} s for {what}; last seen: {found!r}")
            time.sleep(0.5)

    def kernel_start(self) -> float:
        """When the guest's kernel started, seconds since this host's epoch."""
        before = time.time()
        uptime = self.shell.output("cat /proc/uptime").split()[0]
        # The guest read its clock between the two; half the trip is the error.
        return (before + time.time()) / 2 - float(uptime)

    def close(self) -> None:
        """Switches the machine off."""
        self.shell.close()
        self._switch_off()

    def _switch_off(self) -> None:
        self._process.kill()
        self._process.wait()

    def __enter__(self) -> Guest:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
