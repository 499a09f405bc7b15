"""The machine id of a host without a disk."""

from __future__ import annotations

import hmac

import pytest
from booted_host import BOOT_SECONDS, Boot, BootedHost

UUID = "4c4c4544-0042-3510-8048-b8c04f564433"
GIVEN = "0123456789abcdef0123456789abcdef"


def machine_id(host: BootedHost) -> str:
    host.shell.wait(BOOT_SECONDS)
    assert host.run("systemd-id128 machine-id") == host.run("cat /etc/machine-id")
    return host.run("cat /etc/machine-id")


def test_machine_id_is_made_of_the_uuid_of_the_firmware(boot_once: Boot) -> None:
    host = boot_once("e1000@lan", append="console=ttyS0", extra=["-uuid", UUID])
    digest = hmac.new(b"buildos machine-id", UUID.encode(), "sha256").hexdigest()
    # The bits of a random UUID.
    assert machine_id(host) == f"{digest[:12]}4{digest[13:16]}8{digest[17:32]}"
    assert host.wait_for_systemd() == "running"


@pytest.mark.long
def test_machine_id_that_is_given_is_used(boot_once: Boot) -> None:
    credentials = {"system.machine_id": GIVEN}
    host = boot_once("e1000@lan", append="", credentials=credentials, extra=["-uuid", UUID])
    assert machine_id(host) == GIVEN
