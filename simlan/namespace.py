"""Namespaces that live as long as the program that made them."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Sequence
from types import TracebackType
from typing import Any


class SandboxError(Exception):
    """Namespaces cannot be made, or a command in them failed."""


class Sandbox:
    """New network, mount and PID namespaces.

    They hang on one process that waits for the end of its standard input, which
    is a pipe from here: when this program ends, even by SIGKILL, so does that
    process. It is PID 1 in its namespace, so the kernel then kills whatever
    runs there, and interfaces and mounts vanish with the last process.
    """

    def __init__(self) -> None:
        options = ["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        self._holder = subprocess.Popen(
            # sysfs shows the interfaces of the namespace that mounted it.
            ["unshare", *options, "sh", "-c", "mount -t sysfs sysfs /sys && exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            # ^C on the terminal is for the machine on it.
            process_group=0,
        )
        assert self._holder.stdin and self._holder.stdout and self._holder.stderr
        try:
            self._holder.stdin.write(b"\n")
            self._holder.stdin.flush()
            ready = self._holder.stdout.readline()
        except BrokenPipeError:
            ready = b""
        if not ready:
            why = self._holder.stderr.read().decode(errors="replace").strip()
            self.close()
            raise SandboxError(f"no namespaces ({why}): run this as root")

    def command(self, *argv: str) -> list[str]:
        """The command line, outside, that runs `argv` inside.

        A signal that ends its process ends `argv` too, by SIGKILL.
        """
        pid = self._holder.pid
        # The holder's child is PID 1 inside, but only the holder's pid is known.
        inside = f"--pid=/proc/{pid}/ns/pid_for_children"
        enter = ["nsenter", f"--target={pid}", "--net", "--mount", inside]
        # nsenter is not replaced by argv but waits for it.
        return [*enter, "setpriv", "--pdeathsig=KILL", *argv]

    def run(self, *argv: str, text: str | None = None) -> str:
        """Runs `argv` to its end, with `text` as input; returns what it printed."""
        done = subprocess.run(
            self.command(*argv), input=text or "", text=True, capture_output=True, check=False
        )
        if done.returncode != 0:
            raise SandboxError(f"{' '.join(argv)}: {done.stderr.strip() or done.returncode}")
        return done.stdout

    def start(self, argv: Sequence[str], **options: Any) -> subprocess.Popen[bytes]:
        """Starts `argv`; `options` are those of `subprocess.Popen`."""
        return subprocess.Popen(self.command(*argv), **options)

    def close(self) -> None:
        """Ends every process in the namespaces and takes them away."""
        if self._holder.stdin and not self._holder.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self._holder.stdin.close()
        self._holder.wait()
        for pipe in (self._holder.stdout, self._holder.stderr):
            if pipe:
                pipe.close()

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def must_be_root() -> None:
    """Raises SandboxError unless this process may make namespaces and taps."""
    if os.geteuid() != 0:
        raise SandboxError("namespaces and taps need root: use sudo")
