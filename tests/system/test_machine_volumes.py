"""Publishes machines at a desk; a host fetches, verifies and places them on its volume."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from disk import Disk, accept_disks, btrfs
from host import Host
from simlan.process import run
from update_farm import Farm, age, revisions, subvolumes, update, volume, without

SEED = int(os.environ.get("BUILDOS_SEED", "1"))
MACHINES = "/build/machines/default"
MOUNTED = "/run/buildos/machine-volumes/default"
LINK = ["ln", "-s", "/etc/default.victim", MACHINES]


def publish(farm: Farm, script: str, name: str = "box") -> None:
    farm.desk(f"machine {name}\n{script}\npublish {name} >/dev/null")


def digest(host: Host, path: str) -> str:
    return host.run(["sha256sum", f"{MACHINES}/{path}"], deadline=120).split()[0]


def in_order(host: Host, expected: list[str]) -> None:
    """Checks that the volume has these revisions and nothing else."""
    assert revisions(host) == expected
    paths = [name.rstrip("*") for name in expected]
    machines = [f"machines/{path.rsplit('-', 1)[0]}/{path}" for path in paths]
    assert subvolumes(host) == sorted(machines)
    top = "/run/buildos/machine-volumes/default"
    assert host.run(["ls", f"{top}/staging"]) == ""
    assert host.run(["ls", f"{top}/spool/parts"]) == ""
    assert volume(host)["foreign"] == []


def test_host_follows_the_channel_and_a_process_keeps_its_revision(farm: Farm, host: Host) -> None:
    publish(
        farm,
        "head -c 50000000 /dev/urandom >desk/box/disk.img\n"
        "printf 'id: 1\\n' >desk/box/manifest; ln -s disk.img desk/box/link",
    )
    farm.sign()
    farm.start(host, "machines.keep = 0\n")
    state = update(host)
    assert state["result"] == "serial 1: 1 placed", state
    assert state["problems"] == []
    in_order(host, ["box-1*"])
    assert host.run(["readlink", f"{MACHINES}/box/box"]) == "box-1\n"
    assert host.run(["stat", "-c", "%U", f"{MACHINES}/box"]) == "build\n"
    assert not host.succeeds(f"touch {MACHINES}/box/box/new"), "a revision is read-only"
    first = digest(host, "box/box/disk.img")
    whole = farm.sent()
    assert whole > 50_000_000

    hold = f"exec 3<{MACHINES}/box/box/disk.img; exec sleep infinity"
    host.run(["systemd-run", "--unit=holder", "sh", "-c", hold])
    publish(farm, "dd if=/dev/urandom of=desk/box/disk.img bs=1M count=3 seek=20 conv=notrunc 2>&1")
    farm.sign()
    state = update(host)
    assert state["result"] == "serial 2: 1 placed", state
    # The increment, and not the whole machine.
    assert 3 << 20 < farm.sent() - whole < 1.05 * (3 << 20) + 100_000
    assert state["fetched"] == farm.sent() - whole
    in_order(host, ["box-1", "box-2*"])
    assert host.run(["readlink", f"{MACHINES}/box/box"]) == "box-2\n"
    assert digest(host, "box/box/disk.img") != first
    # The process of the first revision has it whole.
    assert [m["used"] for m in volume(host)["machines"]] == [True, False]
    pid = host.main_pid("holder.service")
    assert host.run(["sha256sum", f"/proc/{pid}/fd/3"]).split()[0] == first
    assert digest(host, "box/box-1/disk.img") == first
    host.systemctl("stop", "holder.service")
    # A task that has read the link has a minute to open a file.
    update(host)
    in_order(host, ["box-1", "box-2*"])
    age(host)
    assert update(host)["result"] == "serial 2: everything is there"
    in_order(host, ["box-2*"])

    listed = host.run(["buildosctl", "machines", "list"])
    assert "box" in listed and "current" in listed, listed
    assert host.run(["buildosctl", "machines", "verify"]) == "box revision 2: unchanged\n"


def test_bad_channels_and_pieces_are_refused_with_the_reason(farm: Farm, host: Host) -> None:
    publish(farm, "head -c 40000000 /dev/urandom >desk/box/disk.img")
    farm.sign()
    old = farm.signed.read_bytes()
    farm.start(host)
    good = {path: path.read_bytes() for path in farm.pieces()}
    (a, b) = farm.pieces()[:2]
    (pieces,) = (path for path in (farm.tree / "objects").iterdir() if path not in good)
    good[pieces] = pieces.read_bytes()
    # Same sizes, wrong content; two pieces exchanged; half of a piece.
    for poison, reason in [
        ({a: b"x" * len(good[a])}, "the content has a different digest"),
        ({a: good[b], b: good[a]}, "the content has a different digest"),
        ({a: good[a][: len(good[a]) // 2]}, f"instead of {len(good[a])}"),
        ({a: good[a] + b"x"}, "Maximum file size exceeded"),
        ({b: b""}, f"0 bytes instead of {len(good[b])}"),
        ({a: None}, "404"),
        # The list of pieces: one digit, its order, half of it.
        ({pieces: good[pieces].replace(b"a", b"b", 1)}, "the content has a different digest"),
        (
            {pieces: b"".join(reversed(good[pieces].splitlines(keepends=True)))},
            "the content has a different digest",
        ),
        ({pieces: good[pieces][:65]}, f"65 bytes instead of {len(good[pieces])}"),
    ]:
        for path, content in poison.items():
            path.unlink() if content is None else path.write_bytes(content)
        # What came before the attack would stay.
        host.run("rm -f /run/buildos/spool/default/objects/*")
        state = update(host)
        assert state["result"] == "serial 1: 0 placed, 1 not placed"
        (problem,) = state["problems"]
        assert problem.startswith("box revision 1: ") and reason in problem, problem
        assert revisions(host) == [] and subvolumes(host) == []
        for path in poison:
            path.write_bytes(good[path])
    # Transfers that break off are resumed, and what came is not fetched again.
    (farm.tree / "desk/truncate").touch()
    (problem,) = update(host)["problems"]
    assert problem.startswith("box revision 1: ") and "curl: (18)" in problem, problem
    (farm.tree / "desk/truncate").unlink()
    farm.sign()
    assert update(host)["result"] == "serial 2: 1 placed"
    assert any(entry["from"] > 0 for entry in farm.lan.json_log("updates.jsonl"))
    in_order(host, ["box-1*"])

    new = farm.signed.read_bytes()
    for bad, reason in [
        (old, "its serial 1 is lower than 2"),
        (new.replace(b"serial = 2", b"serial = 3"), "the signature is not valid"),
        (new[: len(new) // 2], "the signature is not valid"),
        (b"", "the signature is not valid"),
        (b"x" * 2_000_000, "Maximum file size exceeded"),
        # Text outside of what was signed does not count.
        (b"serial = 9\n" + new, "serial 2: everything is there"),
    ]:
        farm.signed.write_bytes(bad)
        state = update(host)
        assert reason in state["result"], state["result"]
    farm.sign(days=-1)
    assert "it expired at" in update(host)["result"]
    farm.sign(days=500)
    assert "more than 400 days away" in update(host)["result"]
    farm.sign(serial=2, days=20)
    assert "a different file with the same serial 2" in update(host)["result"]
    # The volume remembers the serial for a host that does not, also after a boot.
    farm.signed.write_bytes(old)
    for forgotten in ("", "/run/buildos/machine-place/state.json"):
        host.run(f"rm -f /var/lib/buildos/updated/accepted {forgotten}")
        assert "its serial 1 is lower than 2" in update(host)["result"]
    in_order(host, ["box-1*"])
    refused = host.journal("_SYSTEMD_UNIT=buildos-updated.service", "PRIORITY=4")
    assert any("is lower than" in message["MESSAGE"] for message in refused)


_VERIFY = """
for file in altered/*; do
    rm -f out
    if sqv --keyring key.asc --signatures 1 --output out --cleartext $file >/dev/null 2>&1; then
        echo "$file $(sha256sum <out)"
    fi
done
"""


@pytest.mark.parametrize("count", [300, pytest.param(10_000, marks=pytest.mark.long)])
def test_altered_channels_do_not_verify(farm: Farm, count: int) -> None:
    farm.desk("true")
    (farm.directory / "key.asc").write_text(farm.key)
    signed = []
    for _ in range(3):
        farm.sign()
        signed.append(farm.signed.read_bytes())
    dice = random.Random(SEED)
    altered = farm.directory / "altered"
    altered.mkdir()
    for number, file in enumerate(signed):
        (altered / f"signed{number}").write_bytes(file)
    for number in range(count):
        (altered / f"{number}").write_bytes(alter(dice.choice(signed), signed, dice))
    lines = [line.split() for line in farm.desk(_VERIFY).splitlines()]
    verified = {Path(path).name: digest for path, digest, _ in lines}
    texts = {verified[f"signed{number}"] for number in range(len(signed))}
    assert len(texts) == len(signed)
    # Blanks at the end of a line and the armour do not belong to the text.
    assert set(verified.values()) == texts
    assert len(verified) < count / 4, f"{len(verified)} of {count} altered files verify"


def alter(file: bytes, others: list[bytes], dice: random.Random) -> bytes:
    """Returns a signed file with one change."""
    at, end = sorted(dice.randrange(len(file)) for _ in range(2))
    other = dice.choice(others)
    lines = file.splitlines(keepends=True)
    match dice.randrange(7):
        case 0:
            return file[:at] + bytes([file[at] ^ 1 << dice.randrange(8)]) + file[at + 1 :]
        case 1:
            return file[:at]
        case 2:
            return file[:at] + file[end:]
        case 3:
            dice.shuffle(lines)
            return b"".join(lines)
        case 4:
            return file[:at] + dice.choice([b"serial = 99\n", b"\n", b"- ", b"\0"]) + file[at:]
        case 5:
            # The text of one file with the signature of a different one.
            return b"".join(lines[: len(lines) // 2]) + other[len(other) // 2 :]
        case _:
            return file.replace(b"serial = ", b"serial = 1", 1)


def test_helper_believes_nothing_of_the_spool(farm: Farm, host: Host) -> None:
    publish(farm, "head -c 20000000 /dev/urandom >desk/box/disk.img")
    farm.sign()
    farm.start(host)
    spool = "/run/buildos/spool/default"

    def place() -> list[str]:
        host.systemctl("start", "buildos-machine-place.service")
        found = json.loads(host.read("/run/buildos/machine-place/state.json"))["problems"]
        assert isinstance(found, list)
        return found

    # As buildos-updated could, if it were taken over.
    host.systemctl("stop", "buildos-machine-place.path")
    for path in (farm.tree / "objects").iterdir():
        host.copy(path, f"{spool}/objects")
    host.copy(farm.signed, spool)
    host.run(f"mv {spool}/stable {spool}/channel")
    piece = farm.pieces()[0].name
    host.run(f"printf x | dd of={spool}/objects/{piece} bs=1 seek=1000 conv=notrunc 2>/dev/null")
    (problem,) = place()
    assert problem.startswith("machine box revision 1: piece ")
    assert problem.endswith("in the spool has a different digest")
    assert subvolumes(host) == []
    host.run(f"sed -i 's/^serial = 1/serial = 9/' {spool}/channel")
    host.copy(farm.pieces()[0], f"{spool}/objects")
    (problem,) = place()
    assert "the channel is refused: the signature is not valid" in problem
    host.run(f"rm {spool}/channel; mkfifo {spool}/channel")
    (problem,) = place()
    assert "not a regular file" in problem
    host.run(f"rm {spool}/channel")
    host.copy(farm.signed, spool)
    host.run(f"mv {spool}/stable {spool}/channel")
    assert place() == []
    assert revisions(host) == ["box-1*"]


@pytest.mark.long
def test_rate_of_placing(farm: Farm, host: Host, figure: Callable[[str], None]) -> None:
    """Measures the helper alone, from the spool to the link. It is to reach 100 MB/s on an idle
    machine with packages of the release."""
    size = 250_000_000
    publish(farm, f"head -c {size} /dev/urandom >desk/box/disk.img")
    farm.sign()
    farm.start(host)
    spool = "/run/buildos/spool/default"
    host.systemctl("stop", "buildos-machine-place.path")
    for path in (farm.tree / "objects").iterdir():
        host.copy(path, f"{spool}/objects")
    host.copy(farm.signed, spool)
    host.run(f"mv {spool}/stable {spool}/channel; sync --file-system {spool}")
    place = "buildos-machine-place.service"
    host.run(["systemctl", "start", place], deadline=600)
    assert revisions(host) == ["box-1*"]
    names = [f"ExecMain{event}TimestampMonotonic" for event in ("Start", "Exit")]
    begin, end = (int(value) / 1e6 for value in host.unit(place, *names).values())
    rate = size / 1e6 / (end - begin)
    figure(f"a machine of {size / 1e6:.0f} MB is placed in {end - begin:.2f} s: {rate:.0f} MB/s")


def test_machines_put_there_by_hand_stay(farm: Farm, host: Host) -> None:
    publish(farm, "head -c 1000000 /dev/urandom >desk/box/disk.img")
    publish(farm, "head -c 1000000 /dev/urandom >desk/old/disk.img", "old")
    farm.sign()
    farm.start(host)
    host.run(f"btrfs --quiet subvolume create {MACHINES}/mine; mkdir {MACHINES}/box")
    host.run(f"btrfs --quiet subvolume create {MACHINES}/box/mine-1")
    assert update(host)["result"] == "serial 1: 2 placed"
    assert revisions(host) == ["box-1*", "old-1*"]
    assert volume(host)["foreign"] == ["box/mine-1", "mine"]
    listed = host.run("buildosctl machines list")
    assert "put there by hand" in listed, listed

    # A link by hand wins, and is reported.
    host.run(f"ln -sfn mine-1 {MACHINES}/box/box")
    publish(farm, "echo x >desk/box/x")
    draft = (farm.tree / "desk/stable.toml").read_text()
    farm.sign(text=without(draft, ["old"]))
    update(host)
    assert revisions(host) == ["box-1", "box-2", "old-1"]
    age(host)
    update(host)
    assert revisions(host) == ["box-1", "box-2"]
    state = json.loads(host.read("/run/buildos/machine-place/state.json"))
    assert any("was made by hand: it names mine-1" in line for line in state["problems"])
    assert not host.succeeds(f"test -e {MACHINES}/old")
    assert volume(host)["foreign"] == ["box/mine-1", "mine"]
    host.run(f"rm {MACHINES}/box/box")
    update(host)
    assert revisions(host) == ["box-1", "box-2*"]


def test_volume_with_too_little_room_is_left_alone(farm: Farm, host: Host) -> None:
    publish(farm, "head -c 300000000 /dev/urandom >desk/box/disk.img")
    farm.sign()
    farm.start(host)
    host.run(f"dd if=/dev/urandom of={MACHINES}/fill bs=1M count=300 2>&1; sync", deadline=120)
    state = update(host)
    (problem,) = state["problems"]
    assert "box revision 1: it needs " in problem and " stay free" in problem
    assert farm.sent() == 0
    host.run(f"rm {MACHINES}/fill; sync")


def test_two_volumes_with_one_label_are_not_mounted(farm: Farm, host: Host) -> None:
    farm.lan.serve_dhcp()
    farm.prepare(host, farm.serve())
    farm.desk("true")
    farm.sign()
    host.start([farm.lan])
    host.wait_for(lambda: host.addresses("br0"), "br0 has an address")
    assert update(host)["result"] == "serial 1: this host has no machine volume default"
    for _ in range(2):
        farm.plug(host, farm.disk())
    host.systemctl("start", "buildos-machine-volumes.service")
    messages = host.journal("_SYSTEMD_UNIT=buildos-machine-volumes.service")
    assert any("have the same label" in m.get("MESSAGE", "") for m in messages)
    assert not host.succeeds("mountpoint --quiet /build/machines/default")


def test_loop_device_is_no_machine_volume_outside_of_tests(host: Host) -> None:
    """A build can make loop devices, and must neither provide a volume nor take one away."""
    with btrfs("buildos.machines") as disk:
        host.start([])
        host.wait_for_boot()
        host.systemctl("start", "systemd-sysusers.service")
        before = disk.digest()
        node = f"/dev/{disk.plug_into(host, start=False)}"
        properties = host.run(["udevadm", "info", "--query=property", node]).splitlines()
        assert "ID_FS_LABEL=buildos.machines" in properties
        host.systemctl("start", "buildos-machine-volumes.service")
        assert not host.succeeds("test -e /run/buildos/machine-volumes/default")
        assert host.journal("_SYSTEMD_UNIT=buildos-machine-volumes.service", "PRIORITY=4") == []
        assert disk.digest() == before
        host.stop()


def test_disks_of_one_btrfs_are_one_machine_volume(host: Host) -> None:
    with Disk() as first, Disk() as second:
        mkfs = ["mkfs.btrfs", "--quiet", "--label", "buildos.machines"]
        run([*mkfs, *(str(disk.attach()) for disk in (first, second))])
        accept_disks(host)
        host.start([])
        host.wait_for_boot()
        host.systemctl("start", "systemd-sysusers.service")
        for disk in (first, second):
            disk.plug_into(host, start=False)
        host.systemctl("start", "buildos-machine-volumes.service")
        assert host.succeeds("mountpoint --quiet /build/machines/default")
        host.stop()


def test_link_in_the_place_of_a_volume_hides_no_directory(host: Host) -> None:
    """The user `build` owns the directory in which volumes are mounted."""
    with btrfs("buildos.machines") as disk:
        accept_disks(host)
        host.start([])
        host.wait_for_boot()
        host.systemctl("start", "systemd-sysusers.service")
        host.run("mkdir /etc/default.victim; touch /etc/default.victim/file")
        host.run(["setpriv", "--reuid=build", "--regid=build", "--clear-groups", *LINK])
        disk.plug_into(host, start=False)
        host.systemctl("start", "buildos-machine-volumes.service")
        assert host.succeeds("test -e /etc/default.victim/file"), "the volume hides a directory"
        assert "/etc" not in host.run("findmnt --noheadings --raw --output TARGET --types btrfs")
        messages = host.journal("_SYSTEMD_UNIT=buildos-machine-volumes.service", "PRIORITY=4")
        expected = f"machine volume default is not used: {MACHINES} is a link or no directory"
        assert [m["MESSAGE"] for m in messages] == [expected]
        # The volume is mounted once the reason is gone.
        host.run(f"rm {MACHINES}")
        host.systemctl("start", "buildos-machine-volumes.service")
        assert host.succeeds(f"mountpoint --quiet {MACHINES}")
        host.systemctl("start", "buildos-machine-volumes.service")
        mounts = host.run("findmnt --noheadings --raw --output TARGET --types btrfs").splitlines()
        assert mounts.count(MACHINES) == 1, mounts
        host.stop()


def test_containers_of_the_channel_are_in_the_directory_of_systemd_nspawn(
    farm: Farm, host: Host
) -> None:
    def container(text: str) -> None:
        publish = "buildosctl publish container --tree www --name debian desk/debian >/dev/null"
        farm.desk(f"machine debian\nprintf %s {text} >desk/debian/version\n{publish}")
        farm.sign()

    container("first")
    # In the image, systemd-container has this line.
    host.file("/etc/tmpfiles.d/containers.conf", "R! /var/lib/machines/.#*\n")
    farm.start(host)
    assert update(host)["result"] == "serial 1: 1 placed"
    top = "/var/lib/machines"
    assert host.run(["readlink", f"{top}/debian"]) == "debian-1\n"
    assert host.read(f"{top}/debian/version") == "first"
    assert host.run(["stat", "-c", "%U %a", top]) == "root 700\n", "only root enters"
    assert host.run(["ls", MACHINES]) == "", "it is no machine of bbot-agent"
    listed = host.run(["buildosctl", "machines", "list"])
    assert f"{top}/debian-1" in listed, listed
    assert host.run(["buildosctl", "machines", "verify"]) == "debian revision 1: unchanged\n"
    # Programs of containers can change their user; those of machines cannot.
    options = host.run(["findmnt", "--noheadings", "--output=OPTIONS", top])
    assert "nodev" in options and "nosuid" not in options, options
    assert "nosuid" in host.run(["findmnt", "--noheadings", "--output=OPTIONS", MACHINES])

    # systemd-nspawn --ephemeral runs a snapshot beside the revision.
    snapshot = f"{top}/.#machine.debian-1f00"
    host.run(["btrfs", "--quiet", "subvolume", "snapshot", f"{top}/debian-1", snapshot])
    container("second")
    assert update(host)["result"] == "serial 2: 1 placed"
    assert revisions(host) == ["debian-1", "debian-2*"]
    assert host.read(f"{top}/debian/version") == "second"
    assert host.read(f"{snapshot}/version") == "first", "a container that runs is left alone"
    # After a power cut, no container has it.
    for mounted in [top, MACHINES, "/run/buildos/spool/default"]:
        host.run(["umount", mounted])
    host.run(["umount", "/run/buildos/machine-volumes/default"])
    host.systemctl("start", "buildos-machine-volumes.service")
    host.wait_for(lambda: host.succeeds(f"test -e {top}/debian-2"), "the volume is mounted")
    assert not host.succeeds(f"test -e '{snapshot}'")


def test_containers_that_are_there_already_are_not_hidden(farm: Farm, host: Host) -> None:
    publish(farm, "echo 1 >desk/box/file")
    farm.sign()
    host.file("/var/lib/machines/mine/version", "by hand\n")
    farm.start(host)
    assert update(host)["result"] == "serial 1: 1 placed"
    assert host.read("/var/lib/machines/mine/version") == "by hand\n"
    journal = host.run(["journalctl", "-o", "cat", "-u", "buildos-machine-volumes"])
    reason = "/var/lib/machines is not empty, and stays as it is"
    assert f"containers of the channel are not used: {reason}" in journal, journal


def start_without_disk(farm: Farm, host: Host, ram_mib: int) -> None:
    """Boots a host on which loop devices are no disks, with a volume in RAM."""
    farm.lan.serve_dhcp()
    host.configure("updated", f'update.source = "{farm.serve()}"\nmachines.ram_mib = {ram_mib}\n')
    host.file("/etc/buildos/keys/op.asc", farm.key)
    host.start([farm.lan])
    host.wait_for(lambda: host.addresses("br0"), "br0 has an address")
    host.copy(farm.zstd, "/usr/bin")
    # On an installed host the kernel makes these.
    host.run(
        "mknod -m 660 /dev/loop-control c 10 237; i=0; "
        "while [ $i -lt 128 ]; do mknod -m 660 /dev/loop$i b 7 $i; i=$((i + 1)); done"
    )
    host.systemctl("start", "systemd-sysusers.service", "buildos-machine-place.path")


def test_host_without_a_disk_has_its_machines_in_ram(farm: Farm, host: Host) -> None:
    publish(farm, "head -c 50000000 /dev/urandom >desk/box/disk.img")
    farm.sign()
    start_without_disk(farm, host, 512)
    assert update(host)["result"] == "serial 1: 1 placed"
    in_order(host, ["box-1*"])
    files = "/run/buildos/machine-ram/files"
    assert host.run(["stat", "-c", "%U %a", files]) == "root 700\n"
    assert host.run(["findmnt", "-no", "FSTYPE,SIZE", files]).split() == ["tmpfs", "512M"]
    # All of the file system is in this file.
    taken = int(host.run(["du", "-m", f"{files}/default"]).split()[0])
    assert 50 < taken < 200, taken
    options = host.run(["findmnt", "-no", "OPTIONS", MACHINES])
    assert "nosuid" in options and "nodev" in options, options
    used = "machine volume default: in RAM until the next boot"
    assert f"{used}\n" in host.run(["buildosctl", "volume", "list"])
    assert f"ram      used              {used}, 512 MiB\n" in host.run(["buildosctl", "status"])
    assert "ok       it is in RAM\n" in host.run(["buildosctl", "volume", "check"])

    # The next run finds it, and a loop device with the label changes nothing.
    source = host.run(["findmnt", "-no", "SOURCE", MACHINES])
    with btrfs("buildos.machines") as made_by_build:
        name = made_by_build.plug_into(host)
        publish(farm, "echo 2 >desk/box/version")
        farm.sign()
        assert update(host)["result"] == "serial 2: 1 placed"
        assert host.run(["findmnt", "-no", "SOURCE", MACHINES]) == source
        listed = host.run(["buildosctl", "volume", "list"]).splitlines()
        (line,) = [line for line in listed if line.startswith(f"/dev/{name} ")]
        assert "not used: it is a virtual device" in line
    in_order(host, ["box-1", "box-2*"])

    # It stays, and agents leave its RAM to it, whatever the configuration says.
    for ram in ("", "ram_mib = 0\n"):
        host.write("/etc/buildos/updated.conf.d/60-test.toml", f'[machines]\nvolume = "fast"\n{ram}')
        update(host)
        reason = "fast is not in RAM: volume default is in RAM until the next boot"
        assert f"machine volume {reason}\n" in host.run(["buildosctl", "volume", "list"])
        assert json.loads(host.read("/run/buildos/machine-ram/state.json"))["mib"] == 512
    host.write("/etc/buildos/updated.conf.d/60-test.toml", "machines.ram_mib = 0\n")
    update(host)
    assert f"{used}\n" in host.run(["buildosctl", "volume", "list"])
    assert host.run(["findmnt", "-no", "SOURCE", MACHINES]) == source


# Makes the file system, and mounts one of a disk as the volume, as buildos-machine-volumes does.
_DISK_APPEARS = f"""#!/bin/sh -e
/usr/bin/mkfs.real "$@"
truncate -s 300M /var/tmp/disk
/usr/bin/mkfs.real --quiet /var/tmp/disk
mkdir -p -m 700 {MOUNTED}
mount -o loop /var/tmp/disk {MOUNTED}
"""


def test_disk_that_appears_while_the_volume_is_made_is_not_taken_for_ram(
    farm: Farm, host: Host
) -> None:
    publish(farm, "echo 1 >desk/box/version")
    farm.sign()
    start_without_disk(farm, host, 512)
    host.run("mv $(command -v mkfs.btrfs) /usr/bin/mkfs.real")
    host.write("/usr/bin/mkfs.btrfs", _DISK_APPEARS)
    host.run("chmod 755 /usr/bin/mkfs.btrfs")
    host.systemctl("start", "buildos-machine-ram.service")
    report = json.loads(host.read("/run/buildos/machine-ram/state.json"))
    assert (report["state"], report["mib"]) == ("disk", 0), report
    # The RAM is free again.
    assert not host.succeeds("findmnt /run/buildos/machine-ram/files")
    assert host.succeeds(f"findmnt {MOUNTED}")


def test_volume_that_does_not_fit_into_ram_is_not_made_and_reported(farm: Farm, host: Host) -> None:
    publish(farm, "echo 1 >desk/box/version")
    farm.sign()
    start_without_disk(farm, host, 4_000_000_000)
    assert update(host)["result"] == "serial 1: this host has no machine volume default"
    reason = "machines.ram_mib = 4000000000 is more than half of the RAM"
    assert f"machine volume default is not in RAM: {reason}" in host.run(
        ["buildosctl", "volume", "list"]
    )
    for command in ("status", "why"):
        text = host.run(f"buildosctl {command} || true")
        assert reason in text, text
    assert not host.succeeds("ls /run/buildos/machine-ram/files")
