"""Waits for a condition up to a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from .errors import CommandFailed, TimedOut

T = TypeVar("T")

DEADLINE = 60.0
"""Default deadline, seconds. A boot of a host in namespaces takes two; a machine under
load takes a multiple of that."""

INTERVAL = 0.05
"""Default seconds between two evaluations of a condition."""


def wait_for(
    condition: Callable[[], T | None],
    what: str,
    deadline: float = DEADLINE,
    interval: float = INTERVAL,
) -> T:
    """Evaluates `condition` until its value is true, and returns that value.

    Failed assertions, failed commands and passed deadlines in `condition` count as not
    yet true. Raises TimedOut with `what` and the last failure after `deadline` seconds;
    any other exception of `condition` ends the wait."""
    end = time.monotonic() + deadline
    problem: Exception | None = None
    while True:
        try:
            value = condition()
            if value:
                return value
            problem = None
        except (AssertionError, CommandFailed, TimedOut) as error:
            problem = error
        if time.monotonic() > end:
            reason = f": {problem}" if problem else ""
            raise TimedOut(f"not within {deadline:g} s: {what}{reason}") from problem
        time.sleep(interval)
