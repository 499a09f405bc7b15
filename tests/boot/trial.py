"""A machine on its LAN, as the boot lane's tests use it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from simlan import qemu, shell
from simlan.guest import Guest
from simlan.network import Lan

BOOT_SECONDS = 900
"""For a boot to its agent's first poll. PXE takes two minutes on two idle cores
without KVM, and five times that under load."""


@dataclass
class Trial:
    """A running machine and its LAN."""

    lan: Lan
    guest: Guest
    nics: list[qemu.Nic]

    @property
    def shell(self) -> shell.Shell:
        """A root shell in the machine."""
        return self.guest.shell

    def wait_for_poll(self) -> None:
        """Waits until the machine's agent asked the controller for work."""
        self.guest.wait_for("the agent's first poll", BOOT_SECONDS, self.lan.polls)


Boot = Callable[..., Trial]
"""What the fixture `boot` is: see conftest.py."""
