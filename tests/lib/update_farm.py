"""A desk that publishes machines, a server, and a host with a machine volume."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from buildroot import TOP, Root
from disk import accept_disks
from host import Host
from simlan.closing import Closing
from simlan.lan import Lan

PORT = 8090
SIZE = "900M"

_DESK = """
set -eu
mount -t sysfs sysfs /sys
[ -e desk.disk ] || { truncate --size=900M desk.disk; mkfs.btrfs --quiet desk.disk; }
mkdir -p desk
mount -o loop desk.disk desk
[ -e www/desk/stable.toml ] || buildosctl publish init www >/dev/null
machine() { [ -e desk/$1 ] || btrfs --quiet subvolume create desk/$1; }
publish() { buildosctl publish machine --tree www --name $1 desk/$1; }
"""

TIMERS = ["buildos-updated.timer", "buildos-channel-look.timer"]


class Farm(Closing):
    """Keys of an operator, a desk, its server in a LAN, and disks for hosts."""

    def __init__(self, root: Root, directory: Path, lan: Lan):
        self.root = root
        self.directory = directory
        self.lan = lan
        self.serial = 0
        self.tree = directory / "www"
        (directory / "bin").mkdir(parents=True)
        self.zstd = self._copy_of("zstd", "image/host-packages")
        # A short path: that of a socket in it has at most 108 bytes.
        # The host has the one with libraries.
        self.busybox = self._copy_of("busybox", "tests/host-packages")
        self._home = tempfile.mkdtemp(prefix="gpg")
        self._env = {**os.environ, "GNUPGHOME": self._home}
        self._gpg("--passphrase", "", "--quick-generate-key", "op@desk", "ed25519", "sign")
        self.key = self._gpg("--armor", "--export", "op@desk").decode()
        self._loops: list[str] = []

    def detach(self) -> None:
        """Takes the disks away from hosts that have ended."""
        for loop in self._loops:
            subprocess.run(["losetup", "--detach", loop], check=False)
        self._loops.clear()

    def close(self) -> None:
        self.detach()
        subprocess.run(["gpgconf", "--kill", "gpg-agent"], env=self._env, check=False)
        shutil.rmtree(self._home, ignore_errors=True)

    def _gpg(self, *arguments: str, stdin: bytes = b"") -> bytes:
        command = ["gpg", "--batch", "--quiet", *arguments]
        return subprocess.run(
            command, env=self._env, input=stdin, check=True, capture_output=True
        ).stdout

    def _copy_of(self, name: str, packages: str) -> Path:
        """Copies a program of this machine; `packages` is the list that has its package."""
        program = shutil.which(name)
        assert program is not None, f"{name} is not installed ({packages})"
        return Path(shutil.copy(program, self.directory / "bin"))

    # The desk

    def desk(self, script: str) -> str:
        """Runs a script at the desk; its machines are subvolumes of `desk/`."""
        return self.root.output(
            ["sh", "-c", _DESK + script],
            binds={"/work/desk": self.directory},
            env={"PATH": "/work/desk/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
            directory="/work/desk",
        ).decode()

    def add_key(self, name: str) -> None:
        """Makes a key that no host trusts."""
        self._gpg("--passphrase", "", "--quick-generate-key", name, "ed25519", "sign")

    def sign(
        self,
        *,
        serial: int | None = None,
        days: float = 30,
        text: str | None = None,
        key: str = "op@desk",
        gpg: Sequence[str] = (),
    ) -> None:
        """Publishes the draft with the next serial, or with `serial`; signs it with `key` and
        more options of gpg(1)."""
        self.serial = self.serial + 1 if serial is None else serial
        draft = text or (self.tree / "desk/stable.toml").read_text()
        until = (datetime.now(UTC) + timedelta(days=days)).strftime("%Y-%m-%dT%H:%M:%SZ")
        draft = re.sub(r"^serial = \d+", f"serial = {self.serial}", draft, flags=re.MULTILINE)
        draft = re.sub(r"^valid_until = \S+", f"valid_until = {until}", draft, flags=re.MULTILINE)
        sign = [*gpg, "--local-user", key, "--clearsign"]
        (self.tree / "channel/stable").write_bytes(self._gpg(*sign, stdin=draft.encode()))

    @property
    def signed(self) -> Path:
        return self.tree / "channel/stable"

    def pieces(self) -> list[Path]:
        """Returns the objects that are not lists, the largest first."""
        objects = [path for path in (self.tree / "objects").iterdir()]
        large = [path for path in objects if path.stat().st_size > 100_000]
        return sorted(large, key=lambda path: -path.stat().st_size)

    # The server

    def serve(self) -> str:
        """Starts the server; returns its URL."""
        listen = f"{self.lan.address}:{PORT}"
        program = str(TOP / "tests/doubles/update_server.py")
        command = ["/usr/bin/python3", "-u", program, f"--listen={listen}"]
        command += [f"--log={self.lan.directory / 'updates.jsonl'}", f"--tree={self.tree}"]
        self.lan.start_server("update-server", command, "listening")
        return f"http://{listen}"

    def sent(self) -> int:
        """Returns the bytes of objects that the server has sent."""
        requests = self.lan.json_log("updates.jsonl")
        return sum(entry["bytes"] for entry in requests if entry["path"].startswith("/objects/"))

    # Hosts

    def prepare(
        self, host: Host, url: str, toml: str = "", timers: Collection[str] = ()
    ) -> None:
        """Configures a host that has not started, and makes loop devices count as disks. Of
        the timers of updates it has only `timers`: runs take place when a test wants them."""
        accept_disks(host)
        for timer in TIMERS:
            if timer not in timers:
                # A unit without content is masked.
                host.file(f"/etc/systemd/system/{timer}", "")
        host.configure("updated", f'update.source = "{url}"\n{toml}')
        host.file("/etc/buildos/keys/op.asc", self.key)

    def start(self, host: Host, toml: str = "") -> None:
        """Boots a host with an empty volume that follows the channel."""
        self.lan.serve_dhcp()
        self.prepare(host, self.serve(), toml)
        host.start([self.lan])
        host.wait_for(lambda: host.addresses("br0"), "br0 has an address")
        self.attach(host, self.disk())

    def disk(self, label: str = "buildos.machines", directory: Path | None = None) -> str:
        """Makes a disk with an empty volume; returns its device."""
        path = (directory or self.directory) / f"{label}.{len(self._loops)}.disk"
        subprocess.run(["truncate", f"--size={SIZE}", str(path)], check=True)
        subprocess.run(["mkfs.btrfs", "--quiet", "--label", label, str(path)], check=True)
        losetup = ["losetup", "--find", "--show", str(path)]
        device = subprocess.run(losetup, check=True, capture_output=True, text=True).stdout.strip()
        self._loops.append(device)
        return device

    def plug(self, host: Host, device: str) -> None:
        """Gives a running host a disk."""
        number = re.sub(r"\D", "", device)
        host.run(["mknod", device, "b", "7", number])
        # udev asks the kernel by btrfs-control whether all devices of a btrfs are there.
        if not host.succeeds("test -e /dev/btrfs-control"):
            minor = str(os.minor(os.stat("/dev/btrfs-control").st_rdev))
            host.run(["mknod", "-m", "660", "/dev/btrfs-control", "c", "10", minor])
        # The kernel has announced it before: udev of the host found no node then.
        host.run(["udevadm", "trigger", "--action=change", "--settle", device])

    def attach(self, host: Host, device: str) -> None:
        """Gives a running host a disk, and mounts its volume."""
        self.plug(host, device)
        host.copy(self.zstd, "/usr/bin")
        host.copy(self.busybox, "/usr/bin")
        # On an installed host both have happened at boot.
        host.systemctl("start", "systemd-sysusers.service", "buildos-machine-place.path")
        host.systemctl("start", "buildos-machine-volumes.service")


def without(draft: str, names: Collection[str]) -> str:
    """Returns a draft without some machines."""
    head, *machines = draft.split("[[machine]]")
    tail = ""
    if machines:
        machines[-1], rollout, tail = machines[-1].partition("[rollout]")
        tail = rollout + tail
    lines = [f'name = "{name}"\n' for name in names]
    kept = [machine for machine in machines if not any(line in machine for line in lines)]
    return "[[machine]]".join([head, *kept]) + tail


def update(host: Host, deadline: float = 180) -> dict[str, Any]:
    """Runs buildos-updated to its end, and returns its state."""
    host.run(["systemctl", "start", "buildos-updated.service"], deadline=deadline)
    return updated(host)


def updated(host: Host) -> dict[str, Any]:
    state: dict[str, Any] = json.loads(host.read("/run/buildos/updated/state.json"))
    return state


def volume(host: Host, name: str = "default") -> dict[str, Any]:
    """Returns a volume as the helper has seen it last."""
    state = json.loads(host.read("/run/buildos/machine-place/state.json"))
    (found,) = [volume for volume in state["volumes"] if volume["name"] == name]
    assert isinstance(found, dict)
    return found


def acknowledged(host: Host) -> tuple[int, int]:
    """Returns the serial and the highest revision that the helper has reported."""
    path = Path(f"/proc/{host.pid}/root/run/buildos/machine-place/state.json")
    state = json.loads(path.read_text())
    machines = [m["revision"] for v in state["volumes"] for m in v["machines"]]
    serial = state["accepted"][0] if state["accepted"] else 0
    return serial, max(machines, default=0)


def revisions(host: Host) -> list[str]:
    """Returns the placed revisions, the current ones with a star."""
    machines = volume(host)["machines"]
    return sorted(f"{m['name']}-{m['revision']}{'*' if m['current'] else ''}" for m in machines)


def subvolumes(host: Host) -> list[str]:
    """Returns all subvolumes of the volume."""
    listed = host.run(["btrfs", "subvolume", "list", "/run/buildos/machine-volumes/default"])
    return sorted(line.split(" path ")[1] for line in listed.splitlines())


_AGE = r"""
top=/run/buildos/machine-volumes/default/records/machines
[ -d $top ] || exit 0
# sed -i does not write to the disk what it renames.
find $top -type f ! -name '*.new' | while read -r record; do
    sed 's/"left":[0-9]*/"left":1/' "$record" >"$record.new"
    sync "$record.new"
    mv "$record.new" "$record"
done
"""


def age(host: Host) -> None:
    """Makes the host believe that links were replaced long ago."""
    host.run(_AGE)
