"""Processes in namespaces, that cannot outlive the tests."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any

# The kernel kills such a process when the one that started it dies, however
# that happens.
_MORTAL = ["setpriv", "--pdeathsig", "KILL", "--"]


class CommandFailed(AssertionError):
    """A command in a namespace ended with an error."""

    def __init__(self, command: Sequence[str], result: subprocess.CompletedProcess[str]):
        super().__init__(
            f"{' '.join(command)}: status {result.returncode}\n{result.stdout}{result.stderr}"
        )
        self.status = result.returncode
        self.stderr = result.stderr


def start(command: Sequence[str], **options: Any) -> subprocess.Popen[str]:
    """Starts a process that dies with the tests and does not see their ^C."""
    return subprocess.Popen([*_MORTAL, *command], start_new_session=True, text=True, **options)


def run(
    command: Sequence[str], *, check: bool = True, stdin: str = "", deadline: float = 60
) -> str:
    """What `command` prints to its standard output; `CommandFailed` when it
    fails, unless `check` is false, and another AssertionError after the deadline."""
    try:
        result = subprocess.run(
            [*_MORTAL, *command],
            input=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            timeout=deadline,
        )
    except subprocess.TimeoutExpired as error:
        raise AssertionError(f"{' '.join(command)}: not within {deadline:g} s") from error
    if check and result.returncode != 0:
        raise CommandFailed(command, result)
    return result.stdout


def child_of(process: subprocess.Popen[str]) -> int | None:
    """The only child of a process, for example what `unshare --fork` started."""
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    except FileNotFoundError:
        return None
    return int(children[0]) if children else None


def end(process: subprocess.Popen[str], deadline: float = 10) -> None:
    """Ends a process that ends on SIGTERM, or by SIGKILL what does not."""
    process.terminate()
    try:
        process.wait(deadline)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        close(stream)


def close(stream: IO[str] | None) -> None:
    if stream:
        stream.close()
