"""A secret that only the TPM of its host can decrypt; only with --all."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from booted_host import BOOT_SECONDS, Boot
from simlan.boot_lan import agent_parameters
from simlan.process import end, start
from simlan.wait import wait_for

pytestmark = pytest.mark.long

UNIT = "buildos-bbot@default.service"
CREDENTIAL = "/etc/bbot/rack-7.cred"
PARAMETERS = f"buildos.agentd.bbot.default.auth_key=encrypted:bbot-key:{CREDENTIAL}"

# As the manual says, on the host itself.
ENCRYPT = f"""
openssl genrsa -out /run/key.pem 2048 2>/dev/null
mkdir -p /etc/bbot
systemd-creds encrypt --with-key=tpm2 --tpm2-pcrs= --name=bbot-key /run/key.pem {CREDENTIAL}
"""


@pytest.fixture
def tpm(tmp_path: Path) -> Iterator[list[str]]:
    """Starts a TPM; yields QEMU's arguments for it."""
    socket = tmp_path / "tpm"
    command = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={tmp_path}"]
    process = start([*command, "--ctrl", f"type=unixio,path={socket}"], stderr=subprocess.STDOUT)
    try:
        wait_for(socket.exists, "the TPM listens", 60)
        arguments = ["-chardev", f"socket,id=tpm,path={socket}"]
        arguments += ["-tpmdev", "emulator,id=tpm,chardev=tpm", "-device", "tpm-crb,tpmdev=tpm"]
        yield arguments
    finally:
        end(process)


def test_key_of_agent_is_decrypted_by_tpm(boot_once: Boot, tpm: list[str]) -> None:
    append = f"console=ttyS0 {agent_parameters()} {PARAMETERS}"
    host = boot_once("virtio-net-pci@lan", append=append, extra=tpm)
    shell = host.shell
    shell.wait(BOOT_SECONDS)
    missing = f"credential encrypted:bbot-key:{CREDENTIAL} is missing"
    host.guest.wait_for(
        lambda: missing in shell.output("buildosctl agents --json || true"),
        "the agent waits for its key",
        BOOT_SECONDS,
    )
    shell.output(ENCRYPT)
    host.wait_for_poll()
    shell.output(f"cmp /run/key.pem /run/credentials/{UNIT}/bbot-key")
    assert "key: " in shell.output("buildosctl agents")
    # Without the TPM, the file is of no use.
    decrypt = f"systemd-creds decrypt --name=bbot-key {CREDENTIAL} - >/dev/null"
    shell.output(decrypt)
    without = f"mount --bind /dev/null /dev/tpmrm0; {decrypt}"
    assert shell.run(f"unshare --mount sh -c '{without}'").status != 0
