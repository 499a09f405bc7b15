"""A machine on its LAN, as the boot lane's tests use it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from simlan import qemu, shell
from simlan.boot_lan import BootLan
from simlan.guest import Guest

BOOT_SECONDS = 900
"""For a boot to its agent's first poll. PXE takes two minutes on two idle cores
without KVM, and five times that under load."""


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

    def wait_for_poll(self) -> None:
        """Waits until the machine's agent asked the controller for work."""
        self.guest.wait_for(self.lan.task_requests, "the agent's first poll", BOOT_SECONDS)

    def wait_for_systemd(self) -> str:
        """Waits until systemd has done all of the boot; returns its state,
        `running` or `degraded`."""
        # Not --wait: its end can be missed when D-Bus is only just starting.
        self.shell.wait(BOOT_SECONDS)
        self.guest.wait_for(
            lambda: self._state() not in ("initializing", "starting"), "the end of the boot", BOOT_SECONDS,
        )
        return self._state()

    def _state(self) -> str:
        return self.shell.run("systemctl is-system-running").output.strip()


Boot = Callable[..., BootedHost]
"""What the fixture `boot` is: see conftest.py."""
