"""A machine that runs on the LAN without a terminal, for tests."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from . import qemu, shell
from .network import Lan

T = TypeVar("T")

TRIPS = 5
"""How often a guest is asked for its clock."""


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
        self._monitor = directory / "monitor"
        argv += ["-serial", f"file:{self._console}", *shell.arguments(channel)]
        argv += ["-qmp", f"unix:{self._monitor},server=on,wait=off"]
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

    def wait_for_end(self, seconds: float) -> int:
        """Waits until the machine is off, or would boot again; QEMU's status."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            text = self.console()[-4000:]
            raise GuestError(f"the machine ran on for {seconds:.0f} s:\n{text}") from error

    def set_cable(self, index: int, plugged: bool) -> None:
        """Plugs the cable of the `index`-th NIC in, or pulls it out."""
        self.command("set_link", name=f"net{index}", up=plugged)

    def screenshot(self, file: Path) -> None:
        """Writes what the screen shows as a PNG."""
        self.command("screendump", filename=str(file), format="png")

    def command(self, execute: str, **arguments: object) -> None:
        """Has QEMU do something (qemu-qmp-ref(7))."""
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as monitor:
            monitor.settimeout(60)
            monitor.connect(str(self._monitor))
            with monitor.makefile("rw") as lines:
                lines.readline()
                for step, with_arguments in (("qmp_capabilities", {}), (execute, arguments)):
                    lines.write(json.dumps({"execute": step, "arguments": with_arguments}) + "\n")
                    lines.flush()
                    # What happens meanwhile is told in between.
                    while "event" in (answer := json.loads(lines.readline())):
                        pass
                    if "error" in answer:
                        raise GuestError(f"{execute}: {answer['error']['desc']}")

    def kernel_start(self) -> float:
        """When the guest's kernel started, seconds since this host's epoch."""
        trips: list[tuple[float, float]] = []
        for _ in range(TRIPS):
            before = time.time()
            # Without a program to load between the reading and the answer.
            uptime = float(self.shell.output("read -r uptime _ </proc/uptime; echo $uptime"))
            trip = time.time() - before
            # The guest read its clock somewhere in between: the shortest trip errs least.
            trips.append((trip, before + trip / 2 - uptime))
        return min(trips)[1]

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
