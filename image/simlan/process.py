"""Starts processes that the kernel ends together with this program."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

from .errors import CommandFailed, SimlanError, TimedOut

# The kernel kills the process when its parent dies (PR_SET_PDEATHSIG(2const)), unless
# it changes its credentials.
_WITH_PARENT = ["setpriv", "--pdeathsig", "KILL", "--"]


def start(command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
    """Starts a process in a session of its own, which ^C does not reach. `options` are
    those of subprocess.Popen."""
    options = {"start_new_session": True, "text": True, **options}
    return subprocess.Popen([*_WITH_PARENT, *command], **options)


def run(
    command: Sequence[str], *, check: bool = True, stdin: str = "", deadline: float = 60
) -> str:
    """Runs `command` to its end and returns its standard output.

    Raises CommandFailed if it fails, unless `check` is false, and TimedOut after
    `deadline` seconds."""
    try:
        result = subprocess.run(
            [*_WITH_PARENT, *command],
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            timeout=deadline,
        )
    except subprocess.TimeoutExpired as error:
        raise TimedOut(f"{' '.join(command)}: not within {deadline:g} s") from error
    if check and result.returncode != 0:
        raise CommandFailed(command, result)
    return result.stdout


def child_of(process: subprocess.Popen[str]) -> int | None:
    """Returns the only child of a process, for example the one of `unshare --fork`."""
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    except FileNotFoundError:
        return None
    return int(children[0]) if children else None


def end(process: subprocess.Popen[str], deadline: float = 10) -> None:
    """Ends a process with SIGTERM, and with SIGKILL after `deadline` seconds."""
    process.terminate()
    try:
        process.wait(deadline)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        close(stream)


def close(stream: IO[str] | None) -> None:
    """Closes a stream of a process, if it has that stream."""
    if stream:
        stream.close()


def require_root() -> None:
    """Raises SimlanError unless this process may make namespaces and taps."""
    if os.geteuid() != 0:
        raise SimlanError("namespaces and taps need root: use sudo")
