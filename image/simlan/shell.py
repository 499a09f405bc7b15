"""Runs scripts as root in a guest, over a virtio-serial port.

The image contains no part of the shell. QEMU passes systemd credentials by SMBIOS; they
add a unit and its script to any image with systemd 256 or later.
"""

from __future__ import annotations

import base64
import contextlib
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .errors import SimlanError
from .wait import wait_for

PORT = "org.build2.buildos.shell"
"""Name of the virtio-serial port."""

_SCRIPT = "buildos.shell"

_UNIT = f"""\
[Unit]
Description=Root shell for the tests
DefaultDependencies=no
BindsTo=dev-virtio\\x2dports-{PORT}.device
After=dev-virtio\\x2dports-{PORT}.device

[Service]
ImportCredential={_SCRIPT}
ExecStart=/bin/bash %d/{_SCRIPT}
StandardInput=file:/dev/virtio-ports/{PORT}
StandardOutput=file:/dev/virtio-ports/{PORT}
Restart=always
"""


def credentials() -> dict[str, str]:
    """Returns the credentials with which a guest opens the shell."""
    return {
        _SCRIPT: (Path(__file__).parent / "shell.sh").read_text(),
        "systemd.extra-unit.buildos-shell.service": _UNIT,
        "systemd.unit-dropin.sysinit.target": "[Unit]\nWants=buildos-shell.service\n",
        # On a loaded machine without KVM, the port needs longer than systemd's 90 s.
        "systemd.unit-dropin.dev-.device": "[Unit]\nJobRunningTimeoutSec=15min\n",
    }


def arguments(path: Path) -> list[str]:
    """Returns QEMU's arguments for the port, connected to a socket at `path`."""
    return [
        *("-device", "virtio-serial-pci"),
        *("-chardev", f"socket,id=shell,path={path},server=on,wait=off"),
        *("-device", f"virtserialport,chardev=shell,name={PORT}"),
    ]


class ShellError(SimlanError):
    """The guest does not answer, or a command in it failed."""


@dataclass(frozen=True)
class Result:
    """Exit status and output of a script in the guest."""

    status: int
    output: str
    """Standard output and standard error."""


class Shell:
    """The host's end of the channel."""

    def __init__(self, path: Path, alive: Callable[[], None]) -> None:
        """Connects to the port. `alive` is called during waits; it raises an error if the
        guest has ended."""
        self._alive = alive
        self._received = b""
        self._ready = False
        self._number = 0
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(1.0)
        wait_for(lambda: self._connected(path), f"QEMU opens {path}")

    def _connected(self, path: Path) -> bool:
        self._alive()
        try:
            self._socket.connect(str(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        return True

    def wait(self, seconds: float) -> None:
        """Waits until the guest has started the shell."""
        if not self._ready:
            line = self._line(seconds, "the shell in the guest")
            if line != "ready":
                raise ShellError(f"the shell in the guest began with {line!r}")
            self._ready = True

    def run(self, script: str, seconds: float = 120) -> Result:
        """Runs a bash script as root, for at most `seconds`."""
        self.wait(seconds)
        self._number += 1
        text = base64.b64encode(script.encode()).decode()
        self._socket.sendall(f"{self._number} {text}\n".encode())
        while True:
            number, status, output = self._line(seconds, f"the end of {script!r}").split(" ", 2)
            # Lower numbers belong to scripts whose deadline passed.
            if int(number) == self._number:
                return Result(int(status), base64.b64decode(output).decode(errors="replace"))

    def output(self, script: str, seconds: float = 120) -> str:
        """Runs a script that must succeed; returns its output without the last line end."""
        result = self.run(script, seconds)
        if result.status != 0:
            raise ShellError(f"{script!r} ended with {result.status}:\n{result.output}")
        return result.output.rstrip("\n")

    def _line(self, seconds: float, what: str) -> str:
        deadline = time.monotonic() + seconds
        while b"\n" not in self._received:
            self._alive()
            if time.monotonic() > deadline:
                raise ShellError(f"waited {seconds:.0f} s for {what}")
            try:
                some = self._socket.recv(65536)
            except TimeoutError:
                continue
            if not some:
                raise ShellError(f"the guest ended before {what}")
            self._received += some
        line, self._received = self._received.split(b"\n", 1)
        return line.decode()

    def reset(self) -> None:
        """Prepares for the shell of the next boot."""
        self._ready = False
        # Discards output of the last boot.
        self._socket.settimeout(0.05)
        with contextlib.suppress(TimeoutError):
            while self._socket.recv(65536):
                pass
        self._socket.settimeout(1.0)
        self._received = b""

    def close(self) -> None:
        """Closes the channel."""
        self._socket.close()
