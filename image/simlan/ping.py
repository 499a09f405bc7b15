"""Follows a running ping(8): its answered and unanswered requests."""

from __future__ import annotations

import re
import signal
import subprocess
from pathlib import Path


def command(address: str) -> list[str]:
    """Returns the command line that sends `address` fifty echo requests a second."""
    return ["ping", "-n", "-i", "0.02", address]


class Echoes:
    """The answers to a running ping, read from its log."""

    def __init__(self, process: subprocess.Popen[str], log: Path):
        self._process = process
        self._log = log

    def stop(self) -> None:
        """Ends the ping."""
        self._process.send_signal(signal.SIGINT)
        self._process.wait(10)

    def answered(self) -> list[int]:
        """Returns the numbers of the answered requests, in the order of the answers."""
        return [int(number) for number in re.findall(r"icmp_seq=(\d+) ttl", self._log.read_text())]

    def lost(self) -> list[int]:
        """Returns the numbers of the requests without an answer before the last
        answered one."""
        answered = self.answered()
        return sorted(set(range(1, max(answered) + 1)) - set(answered))
