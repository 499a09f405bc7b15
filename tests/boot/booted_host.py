"""A running machine with its LAN, for the tests of the boot lane."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from simlan import qemu, shell
from simlan.boot_lan import BootLan
from simlan.guest import Guest

BOOT_SECONDS = 900
"""Deadline of a boot to the agent's first poll. PXE takes two minutes on two idle cores
without KVM, and five times as long under load."""


@dataclass
class BootedHost:
    """A running machine and its LAN."""

    lan: BootLan
    guest: Guest
    nics: list[qemu.Nic]

    @property
    def shell(self) -> shell.Shell:
        """A root shell in the machine."""
        return self.guest.shell

    def run(self, command: str | Sequence[str]) -> str:
        """Runs a command as root in the machine; returns its output."""
        return self.shell.output(command if isinstance(command, str) else shlex.join(command))

    def wait_for_poll(self) -> None:
        """Waits for the agent's first task request."""
        self.guest.wait_for(self.lan.task_requests, "the agent's first poll", BOOT_SECONDS)

    def wait_for_systemd(self) -> str:
        """Waits for the end of the boot; returns systemd's state, `running` or
        `degraded`."""
        # `--wait` can miss the end of the boot while D-Bus starts.
        self.shell.wait(BOOT_SECONDS)
        self.guest.wait_for(
            lambda: self._state() not in ("initializing", "starting"),
            "the end of the boot",
            BOOT_SECONDS,
        )
        return self._state()

    def _state(self) -> str:
        return self.shell.run("systemctl is-system-running").output.strip()


Boot = Callable[..., BootedHost]
"""Boots a machine, see the fixture `boot` in conftest.py."""
