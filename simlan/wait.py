"""Waiting for what must come, up to a deadline."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

DEADLINE = 30.0
"""Seconds that anything may take here unless a test says otherwise. A boot
takes two; a machine under load takes a multiple of that."""

_INTERVAL = 0.05


class TimedOut(AssertionError):
    """What was waited for did not come."""


def wait_for(condition: Callable[[], T | None], what: str, deadline: float = DEADLINE) -> T:
    """Evaluates `condition` until it is true, and returns its value.

    An assertion that fails in it counts as not yet true; the last one is told
    when the deadline passes."""
    end = time.monotonic() + deadline
    problem: AssertionError | None = None
    while True:
        try:
            value = condition()
            if value:
                return value
            problem = None
        except AssertionError as error:
            problem = error
        if time.monotonic() > end:
            reason = f": {problem}" if problem else ""
            raise TimedOut(f"not within {deadline:g} s: {what}{reason}") from problem
        time.sleep(_INTERVAL)
