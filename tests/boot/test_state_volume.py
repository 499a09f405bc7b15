"""The state volume on a disk of a machine in QEMU: found by udev, kept across power cuts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from booted_host import BOOT_SECONDS, Boot, BootedHost
from simlan.boot_lan import QUERY, agent_parameters
from simlan.process import run

_SIZE = 256 << 20
_FINGERPRINT = "ssh-keygen -l -f /etc/ssh/ssh_host_ed25519_key.pub"


def _disk(path: Path, name: str) -> list[str]:
    """Returns QEMU's arguments for a disk."""
    drive = f"if=none,id={name},file={path},format=raw"
    return ["-drive", drive, "-device", f"virtio-blk-pci,drive={name},serial={name}"]


def _volume(host: BootedHost) -> dict[str, Any]:
    text = host.shell.run("buildosctl status --json").output
    found: dict[str, Any] = json.loads(text)["state_volume"] if text.startswith("{") else None
    return found or {"state": "unknown"}


def test_host_keys_survive_a_power_cut_and_agents_poll(boot_once: Boot, tmp_path: Path) -> None:
    key = tmp_path / "key"
    run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)])
    disk = tmp_path / "disk"
    with disk.open("wb") as image:
        image.truncate(_SIZE)
    run(["mkfs.btrfs", "--quiet", "--label", "buildos.state", str(disk)])
    prints = []
    for number in (1, 2):
        host = boot_once(
            "e1000@lan",
            append=f"console=ttyS0 {agent_parameters(QUERY)}",
            credentials={"ssh.authorized_keys.root": key.with_suffix(".pub").read_text()},
            extra=_disk(disk, "state"),
        )
        host.wait_for_poll()
        # Also with fresh keys, as they are saved.
        host.guest.wait_for(
            lambda host=host: _volume(host)["state"] == "active",  # type: ignore[misc]
            "the state volume is active",
            BOOT_SECONDS,
        )
        host.guest.wait_for(
            lambda host=host: host.shell.run(  # type: ignore[misc]
                "cmp /etc/ssh/ssh_host_ed25519_key /state/ssh/ssh_host_ed25519_key"
            ).status
            == 0,
            "the keys of the SSH server are on the volume",
            BOOT_SECONDS,
        )
        assert host.wait_for_systemd() == "running"
        assert _volume(host)["device"] == "/dev/vda"
        prints.append(host.shell.output(_FINGERPRINT))
        if number == 2:
            assert host.shell.run("test -s /run/buildos/state/netd.json").status == 0
        # A power cut, without sync.
        host.guest.close()
    assert prints[0] == prints[1]
