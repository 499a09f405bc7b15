"""A stand-in of an agent's tasks: opens machines of a volume, holds them, and reads them again.

    machine_task.py DIRECTORY SEED NAME...

A task reads the link of a machine, opens the directory and the files of the revision that it names,
and compares them with the file `sums` of the machine. It holds all of them and compares them again,
by the open files and by the path. It runs in the PID namespace of a host, where the helper finds its
files. At the end of its input, it writes what it saw as JSON.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import select
import sys
from collections import Counter
from pathlib import Path

_HELD_SECONDS = 1.5
_PAUSE_SECONDS = 0.1
_DELAY_SECONDS = 0.4
_REPETITIONS = 3


class Fault(Exception):
    """A task saw a machine that is missing, half, or changing."""


def main() -> None:
    directory, seed, *names = sys.argv[1:]
    dice = random.Random(int(seed))
    seen: Counter[str] = Counter()
    faults: list[str] = []
    while not _ended(dice.random() * _PAUSE_SECONDS):
        name = dice.choice(names)
        try:
            seen[_task(Path(directory), name, dice, seen)] += 1
        except Fault as fault:
            faults.append(f"{name}: {fault}")
    print(json.dumps({"seen": seen, "faults": faults}))


def _ended(seconds: float) -> bool:
    """Waits for the end of the input, at most so long."""
    return bool(select.select([sys.stdin], [], [], seconds)[0])


def _task(directory: Path, name: str, dice: random.Random, seen: Counter[str]) -> str:
    """Runs a task; returns the revision, or `absent`."""
    try:
        revision = os.readlink(directory / name / name)
    except FileNotFoundError:
        return f"{name} absent"
    path = directory / name / revision
    # bbot-agent runs sudo and btrfs(8) in between.
    _ended(dice.random() * _DELAY_SECONDS)
    try:
        top = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise Fault(f"{revision} is missing: {error.strerror}") from error
    held = [top]
    try:
        sums = _sums(top)
        held += [os.open(file, os.O_RDONLY, dir_fd=top) for file in sums]
        for _ in range(dice.randint(1, _REPETITIONS)):
            _compare(revision, top, sums, held[1:])
            seen["reads"] += 1
            if _ended(dice.random() * _HELD_SECONDS):
                break
            if os.stat(path).st_dev != os.fstat(top).st_dev:
                raise Fault(f"{revision} is a different subvolume")
    except OSError as error:
        raise Fault(f"{revision} changes: {error.strerror}") from error
    finally:
        for fd in held:
            os.close(fd)
    return "tasks"


def _sums(top: int) -> dict[str, str]:
    """Returns the digests of the files of a machine, by name."""
    with open(os.open("sums", os.O_RDONLY, dir_fd=top)) as sums:
        lines = [line.split() for line in sums]
    return {name: digest for digest, name in lines}


def _compare(revision: str, top: int, sums: dict[str, str], files: list[int]) -> None:
    found = sorted(os.listdir(top))
    if found != sorted([*sums, "sums"]):
        raise Fault(f"{revision} has the files {found}")
    if _sums(top) != sums:
        raise Fault(f"{revision} changes: sums")
    for fd, (name, digest) in zip(files, sums.items(), strict=True):
        hasher = hashlib.sha256()
        at = 0
        while part := os.pread(fd, 1 << 20, at):
            hasher.update(part)
            at += len(part)
        if hasher.hexdigest() != digest:
            raise Fault(f"{revision}: {name} has a different content")


if __name__ == "__main__":
    main()
