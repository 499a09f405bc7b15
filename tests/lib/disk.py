"""Disks of hosts in namespaces: loop devices, which the host's udev finds."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from host import Host
from simlan.closing import Closing
from simlan.errors import CommandFailed
from simlan.process import run

# btrfs needs 109 MiB.
SIZE = 128 << 20

# Loop devices count only if these programs get an option.
_PROGRAMS = ("buildos-volumes", "buildos-machine-volumes")


def accept_disks(host: Host) -> None:
    """Makes loop devices count as disks on a host that has not started."""
    for program in _PROGRAMS:
        host.file(
            f"/etc/systemd/system/{program}.service.d/test.conf",
            f"[Service]\nExecStart=\nExecStart=/usr/libexec/{program} --virtual\n",
        )


class Disk(Closing):
    """A disk, which outlives hosts."""

    def __init__(
        self, make: Sequence[str] = (), *, size: int = SIZE, directory: str = "/var/tmp"
    ) -> None:
        """`make` is a program that makes a file system on the path that follows it."""
        self._directory = TemporaryDirectory(prefix="buildos-disk-", dir=directory)
        self.image = Path(self._directory.name) / "disk"
        with self.image.open("wb") as image:
            image.truncate(size)
        if make:
            run([*make, str(self.image)])
        self.node: Path | None = None
        self.hosts: list[Host] = []

    def close(self) -> None:
        self.detach()
        self._directory.cleanup()

    def digest(self) -> str:
        """Returns a digest of all bytes."""
        with self.image.open("rb") as image:
            return hashlib.file_digest(image, "sha256").hexdigest()

    def attach(self, *, read_only: bool = False) -> Path:
        """Makes a loop device of the disk."""
        if self.node is None:
            options = ["--read-only"] if read_only else []
            node = run(["losetup", "--find", "--show", *options, str(self.image)])
            self.node = Path(node.strip())
        return self.node

    def detach(self) -> None:
        if self.node is not None:
            with suppress(CommandFailed):
                run(["losetup", "--detach", str(self.node)])
            self.node = None

    def plug_into(self, host: Host, *, read_only: bool = False, start: bool = True) -> str:
        """Gives a running host the disk, and starts the units that udev wants; returns the name
        of the device."""
        node = self.attach(read_only=read_only)
        # udev asks the kernel by btrfs-control whether all devices of a btrfs are there.
        for path, kind in ((Path("/dev/btrfs-control"), "c"), (node, "b")):
            number = os.stat(path).st_rdev
            numbers = [str(os.major(number)), str(os.minor(number))]
            if not host.succeeds(["test", "-e", str(path)]):
                host.run(["mknod", "-m", "660", str(path), kind, *numbers])
        self.hosts.append(host)
        host.run(["udevadm", "trigger", "--action=change", "--settle", str(node)])
        if start:
            # PID 1 of a host in namespaces has no units of devices, and ignores SYSTEMD_WANTS=.
            properties = host.run(["udevadm", "info", "--query=property", str(node)])
            for line in properties.splitlines():
                if line.startswith("SYSTEMD_WANTS="):
                    host.run(["systemctl", "start", "--no-block", *line.split("=")[1].split()])
        return node.name


def btrfs(label: str = "buildos.state") -> Disk:
    return Disk(["mkfs.btrfs", "--quiet", "--label", label])


def ext4(label: str = "buildos.state") -> Disk:
    return Disk(["mkfs.ext4", "-q", "-F", "-L", label])
