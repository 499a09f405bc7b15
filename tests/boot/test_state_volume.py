"""The state volume on a disk of a machine in QEMU: found by udev, kept across power cuts."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from booted_host import BOOT_SECONDS, Boot, BootedHost
from dhcp_double import DhcpDouble
from dhcp_server import Behaviour
from simlan.boot_lan import ADDRESS, QUERY, agent_parameters
from simlan.lan import CONTROLLER_PORT
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


def _time(host: BootedHost, event: str, unit: str) -> int:
    """Returns when a unit has changed its state, in microseconds since the start of the kernel."""
    show = ["systemctl", "show", "--value", f"--property={event}TimestampMonotonic", unit]
    return int(host.run(show))


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
        # A disk is not seen before agentd has started the agents, so it delays no poll.
        assert _time(host, "ActiveEnter", "buildos-agentd") < _time(
            host, "InactiveExit", "buildos-volumes"
        )
        prints.append(host.shell.output(_FINGERPRINT))
        if number == 2:
            assert host.shell.run("test -s /run/buildos/state/netd.json").status == 0
        # A power cut, without sync.
        host.guest.close()
    assert prints[0] == prints[1]


# The second boot

_SERVER = "192.0.2.2"
_UPDATES = f"http://{ADDRESS.ip}/sources"
# By address: no server of this LAN resolves names.
_AGENT = "buildos.agentd.bbot.default"
_APPEND = (
    f"console=ttyS0 {_AGENT}.controllers=http://{ADDRESS.ip}:{CONTROLLER_PORT}/ {_AGENT}.kvm=waived"
    f" buildos.updated.update.source={_UPDATES}"
)


class _Desk:
    """Signs channels."""

    def __init__(self, directory: Path):
        self._env = {**os.environ, "GNUPGHOME": str(directory)}
        self._gpg("--passphrase", "", "--quick-generate-key", "op@desk", "ed25519", "sign")
        self.key = self._gpg("--armor", "--export", "op@desk")

    def _gpg(self, *arguments: str, stdin: str = "") -> str:
        command = ["gpg", "--batch", "--quiet", *arguments]
        result = subprocess.run(
            command, env=self._env, input=stdin, check=True, capture_output=True, text=True
        )
        return result.stdout

    def channel(self, serial: int) -> str:
        until = (datetime.now(UTC) + timedelta(days=30)).strftime("%Y-%m-%dT%H:%M:%SZ")
        head = f'format = 1\nname = "stable"\nserial = {serial}\nvalid_until = {until}\n'
        return self._gpg("--clearsign", stdin=f"{head}\n[rollout]\npercent = 100\nsince = 1\n")

    def close(self) -> None:
        subprocess.run(["gpgconf", "--kill", "gpg-agent"], env=self._env, check=False)


def _update(host: BootedHost, desk: _Desk, serial: int) -> str:
    """Publishes a serial; returns what buildos-updated says about it."""
    served = host.lan.directory / "sources/channel"
    served.mkdir(exist_ok=True)
    (served / "stable").write_text(desk.channel(serial))
    host.shell.run("mkdir -p /etc/buildos/keys")
    host.run(["sh", "-c", 'printf %s "$1" >/etc/buildos/keys/op.asc', "sh", desk.key])
    for unit in ("buildos-machine-place.path", "buildos-machine-volumes.service"):
        host.shell.run(f"systemctl start {unit}")
    host.shell.run("systemctl start buildos-updated.service")
    state = json.loads(host.shell.output("cat /run/buildos/updated/state.json"))
    return str(state["result"])


def _address(host: BootedHost) -> str:
    """Waits for a lease; returns the address of br0."""
    command = "ip -json -4 address show dev br0"
    host.shell.wait(BOOT_SECONDS)

    def address() -> str | None:
        found = json.loads(host.shell.run(command).output or "[]")
        return next((a["local"] for link in found for a in link["addr_info"]), None)

    return host.guest.wait_for(address, "a lease on br0", BOOT_SECONDS)


@contextmanager
def _mounted(disk: Path) -> Iterator[Path]:
    """Mounts the disk of a machine that is off."""
    with tempfile.TemporaryDirectory() as directory:
        run(["mount", "-o", "loop", str(disk), directory])
        try:
            yield Path(directory)
        finally:
            run(["umount", directory])


@pytest.mark.long
def test_second_boot_has_lease_and_serial_of_the_first(boot_once: Boot, tmp_path: Path) -> None:
    """Nothing is written by hand: two boots of one machine with its disks, on one LAN."""
    disks = {}
    for name in ("state", "machines"):
        disks[name] = tmp_path / name
        with disks[name].open("wb") as image:
            image.truncate(_SIZE)
        run(["mkfs.btrfs", "--quiet", "--label", f"buildos.{name}", str(disks[name])])
    extra = [part for name, path in disks.items() for part in _disk(path, name)]
    home = tempfile.TemporaryDirectory(prefix="gpg")
    desk = _Desk(Path(home.name))

    first = boot_once("e1000@lan", append=_APPEND, extra=extra)
    lan = first.lan
    lan.stop_dhcp()
    options = {42: ADDRESS.ip.packed, 3: ADDRESS.ip.packed}
    normal = Behaviour(_SERVER, "192.0.2.0/24", first=50, options=options)
    double = DhcpDouble(lan, normal)
    address = _address(first)
    first.wait_for_poll()
    first.guest.wait_for(
        lambda: f'"{address}"' in first.shell.run("cat /state/netd/state.json").output
        and '"lease"' in first.shell.run("cat /state/netd/state.json").output,
        "the lease is on the volume",
        BOOT_SECONDS,
    )
    first.guest.wait_for(
        lambda: "default" in first.shell.run("cat /state/agentd/state.json").output,
        "the memory of agentd is on the volume",
        BOOT_SECONDS,
    )
    assert _update(first, desk, 7).startswith("serial 7: ")
    # A power cut, without sync.
    first.guest.close()
    with _mounted(disks["state"]) as volume:
        assert "default" in json.dumps(json.loads((volume / "agentd/state.json").read_text()))
        lease = json.loads((volume / "netd/state.json").read_text())["resume"]["lease"]
    assert address in json.dumps(lease)

    # Only a host that asks for its lease gets one.
    double.serve(
        Behaviour(_SERVER, "192.0.2.0/24", first=50, options=options, silent=frozenset({"discover"}))
    )
    second = boot_once("e1000@lan", append=_APPEND, extra=extra, lan=lan)
    assert _address(second) == address
    states = [entry["state"] for entry in double.received("REQUEST")]
    assert "init-reboot" in states and "selecting" not in states, states
    polls = len(lan.task_requests())
    second.guest.wait_for(
        lambda: len(lan.task_requests()) > polls, "a poll of the second boot", BOOT_SECONDS
    )
    # An old channel is refused by the serial that the machine volume remembers.
    refused = _update(second, desk, 6)
    assert "its serial 6 is lower than 7" in refused, refused
    assert _update(second, desk, 8).startswith("serial 8: ")
    desk.close()
    home.cleanup()
