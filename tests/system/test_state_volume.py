"""The state volume on loop devices: choice, what is kept, and faults."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from agents import bbot, needs, wait_until_runs
from conftest import NewHost
from disk import Disk, accept_disks, btrfs, ext4
from host import Host
from simlan.lan import Lan

_SELECT = "buildos-volumes.service"
_KEEP = "buildos-state.service"
# See units/systemd/catalog/buildos-volumes.catalog.
_KEY = "/etc/ssh/ssh_host_ed25519_key"
_BEGIN, _END = (f"-----{word} OPENSSH PRIVATE KEY-----\n" for word in ("BEGIN", "END"))

NewDisk = Callable[..., Disk]


@pytest.fixture
def keep() -> Iterator[Callable[[Disk], Disk]]:
    """Removes disks at the end of a test, after its hosts."""
    disks: list[Disk] = []

    def add(disk: Disk) -> Disk:
        disks.append(disk)
        return disk

    yield add
    for disk in disks:
        for host in disk.hosts:
            host.stop()
        disk.close()


def boot(host: Host, *lans: Lan) -> Host:
    """Starts a host on which loop devices count as disks; without LANs, it has no network."""
    accept_disks(host)
    host.start(lans)
    host.wait_for_boot()
    return host


def volume(host: Host) -> dict[str, Any]:
    """Returns the state volume as `buildosctl status --json` shows it."""
    found: dict[str, Any] = json.loads(host.run("buildosctl status --json", check=False))[
        "state_volume"
    ]
    return found


def wait_for_state(host: Host, state: str, deadline: float = 60) -> dict[str, Any]:
    def reached() -> dict[str, Any]:
        found = volume(host)
        assert found is not None, "no report"
        assert found["state"] == state, found
        return found

    return host.wait_for(reached, f"the state volume is {state}", deadline)


def put_key(host: Host, text: str) -> None:
    """Does what ssh-keygen does, without its randomness."""
    host.write(_KEY, f"{_BEGIN}{text}\n{_END}")
    host.write(f"{_KEY}.pub", f"ssh-ed25519 {text}\n")


def test_udev_starts_the_choice_for_the_label(host: Host, keep: Callable[[Disk], Disk]) -> None:
    disk, other = keep(btrfs()), keep(btrfs("buildos.other"))
    boot(host)
    for device, wanted in ((disk, True), (other, False)):
        name = device.plug_into(host, start=False)
        properties = host.run(["udevadm", "info", "--query=property", f"/dev/{name}"])
        assert (f"SYSTEMD_WANTS={_SELECT}\n" in properties) == wanted


@pytest.mark.parametrize("make", [btrfs, ext4])
def test_state_survives_a_power_cut(
    new_host: NewHost, lan: Lan, keep: Callable[[Disk], Disk], make: Callable[[], Disk]
) -> None:
    disk = keep(make())
    lan.serve_dhcp()
    first = boot(new_host("first"), lan)
    first.wait_for(lambda: first.addresses("br0"), "the host has a lease")
    put_key(first, "first")
    name = disk.plug_into(first)
    shown = wait_for_state(first, "active")
    assert shown["device"] == f"/dev/{name}"
    assert 0 < shown["free"] < shown["size"] <= 128 << 20
    options = first.run("findmnt --noheadings --output OPTIONS /state").split(",")
    assert {"nosuid", "nodev", "noexec", "rw"} <= set(options)
    first.wait_for(
        lambda: first.succeeds("cmp /run/buildos/netd/state.json /state/netd/state.json"),
        "netd's state is on the volume",
    )
    seed = first.run("sha256sum /state/random-seed")
    lease = first.read("/state/netd/state.json")
    first.stop()

    second = boot(new_host("second"))
    put_key(second, "second")
    disk.plug_into(second)
    wait_for_state(second, "active")
    assert "first" in second.read(_KEY)
    assert second.run(f"stat -c %a {_KEY}").strip() == "600"
    assert second.read("/run/buildos/state/netd.json") == lease
    # A host without a lease keeps that of the boot before.
    second.wait_for(
        lambda: second.succeeds("cmp /run/buildos/agentd/state.json /state/agentd/state.json"),
        "the state of the second boot is on the volume",
    )
    assert second.read("/state/netd/state.json") == lease
    assert second.run("sha256sum /state/random-seed") != seed, "a seed must not be used twice"
    status = second.run("buildosctl status", check=False)
    assert "state    active" in status
    assert f'buildos_state_volume{{state="active"}} 1' in second.run("buildosctl metrics")
    # A key that ssh-keygen makes late does not replace the one that clients know.
    put_key(second, "late")
    second.wait_for(lambda: "first" in second.read(_KEY), "the key of the volume is back")


def test_agent_waits_for_its_key_on_the_volume(
    new_host: NewHost, lan: Lan, url: str, keep: Callable[[Disk], Disk]
) -> None:
    disk = keep(btrfs())
    first = boot(new_host("first"))
    disk.plug_into(first)
    wait_for_state(first, "active")
    key = "/state/keys/bbot.pem"
    first.run(f"install -D -m 600 /dev/null {key} && echo secret >{key} && sync {key}")
    first.stop()

    second = new_host("second")
    program = '#!/bin/bash\ncat "$CREDENTIALS_DIRECTORY/bbot-key" >/build/key; exec sleep infinity\n'
    second.program("/opt/agent", program)
    lines = ['program = "/opt/agent"', f'auth_key = "bbot-key:{key}"']
    second.configure("agentd", bbot(url, *lines))
    boot(second, lan)
    second.wait_for(lambda: set(needs(second)) == {"credentials"}, "only the key is missing")
    disk.plug_into(second)
    wait_until_runs(second)
    second.wait_for(lambda: second.read("/build/key") == "secret\n", "the agent has its key")


def test_nothing_starts_without_a_disk(host: Host) -> None:
    boot(host)
    assert host.unit(_SELECT, "ActiveEnterTimestamp", "ExecMainPID") == {
        "ActiveEnterTimestamp": "",
        "ExecMainPID": "0",
    }
    assert volume(host) is None
    for unit in (_SELECT, _KEEP, "state.mount"):
        after = host.unit(unit, "Before")["Before"].split()
        assert set(after) <= {"shutdown.target", "umount.target", _KEEP}, unit


def test_two_volumes_with_the_label_are_left_alone(
    host: Host, keep: Callable[[Disk], Disk]
) -> None:
    disks = [keep(btrfs()), keep(ext4())]
    boot(host)
    before = [disk.digest() for disk in disks]
    # Both are there before buildos-volumes looks, as after a start with both.
    names = sorted(disk.plug_into(host, start=False) for disk in disks)
    host.systemctl("start", _SELECT)
    shown = wait_for_state(host, "refused")
    assert shown["reason"] == (
        f"there is no state volume, as {' and '.join(names)} have the same label"
    )
    assert not host.succeeds("mountpoint /state")
    assert shown["reason"] in host.run("buildosctl why", check=False)
    assert [disk.digest() for disk in disks] == before


def test_second_volume_that_comes_late_is_reported(
    host: Host, keep: Callable[[Disk], Disk]
) -> None:
    first, second = keep(btrfs()), keep(btrfs())
    boot(host)
    name = first.plug_into(host)
    wait_for_state(host, "active")
    before = second.digest()
    second.plug_into(host)
    host.wait_for(
        lambda: f"{name} stays the state volume" in volume(host)["warning"], "a warning"
    )
    assert volume(host)["state"] == "active"
    assert second.digest() == before


@pytest.mark.parametrize(
    "make",
    [
        ["mkswap", "--label", "buildos.state"],
        ["mkfs.btrfs", "--quiet", "--label", "buildos.stat"],
        ["mkfs.ext4", "-q", "-F", "-L", "Buildos.state"],
        ["mkfs.ext2", "-q", "-F", "-L", "buildos.state"],
    ],
    ids=["swap", "other label", "other case", "ext2"],
)
def test_decoy_is_never_written(
    host: Host, keep: Callable[[Disk], Disk], make: list[str]
) -> None:
    disk = keep(Disk(make))
    boot(host)
    before = disk.digest()
    disk.plug_into(host)
    host.run(f"systemctl start {_SELECT}")
    assert volume(host)["state"] in ("absent", "refused")
    assert not host.succeeds("mountpoint /state")
    assert disk.digest() == before


def test_read_only_disk_is_refused(host: Host, keep: Callable[[Disk], Disk]) -> None:
    disk = keep(btrfs())
    boot(host)
    before = disk.digest()
    name = disk.plug_into(host, read_only=True)
    assert wait_for_state(host, "refused")["reason"].endswith(f"as {name} is read-only")
    assert disk.digest() == before


def test_loop_device_is_no_disk_outside_of_tests(
    host: Host, keep: Callable[[Disk], Disk]
) -> None:
    """A build can make loop devices."""
    disk = keep(btrfs())
    host.start([])
    host.wait_for_boot()
    before = disk.digest()
    disk.plug_into(host)
    host.run(f"systemctl start {_SELECT}")
    assert wait_for_state(host, "absent")["fault"] is False
    assert disk.digest() == before


def test_damaged_volume_is_reported_and_left_alone(
    host: Host, keep: Callable[[Disk], Disk]
) -> None:
    disk = keep(btrfs())
    with disk.image.open("r+b") as image:
        # Behind the superblock, which has the label: the trees.
        image.seek(1 << 20)
        image.write(bytes(60 << 20))
    boot(host)
    before = disk.digest()
    disk.plug_into(host)
    shown = wait_for_state(host, "failed")
    assert "systemctl status state.mount" in shown["reason"]
    assert disk.digest() == before


def test_full_volume_is_reported_and_recovers(host: Host, keep: Callable[[Disk], Disk]) -> None:
    disk = keep(ext4())
    boot(host)
    disk.plug_into(host)
    wait_for_state(host, "active")
    # ext4 reserves blocks while it writes, which are free again afterwards. Blocks of a small
    # ext4 have 1 kB, so larger files leave room for a key.
    host.run("""
        mkdir /state/fill
        dd if=/dev/zero of=/state/fill/0 bs=1M conv=fsync 2>/dev/null || true
        for number in $(seq 10000); do
            dd if=/dev/zero of=/state/fill/$number bs=1k count=1 conv=fsync 2>/dev/null || exit 0
        done
        exit 1""")
    put_key(host, "new")
    shown = wait_for_state(host, "full")
    assert "No space left on device" in shown["reason"]
    assert "No space left on device" in host.run("buildosctl why", check=False)
    host.run("rm -r /state/fill")
    # The delay between two attempts grows to 64 s.
    wait_for_state(host, "active", 120)
    assert "new" in host.read(f"/state/ssh/{_KEY.rsplit('/', 1)[1]}")


def test_volume_that_becomes_read_only_is_reported(
    host: Host, keep: Callable[[Disk], Disk]
) -> None:
    disk = keep(ext4())
    boot(host)
    disk.plug_into(host)
    wait_for_state(host, "active")
    # As the kernel does after an error of the file system.
    host.run("mount -o remount,ro /state")
    put_key(host, "new")
    wait_for_state(host, "read-only")
    host.run("mount -o remount,rw /state")
    wait_for_state(host, "active", 120)


def test_disk_that_is_pulled_out_is_reported_and_comes_back(
    host: Host, keep: Callable[[Disk], Disk]
) -> None:
    disk = keep(btrfs())
    boot(host)
    disk.plug_into(host)
    wait_for_state(host, "active")
    # As systemd does when the device disappears.
    host.run("umount /state")
    wait_for_state(host, "gone")
    host.wait_for(lambda: not host.active(_KEEP), "buildos-state has ended")
    assert host.unit(_KEEP, "Result") == {"Result": "success"}
    host.systemctl("start", _SELECT)
    wait_for_state(host, "active")


def test_frozen_disk_stops_no_daemon(host: Host, keep: Callable[[Disk], Disk]) -> None:
    disk = keep(ext4())
    boot(host)
    disk.plug_into(host)
    wait_for_state(host, "active")
    daemons = ("buildos-netd.service", "buildos-agentd.service", _KEEP)
    pids = {unit: host.main_pid(unit) for unit in daemons}
    # Every write waits, as on a disk that does not answer.
    host.run("fsfreeze --freeze /state")
    try:
        put_key(host, "new")
        shown = wait_for_state(host, "slow")
        assert "has not answered for 15 s" in shown["reason"]
        assert {unit: host.main_pid(unit) for unit in daemons} == pids
        host.call("network1", "Reconfigure")
    finally:
        host.run("fsfreeze --unfreeze /state")
    wait_for_state(host, "active")


def test_last_state_is_saved_when_the_host_stops(
    host: Host, keep: Callable[[Disk], Disk]
) -> None:
    disk = keep(btrfs())
    boot(host)
    disk.plug_into(host)
    wait_for_state(host, "active")
    host.run("logger the last words")
    # Without the kernel's buffers, to which hosts in namespaces have no access.
    host.systemctl("stop", _KEEP)
    boot_id = host.read("/proc/sys/kernel/random/boot_id").strip()
    assert "the last words" in host.read(f"/state/journal/{boot_id}.log")
    host.systemctl("stop", "state.mount")
    assert not host.succeeds("mountpoint /state")
