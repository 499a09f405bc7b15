"""`buildosctl volume` on loop devices."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator

import pytest
from buildroot import Root
from conftest import NewHost
from decoys import DECOYS
from disk import Disk, accept_disks, btrfs, ext4
from host import Host

NewDisk = Callable[[Disk], Disk]


@pytest.fixture(scope="module")
def shared(root: Root) -> Iterator[Host]:
    """A host for tests that change nothing on it."""
    with Host(root) as host:
        accept_disks(host)
        host.start([])
        host.wait_for_boot()
        yield host


@pytest.fixture
def keep() -> Iterator[NewDisk]:
    """Removes disks at the end of a test, after its hosts."""
    disks: list[Disk] = []

    def add(disk: Disk) -> Disk:
        disks.append(disk)
        return disk

    yield add
    for disk in disks:
        disk.close()


def boot(new_host: NewHost) -> Host:
    host = new_host()
    accept_disks(host)
    host.start([])
    host.wait_for_boot()
    host.systemctl("start", "systemd-sysusers.service")
    return host


def volume(host: Host, *arguments: str, fails: bool = False) -> str:
    """Returns what `buildosctl volume` writes."""
    result = subprocess.run(
        host.command(["buildosctl", "volume", *arguments, "--virtual"]),
        capture_output=True,
        text=True,
        timeout=60,
    )
    text = result.stdout + result.stderr
    assert result.returncode == (1 if fails else 0), text
    return text


def create(host: Host, name: str, *arguments: str, fails: bool = False) -> str:
    return volume(host, "create", "machines", "--disk", f"/dev/{name}", *arguments, fails=fails)


@pytest.mark.parametrize("kind", DECOYS)
def test_content_of_a_disk_is_named_and_stays(shared: Host, keep: NewDisk, kind: str) -> None:
    make, shown = DECOYS[kind]
    disk = keep(make())
    before = disk.digest()
    name = disk.plug_into(shared, start=False)
    text = create(shared, name, fails=True)
    assert f"  {name}: {shown}\n" in text
    assert f"--disk /dev/{name} --virtual --erase {name}\n" in text
    # The option for an empty disk, and the ID of a different disk.
    assert "nothing was written" in create(shared, name, "--yes", name, fails=True)
    assert "and not sda" in create(shared, name, "--erase", "sda", fails=True)
    volume(shared, "list")
    volume(shared, "check")
    assert disk.digest() == before


def test_disk_that_is_never_a_volume_is_refused(shared: Host, keep: NewDisk) -> None:
    read_only, mounted, small = keep(Disk()), keep(ext4("data")), keep(Disk(size=64 << 20))
    before = [disk.digest() for disk in (read_only, mounted, small)]
    name = read_only.plug_into(shared, read_only=True)
    text = create(shared, name, "--erase", name, fails=True)
    assert f"nothing was written: {name} is read-only" in text
    name = small.plug_into(shared)
    assert "is too small" in create(shared, name, "--erase", name, fails=True)

    name = mounted.plug_into(shared)
    # "ro" alone would replay the journal.
    shared.run(f"mkdir -p /run/data && mount -o ro,noload /dev/{name} /run/data")
    text = create(shared, name, "--erase", name, fails=True)
    assert f"{name} is in use" in text
    assert f"/dev/{name} is mounted at /run/data" in text
    shared.run("umount /run/data")
    without = ["buildosctl", "volume", "create", "state", f"--disk=/dev/{name}", f"--erase={name}"]
    assert not shared.succeeds(without), "virtual devices count for tests only"
    assert [disk.digest() for disk in (read_only, mounted, small)] == before


def test_disk_in_use_without_a_mount_is_refused(shared: Host, keep: NewDisk) -> None:
    disk = keep(Disk())
    before = disk.digest()
    name = disk.plug_into(shared)
    with open(f"/dev/{name}", "rb", opener=exclusively):
        text = create(shared, name, "--yes", name, fails=True)
    assert "in use, as the kernel says" in text
    assert disk.digest() == before


def exclusively(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_EXCL)


def test_empty_disk_becomes_a_machine_volume(new_host: NewHost, keep: NewDisk) -> None:
    disk, second = keep(Disk(size=256 << 20)), keep(Disk())
    host = boot(new_host)
    name = disk.plug_into(host)
    before = disk.digest()
    text = create(host, name, "--name", "fast", fails=True)
    assert "  nothing is on it\n" in text
    assert text.endswith(
        f"buildosctl volume create machines --name fast --disk /dev/{name} --virtual --yes {name}\n"
    )
    assert disk.digest() == before
    text = create(host, name, "--name", "fast", "--yes", name)
    assert f"made the volume buildos.machines.fast on /dev/{name}" in text
    # PID 1 of a host in namespaces has no units of devices.
    host.run(["udevadm", "trigger", "--action=change", "--settle", f"/dev/{name}"])
    wants = host.run(["udevadm", "info", "--query=property", f"/dev/{name}"])
    assert "SYSTEMD_WANTS=buildos-machine-volumes.service\n" in wants
    assert "not mounted: see systemctl status buildos-machine-volumes" in volume(host, "list")
    text = volume(host, "check", fails=True)
    assert "problem  it is not mounted: systemctl start buildos-machine-volumes\n" in text
    assert "ok       btrfs check has found no damage\n" in text
    host.systemctl("start", "buildos-machine-volumes.service")
    assert "in use at /build/machines/fast" in volume(host, "list")
    text = volume(host, "check", "--scrub")
    assert "ok       all data and checksums were read\n" in text
    assert "ok       the kernel has counted no errors of the disk\n" in text
    # Everybody can look.
    for verb, found in (
        ("list", "in use at"),
        ("check", "mounted at /build/machines/fast"),
        ("check --scrub", "open     content: only root can read all data"),
    ):
        command = f"setpriv --reuid=65534 --clear-groups buildosctl volume {verb} --virtual"
        assert found in host.run(command)

    other = second.plug_into(host)
    before = second.digest()
    text = create(host, other, "--name", "fast", "--yes", other, fails=True)
    assert f"{name} has the label buildos.machines.fast already" in text
    assert "is in use" in create(host, name, "--name", "fast", "--erase", name, fails=True)
    assert second.digest() == before
    host.stop()


def test_content_is_destroyed_with_the_id_only(new_host: NewHost, keep: NewDisk) -> None:
    host = boot(new_host)
    make, _ = DECOYS["NTFS"]
    disk = keep(make())
    name = disk.plug_into(host)
    text = volume(host, "create", "state", "--disk", f"/dev/{name}", "--erase", name)
    assert f"  {name}: ntfs\n" in text
    host.run(["udevadm", "trigger", "--action=change", "--settle", f"/dev/{name}"])
    host.systemctl("start", "buildos-volumes.service")
    assert host.succeeds("mountpoint --quiet /state")
    assert "in use at /state" in volume(host, "list")
    host.stop()


def test_damaged_volume_is_a_problem(new_host: NewHost, keep: NewDisk) -> None:
    disk = keep(btrfs())
    with disk.image.open("r+b") as image:
        # Behind the superblock, which has the label: the trees.
        image.seek(1 << 20)
        image.write(bytes(60 << 20))
    host = boot(new_host)
    before = disk.digest()
    disk.plug_into(host, start=False)
    text = volume(host, "check", fails=True)
    assert "problem  btrfs failed" in text
    assert disk.digest() == before
    host.stop()
