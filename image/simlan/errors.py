"""The errors of this package."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence


class SimlanError(Exception):
    """Something on the simulated LAN failed."""


class LanError(SimlanError):
    """A server of the LAN ended, or the LAN cannot be made."""


class TimedOut(SimlanError):
    """A deadline passed."""


class CommandFailed(SimlanError):
    """A command ended with an error."""

    def __init__(self, command: Sequence[str], result: subprocess.CompletedProcess[str]):
        super().__init__(
            f"{' '.join(command)}: status {result.returncode}\n{result.stdout}{result.stderr}"
        )
        self.status = result.returncode
        self.stderr = result.stderr
