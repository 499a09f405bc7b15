"""A machine in QEMU that runs without a terminal: console, root shell, monitor."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from . import qemu, shell
from .boot_lan import BootLan
from .closing import Closing
from .errors import SimlanError
from .wait import wait_for

T = TypeVar("T")

TRIPS = 5
"""Number of readings of a guest's clock; the fastest reading counts."""


INTERVAL = 0.5
"""Seconds between two evaluations of a condition; each evaluation costs the guest time."""


class GuestError(SimlanError):
    """The machine ended, ran too long, or refused a command."""


class Guest(Closing):
    """A running machine."""

    def __init__(
        self,
        lan: BootLan,
        machine: qemu.Machine,
        kernel: Path,
        directory: Path,
        accelerator: Sequence[str] = (),
    ) -> None:
        """Starts `machine`. `kernel`, which the machine boots, decides the accelerator, if none is
        given. `directory` gets console.log and qemu.log."""
        self._lan = lan
        self._console = directory / "console.log"
        self._errors = directory / "qemu.log"
        channel = directory / "shell"
        taps = [lan.plug(nic.segment) for nic in machine.nics]
        argv = machine.arguments(accelerator or qemu.accelerator(kernel), taps)
        self._monitor = directory / "monitor"
        argv += ["-serial", f"file:{self._console}", *shell.arguments(channel)]
        argv += ["-qmp", f"unix:{self._monitor},server=on,wait=off"]
        with self._errors.open("wb") as log:
            self._process = lan.namespace.start(
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
        """Raises SimlanError if the machine or a server of the LAN has ended."""
        self._lan.check()
        status = self._process.poll()
        if status is not None:
            text = self._errors.read_text(errors="replace")
            raise GuestError(f"QEMU ended ({status}):\n{text}{self.console()[-4000:]}")

    def console(self) -> str:
        """Returns everything that the machine has written to its serial line."""
        try:
            return self._console.read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def wait_for(self, condition: Callable[[], T | None], what: str, deadline: float) -> T:
        """Waits for a condition, see `wait.wait_for`; ends early with the machine."""

        def checked() -> T | None:
            value = condition()
            if not value:
                self.check()
            return value

        return wait_for(checked, what, deadline, INTERVAL)

    def wait_for_end(self, seconds: float) -> int:
        """Waits until the machine is off or about to reboot; returns QEMU's status."""
        try:
            return self._process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            text = self.console()[-4000:]
            raise GuestError(f"the machine still runs after {seconds:.0f} s:\n{text}") from error

    def set_cable(self, index: int, plugged: bool) -> None:
        """Plugs the cable of the `index`-th NIC in, or pulls it out."""
        self.command("set_link", name=f"net{index}", up=plugged)

    def screenshot(self, file: Path) -> None:
        """Writes a PNG of the screen."""
        self.command("screendump", filename=str(file), format="png")

    def command(self, execute: str, **arguments: object) -> Any:
        """Runs a command of QEMU's monitor (qemu-qmp-ref(7)); returns its answer."""
        with contextlib.closing(socket.socket(socket.AF_UNIX)) as monitor:
            monitor.settimeout(60)
            monitor.connect(str(self._monitor))
            with monitor.makefile("rw") as lines:
                lines.readline()
                for step, with_arguments in (("qmp_capabilities", {}), (execute, arguments)):
                    lines.write(json.dumps({"execute": step, "arguments": with_arguments}) + "\n")
                    lines.flush()
                    # Events may precede the answer.
                    while "event" in (answer := json.loads(lines.readline())):
                        pass
                    if "error" in answer:
                        raise GuestError(f"{execute}: {answer['error']['desc']}")
                return answer["return"]

    def kernel_start(self) -> float:
        """Returns when the guest's kernel started, seconds since this host's epoch."""
        trips: list[tuple[float, float]] = []
        for _ in range(TRIPS):
            before = time.time()
            # Builtins only: the guest loads no program between reading and answer.
            uptime = float(self.shell.output("read -r uptime _ </proc/uptime; echo $uptime"))
            trip = time.time() - before
            # The guest read its clock during the trip: the shortest trip errs least.
            trips.append((trip, before + trip / 2 - uptime))
        return min(trips)[1]

    def close(self) -> None:
        """Switches the machine off."""
        self.shell.close()
        self._switch_off()

    def _switch_off(self) -> None:
        self._process.kill()
        self._process.wait()
