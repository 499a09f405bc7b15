"""Publishes machines at a desk; a host fetches, verifies and places them on its volume."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from buildroot import Root
from disk import Disk, accept_disks, btrfs
from host import Host
from simlan.lan import Lan
from simlan.process import run
from update_farm import Farm, revisions, subvolumes, update, updated, volume

MACHINES = "/build/machines/default"
LINK = ["ln", "-s", "/etc/default.victim", MACHINES]


@pytest.fixture
def farm(root: Root, tmp_path: Path, lan: Lan) -> Iterator[Farm]:
    with Farm(root, tmp_path / "farm", lan) as farm:
        yield farm


def start(farm: Farm, host: Host, toml: str = "") -> None:
    """Boots a host with an empty volume that follows the channel of the farm."""
    farm.lan.serve_dhcp()
    farm.prepare(host, farm.serve(), toml)
    host.start([farm.lan])
    host.wait_for(lambda: host.addresses("br0"), "br0 has an address")
    farm.attach(host, farm.disk())


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
    assert host.run(["ls", f"{top}/spool/objects"]) == ""
    assert volume(host)["foreign"] == []


def test_host_follows_the_channel_and_a_process_keeps_its_revision(farm: Farm, host: Host) -> None:
    publish(
        farm,
        "head -c 50000000 /dev/urandom >desk/box/disk.img\n"
        "printf 'id: 1\\n' >desk/box/manifest; ln -s disk.img desk/box/link",
    )
    farm.sign()
    start(farm, host, "machines.keep = 0\n")
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
    assert update(host)["result"] == "serial 2: everything is there"
    in_order(host, ["box-2*"])

    listed = host.run(["buildosctl", "machines", "list"])
    assert "box" in listed and "current" in listed, listed
    assert host.run(["buildosctl", "machines", "verify"]) == "box revision 2: unchanged\n"


def test_bad_channels_and_pieces_are_refused_with_the_reason(farm: Farm, host: Host) -> None:
    publish(farm, "head -c 40000000 /dev/urandom >desk/box/disk.img")
    farm.sign()
    old = farm.signed.read_bytes()
    start(farm, host)
    good = {path: path.read_bytes() for path in farm.pieces()}
    (a, b) = farm.pieces()[:2]
    # Same sizes, wrong content; two pieces exchanged; half of a piece.
    for poison, reason in [
        ({a: b"x" * len(good[a])}, "the content has a different digest"),
        ({a: good[b], b: good[a]}, "the content has a different digest"),
        ({a: good[a][: len(good[a]) // 2]}, f"instead of {len(good[a])}"),
        ({a: good[a] + b"x"}, "Maximum file size exceeded"),
    ]:
        for path, content in poison.items():
            path.write_bytes(content)
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
    # The volume remembers the serial for a host that does not.
    host.run("rm /var/lib/buildos/updated/accepted")
    farm.signed.write_bytes(old)
    assert "its serial 1 is lower than 2" in update(host)["result"]
    in_order(host, ["box-1*"])
    refused = host.journal("_SYSTEMD_UNIT=buildos-updated.service", "PRIORITY=4")
    assert any("is lower than" in message["MESSAGE"] for message in refused)


def test_helper_believes_nothing_of_the_spool(farm: Farm, host: Host) -> None:
    publish(farm, "head -c 20000000 /dev/urandom >desk/box/disk.img")
    farm.sign()
    start(farm, host)
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


def test_kills_at_any_moment_leave_no_orphans(farm: Farm, host: Host) -> None:
    publish(farm, "head -c 60000000 /dev/urandom >desk/box/disk.img")
    farm.sign()
    start(farm, host, "machines.keep = 0\n")
    dice = random.Random(19)
    revision = 1
    expected = digest_at_desk(farm)
    for _ in range(12):
        host.run("systemctl start --no-block buildos-updated.service")
        victim = dice.choice(["buildos-updated.service", "buildos-machine-place.service"])
        kill_after(host, victim, dice.random())
        host.wait_for(
            lambda: host.unit("buildos-updated.service", "ActiveState")["ActiveState"]
            not in ("active", "activating"),
            "buildos-updated ended",
            180,
        )
        if updated(host)["result"].endswith("everything is there"):
            revision += 1
            publish(farm, "head -c 9000000 /dev/urandom >>desk/box/disk.img")
            farm.sign()
            expected = digest_at_desk(farm)
    state = update(host)
    assert state["problems"] == [], state
    killed = [m for m in host.journal("_PID=1") if "code=killed" in m["MESSAGE"]]
    assert len(killed) >= 2, "the kills came too late"
    in_order(host, [f"box-{revision}*"])
    assert digest(host, "box/box/disk.img") == expected


def digest_at_desk(farm: Farm) -> str:
    return farm.desk("sha256sum desk/box/disk.img").split()[0]


def kill_after(host: Host, unit: str, part: float) -> None:
    """Kills all processes of a unit once it runs, after a part of a second."""
    script = (
        f"for i in $(seq 100); do"
        f" systemctl is-active --quiet {unit} || "
        f" [ $(systemctl show -P ActiveState {unit}) = activating ] && break;"
        f" [ $(systemctl show -P ActiveState buildos-updated.service) = inactive ] && exit;"
        f" sleep 0.05; done; sleep {part:.2f}; systemctl kill --signal=KILL {unit} || true"
    )
    host.run(script, deadline=120)


def test_machines_put_there_by_hand_stay(farm: Farm, host: Host) -> None:
    publish(farm, "head -c 1000000 /dev/urandom >desk/box/disk.img")
    publish(farm, "head -c 1000000 /dev/urandom >desk/old/disk.img", "old")
    farm.sign()
    start(farm, host)
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
    head, *machines = draft.split("[[machine]]")
    rollout = machines[-1][machines[-1].index("[rollout]") :]
    machines = [m.split("[rollout]")[0] for m in machines if 'name = "old"' not in m]
    farm.sign(text="[[machine]]".join([head, *machines]) + rollout)
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
    start(farm, host)
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
