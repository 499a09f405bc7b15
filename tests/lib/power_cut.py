"""Power cuts: copies of a disk at one moment, while it is written.

The disk is a file of a btrfs, of which `cp --reflink` makes a copy at once. The copy has the writes
that the disk has completed. What the host had only in RAM is missing, as after a power cut.
"""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Generic, TypeVar

from simlan.closing import Closing
from simlan.process import run

T = TypeVar("T")

_SIZE = "6G"


class Shelf(Closing):
    """A directory whose files can be copied at one moment."""

    def __init__(self) -> None:
        self._directory = TemporaryDirectory(prefix="buildos-shelf-", dir="/var/tmp")
        top = Path(self._directory.name)
        run(["truncate", f"--size={_SIZE}", str(top / "disk")])
        run(["mkfs.btrfs", "--quiet", str(top / "disk")])
        self.path = top / "shelf"
        self.path.mkdir()
        run(["mount", "-o", "loop", str(top / "disk"), str(self.path)])
        self._numbers = itertools.count()

    def copy(self, file: Path) -> Path:
        copy = self.path / f"cut{next(self._numbers)}"
        run(["cp", "--reflink=always", str(file), str(copy)])
        return copy

    @contextmanager
    def mounted(self, copy: Path) -> Iterator[Path]:
        """Starts from a copy: mounts it, and removes it afterwards."""
        with TemporaryDirectory() as directory:
            run(["mount", "-o", "loop", str(copy), directory])
            try:
                yield Path(directory)
            finally:
                run(["umount", directory])
                copy.unlink()

    def close(self) -> None:
        run(["umount", str(self.path)])
        self._directory.cleanup()


class Cuts(Generic[T]):
    """Cuts the power of a disk at random moments, in a thread."""

    def __init__(self, shelf: Shelf, disk: Path, known: Callable[[], T], seed: int) -> None:
        """`known` returns what the disk has acknowledged."""
        self.made: list[tuple[Path, T]] = []
        self._shelf, self._disk, self._known = shelf, disk, known
        self._dice = random.Random(seed)
        self._end = threading.Event()
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    @property
    def alive(self) -> bool:
        """False after an error, which `end` raises."""
        return self._thread.is_alive()

    def _run(self) -> None:
        try:
            while not self._end.wait(self._dice.random() * 0.3):
                known = self._known()
                self.made.append((self._shelf.copy(self._disk), known))
        except Exception as error:
            self._error = error

    def end(self) -> list[tuple[Path, T]]:
        """Returns the copies, each with what was acknowledged before it."""
        self._end.set()
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self.made
