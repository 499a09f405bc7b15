"""Power cuts and kills while volumes are written: nothing that was acknowledged is lost, and no file
is unreadable.

The long parts have 1,000 cuts or kills each; kills of the other writers are in
`test_machine_operations.py`:

    sudo tests/lane tests/system --all -m long -k power_cut
    sudo tests/lane tests/system --all -m long -k kills_of
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from buildroot import Root
from disk import Disk, accept_disks
from host import Host
from power_cut import Cuts, Shelf
from simlan.lan import Lan
from simlan.process import run
from update_farm import Farm, acknowledged, age, update

SEED = int(os.environ.get("BUILDOS_SEED", "1"))
QUICK = 15
LONG = pytest.param(1000, marks=pytest.mark.long)

_KEEP = "buildos-state.service"
_SAVE_SECONDS = 0.5
"""Longer than the delay before a state is saved, and saving it."""
_MAKE = """
machine box
[ -e desk/box/disk ] || head -c 1500000 /dev/urandom >desk/box/disk
head -c {change} /dev/urandom | dd of=desk/box/disk bs=4k seek={seek} conv=notrunc 2>/dev/null
(cd desk/box; rm -f sums; sha256sum * >../sums; mv ../sums .)
publish box >/dev/null
"""


@pytest.fixture
def shelf() -> Iterator[Shelf]:
    with Shelf() as shelf:
        yield shelf


# The state volume

_AGENTD = "agentd/state.json"


def _memory(number: int) -> str:
    """Returns a state of agentd: some kilobytes that all have one number."""
    return json.dumps({"numbers": [number] * 400})


def _number(text: str) -> int:
    """Returns the number of a state; all parts of it have to agree."""
    numbers = json.loads(text)["numbers"]
    assert len(numbers) == 400 and len(set(numbers)) == 1, numbers
    return int(numbers[0])


def _check_state(volume: Path, known: int) -> None:
    found = _number((volume / _AGENTD).read_text())
    assert found >= known, f"state {found} after {known} was acknowledged"
    assert (volume / "random-seed").stat().st_size == 512
    with suppress(FileNotFoundError):
        assert json.loads((volume / "netd/state.json").read_text())
    for private in (volume / "ssh").glob("*_key"):
        assert private.read_text().endswith("-----END OPENSSH PRIVATE KEY-----\n")


class _States:
    """A host that saves numbered states of agentd on a state volume."""

    def __init__(self, host: Host, disk: Disk):
        """Boots the host, and waits until the first state is saved."""
        self.host = host
        self.number = 0
        accept_disks(host)
        host.file(
            f"/etc/systemd/system/{_KEEP}.d/kills.conf",
            "[Unit]\nStartLimitIntervalSec=0\n[Service]\nRestartSec=0\nRestartSteps=0\n",
        )
        host.start([])
        host.wait_for_boot()
        host.systemctl("stop", "buildos-agentd.service")
        inside = Path(f"/proc/{host.pid}/root")
        self.volume = inside / "state"
        self._source = inside / "run/buildos" / _AGENTD
        self.write()
        disk.plug_into(host)
        host.wait_for(
            lambda: (self.volume / _AGENTD).exists() and self.saved() == 1,
            "the first state is saved",
        )

    def write(self) -> None:
        self.number += 1
        beside = self._source.with_name("beside")
        beside.write_text(_memory(self.number))
        beside.rename(self._source)

    def saved(self) -> int:
        return _number((self.volume / _AGENTD).read_text())

    def wait_until_saved(self) -> None:
        self.host.wait_for(lambda: self.saved() >= self.number, "the state is saved")

    def kill(self, seconds: float = 0) -> str:
        """Kills buildos-state after a part of a second, and waits until it runs again; returns the
        id of the killed process."""
        script = 'systemctl show -P MainPID "$1"; sleep "$2"; systemctl kill --signal=KILL "$1"'
        pid = self.host.run(["sh", "-ec", script, "kill", _KEEP, f"{seconds:.3f}"]).strip()
        self.host.wait_for(
            lambda: self.host.active(_KEEP)
            and self.host.unit(_KEEP, "MainPID")["MainPID"] not in ("0", pid),
            "buildos-state runs again",
        )
        return pid


@pytest.mark.parametrize("cuts", [QUICK, LONG])
@pytest.mark.parametrize("kind", ["btrfs", "ext4"])
def test_power_cut_loses_nothing_of_the_state_volume(
    host: Host, shelf: Shelf, figure: Callable[[str], None], kind: str, cuts: int
) -> None:
    make = {
        "btrfs": ["mkfs.btrfs", "--quiet", "--label", "buildos.state"],
        "ext4": ["mkfs.ext4", "-q", "-F", "-L", "buildos.state"],
    }
    dice = random.Random(SEED)
    with Disk(make[kind], directory=str(shelf.path)) as disk:
        states = _States(host, disk)
        acknowledged = 0
        cutting = Cuts(shelf, disk.image, lambda: acknowledged, SEED)
        kills = since_kill = 0
        while len(cutting.made) < cuts and cutting.alive:
            states.write()
            since_kill += 1
            if dice.random() < 0.2:
                kills += 1
                since_kill = 0
                states.kill()
            states.wait_until_saved()
            if since_kill > 1:
                # One process has saved both, one after the other.
                acknowledged = states.number - 1
        made = cutting.end()
        host.stop()
        disk.detach()
        for copy, known in made:
            with shelf.mounted(copy) as volume:
                _check_state(volume, known)
    figure(f"{len(made)} power cuts and {kills} kills, {kind}: {states.number} states, none lost")


@pytest.mark.parametrize("kills", [QUICK, LONG])
def test_kills_of_buildos_state_lose_nothing(
    host: Host, figure: Callable[[str], None], kills: int
) -> None:
    dice = random.Random(SEED)
    with Disk(["mkfs.btrfs", "--quiet", "--label", "buildos.state"]) as disk:
        states = _States(host, disk)
        killed: set[str] = set()
        known = 1
        while len(killed) < kills:
            states.write()
            killed.add(states.kill(dice.random() * _SAVE_SECONDS))
            # What was visible once is never replaced by something older.
            assert states.saved() >= known
            known = states.saved()
            _check_state(states.volume, known)
            if dice.random() < 0.5:
                states.wait_until_saved()
                known = states.number
        states.wait_until_saved()
        left = [path for path in states.volume.rglob("*.new")]
        assert left == [], left
        host.stop()
    figure(f"{len(killed)} kills of buildos-state: {states.number} states, none lost")


# The machine volume


def _check_machines(volume: Path, known: tuple[int, int]) -> None:
    serial, revision = known
    if serial:
        assert int((volume / "records/accepted").read_text().split()[0]) >= serial
    top = volume / "machines/box"
    placed = [path for path in top.glob("box-*")]
    assert max((int(path.name.split("-")[1]) for path in placed), default=0) >= revision
    for path in placed:
        for line in (path / "sums").read_text().splitlines():
            digest, name = line.split()
            with (path / name).open("rb") as file:
                assert hashlib.file_digest(file, "sha256").hexdigest() == digest, path
        # Without a record, it would stay as a machine that was put there by hand.
        record = volume / "records/machines/box" / path.name.split("-")[1]
        assert json.loads(record.read_text())["path"] == f"box/{path.name}"
        flags = run(["btrfs", "property", "get", "-t", "subvol", str(path), "ro"])
        assert flags == "ro=true\n", path
    link = top / "box"
    assert not link.is_symlink() or link.is_dir(), f"the link names {os.readlink(link)}"


@pytest.mark.parametrize("cuts", [QUICK, LONG])
def test_power_cut_leaves_whole_machines(
    root: Root,
    tmp_path: Path,
    lan: Lan,
    host: Host,
    shelf: Shelf,
    figure: Callable[[str], None],
    cuts: int,
) -> None:
    dice = random.Random(SEED)
    with Farm(root, tmp_path / "farm", lan) as farm:

        def publish() -> None:
            script = _MAKE.format(change=dice.randrange(1, 90_000), seek=dice.randrange(300))
            farm.desk(script)
            farm.sign()

        publish()
        lan.serve_dhcp()
        farm.prepare(host, farm.serve(), "machines.keep = 0\n")
        host.start([lan])
        host.wait_for(lambda: host.addresses("br0"), "br0 has an address")
        farm.attach(host, farm.disk(directory=shelf.path))
        assert update(host)["problems"] == []
        (disk,) = shelf.path.glob("*.disk")
        cutting = Cuts(shelf, disk, lambda: acknowledged(host), SEED)
        while len(cutting.made) < cuts and cutting.alive:
            publish()
            age(host)
            assert update(host)["problems"] == []
        made = cutting.end()
        host.stop()
        farm.detach()
        for copy, known in made:
            with shelf.mounted(copy) as volume:
                _check_machines(volume, known)
        figure(f"{len(made)} power cuts while machines were placed: {farm.serial} revisions")
