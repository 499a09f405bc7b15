"""Random operations on the machines of a volume, with kills and broken transfers, while tasks use
them.

`BUILDOS_SEED` selects the operations. The long parts have 500 operations, and 1,000 kills of each
program that writes; those of buildos-state are in `test_power_cuts.py`:

    sudo tests/lane tests/system --all -m long -k operations
    sudo tests/lane tests/system --all -m long -k kills_of
"""

from __future__ import annotations

import json
import os
import random
import re
import subprocess
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from buildroot import TOP
from host import Host
from simlan.process import start
from update_farm import Farm, acknowledged, age, revisions, subvolumes, update, volume, without

SEED = int(os.environ.get("BUILDOS_SEED", "1"))
MACHINES = "/build/machines/default"
NAMES = ["box", "a", "b", "c"]
"""The machines; `box` is never removed."""

TASKS = 2

_LONGEST_RUN = 3.0
"""Most seconds until a kill."""
_CHOICE_SECONDS = 0.1
_CHOICES = "/var/lib/buildos/updated/choices.json"

_UPDATED, _PLACE = "buildos-updated.service", "buildos-machine-place.service"

_MAKE = """
machine {name}
for file in one two three; do
    [ -e desk/{name}/$file ] || head -c {size} /dev/urandom >desk/{name}/$file
done
head -c {change} /dev/urandom | dd of=desk/{name}/{file} bs=4k seek={seek} conv=notrunc 2>/dev/null
(cd desk/{name}; rm -f sums; sha256sum * >../sums; mv ../sums .)
publish {name} >/dev/null
"""

# Kills all processes of the unit $1 a part of a second after it has begun.
_KILL = """
state() { systemctl show -P ActiveState "$1"; }
systemctl start --no-block buildos-updated.service
for i in $(seq 200); do
    case $(state "$1") in active | activating) break ;; esac
    [ $i -lt 5 ] || [ "$(state buildos-updated.service)" != inactive ] || exit 0
    sleep 0.02
done
sleep "$2"
systemctl kill --signal="$3" "$1" 2>/dev/null || true
"""

# Holds updates with the reason $1, and kills the daemon once it has answered (yes) or $3 seconds
# after the call (no). Prints how it ended.
_KILL_CHOICE = """
if [ $2 = yes ]; then
    buildosctl update hold "$1" >/dev/null
else
    buildosctl update hold "$1" >/dev/null 2>&1 &
    sleep $3
fi
systemctl kill --signal=KILL buildos-updated.service 2>/dev/null || true
# The bus lets it wait for a daemon that was killed at its start.
[ $2 = yes ] || kill $! 2>/dev/null || true
while
    systemctl show --property=ActiveState,InvocationID,Result buildos-updated.service >/tmp/ended
    grep -qE '^ActiveState=(activ|deactiv)' /tmp/ended
do
    sleep 0.02
done
. /tmp/ended
echo $InvocationID $Result
"""

# Starts the unit $1 and kills it, once for each pair of a part of a second and the processes that are
# killed, until a run ends by itself. Prints how each run ended, and its microseconds.
_KILLS = """
unit=$1
properties=ActiveState,InvocationID,Result
properties=$properties,ExecMainStartTimestampMonotonic,ExecMainExitTimestampMonotonic
shift
while [ $# -gt 0 ]; do
    systemctl start --no-block $unit
    sleep $1
    systemctl kill --signal=KILL --kill-whom=$2 $unit 2>/dev/null || true
    while
        systemctl show --property=$properties $unit >/tmp/ended
        grep -qE '^ActiveState=(activ|deactiv)' /tmp/ended
    do
        sleep 0.02
    done
    . /tmp/ended
    echo $InvocationID $Result $((ExecMainExitTimestampMonotonic - ExecMainStartTimestampMonotonic))
    [ $Result != success ] || exit 0
    shift 2
done
"""

_ORPHANS = f"""
top=/run/buildos/machine-volumes/default
ls -A $top/staging $top/spool/parts
find $top/records $top/spool /run/buildos /var/lib/buildos -xdev -name '*.new'
find /tmp /var/tmp -mindepth 1 -name '.tmp*'
find $top/records/machines {MACHINES} -mindepth 1 -maxdepth 1 -type d -empty
ps -A -o comm= | grep -xE 'btrfs|zstd|curl|sqv' || true
"""


@dataclass
class Site:
    """A desk with its machines, and a host that follows it."""

    farm: Farm
    host: Host
    dice: random.Random
    wanted: dict[str, int] = field(default_factory=dict)
    """Revisions of the channel."""
    removed: set[str] = field(default_factory=set)
    keep: int = 0
    done: Counter[str] = field(default_factory=Counter)
    run_seconds: float = 0.3
    """What a run takes that is not killed; it depends on the load."""

    def begin(self, toml: str) -> None:
        """Publishes two machines, and lets a host with an empty volume place them."""
        for name in NAMES[:2]:
            self.upgrade(name)
        # Each kill is counted: systemd starts nothing again in between.
        drop_in = f"/etc/systemd/system/{_UPDATED}.d/10-kills.conf"
        self.host.file(drop_in, "[Service]\nRestart=no\n")
        self.farm.start(self.host, toml)
        self.check()

    # Operations

    def upgrade(self, name: str = "") -> None:
        """Publishes a change of a machine, or a new machine."""
        name = name or self.dice.choice([*self.wanted])
        sizes = {"size": 200_000 + self.dice.randrange(600_000), "seek": self.dice.randrange(40)}
        file = self.dice.choice(["one", "two", "three"])
        change = self.dice.randrange(1, 100_000)
        self.farm.desk(_MAKE.format(name=name, file=file, change=change, **sizes))
        self.wanted[name] = self._published(name)
        self.removed.discard(name)
        self.sign()

    def _published(self, name: str) -> int:
        """Returns the number of the last revision of a machine."""
        records = (self.farm.tree / "desk/machines" / name).iterdir()
        return max(int(record.name) for record in records if record.name.isdigit())

    def add(self) -> None:
        missing = [name for name in NAMES if name not in self.wanted]
        if missing and missing[0] in self.removed and self.dice.random() < 0.5:
            # The same revision comes back.
            self.removed.discard(missing[0])
            self.wanted[missing[0]] = self._published(missing[0])
            self.sign()
        else:
            self.upgrade(missing[0] if missing else "")

    def remove(self) -> None:
        names = [name for name in self.wanted if name != "box"]
        if names:
            name = self.dice.choice(names)
            del self.wanted[name]
            self.removed.add(name)
            self.sign()

    def sign(self) -> None:
        draft = (self.farm.tree / "desk/stable.toml").read_text()
        self.farm.sign(text=without(draft, self.removed))

    def cut(self) -> None:
        """Breaks off the transfers of a run at a random byte."""
        self.upgrade()
        flag = self.farm.tree / "desk/truncate"
        flag.write_text(str(self.dice.random()))
        update(self.host)
        flag.unlink()

    def kill_helper(self) -> None:
        self._kill(_PLACE)

    def kill_daemon(self) -> None:
        self._kill(_UPDATED)

    def _kill(self, unit: str) -> None:
        self.upgrade()
        self._signal(unit, 0.6, "KILL")

    def _signal(self, unit: str, most: float, signal: str) -> None:
        seconds = f"{self.dice.random() * most:.3f}"
        self.host.run(["sh", "-ec", _KILL, "kill", unit, seconds, signal], deadline=180)
        self.wait_until_idle()

    def reload(self) -> None:
        """Changes the configuration while the daemon runs."""
        self.keep = 1 - self.keep
        path = "/etc/buildos/updated.conf.d/50-keep.toml"
        self.host.write(path, f"machines.keep = {self.keep}\n")
        self._signal(_UPDATED, 0.3, "HUP")

    def run(self) -> None:
        """Nothing is new."""

    def kill_often(self, unit: str, times: int) -> set[str]:
        """Kills a unit some times in a row, while it handles a new revision; returns the killed
        invocations."""
        self.dice.choice([self.upgrade, self.upgrade, self.add, self.remove])()
        age(self.host)
        if unit == _PLACE:
            # Each later start of the helper continues with the pieces that are there.
            self.host.systemctl("start", "--no-block", _UPDATED)
        arguments: list[str] = []
        for _ in range(times):
            # The processes of a control group do not die at one moment.
            whom = self.dice.choice(["all", "main"])
            arguments += [f"{self.dice.random() * self.run_seconds:.3f}", whom]
        ended = self.host.run(["sh", "-ec", _KILLS, "kills", unit, *arguments], deadline=300)
        self.wait_until_idle()
        killed = set()
        # Later kills, until a run ends by itself.
        self.run_seconds = min(1.5 * self.run_seconds, _LONGEST_RUN)
        for invocation, result, microseconds in (line.split() for line in ended.splitlines()):
            if result == "signal":
                killed.add(invocation)
            else:
                self.run_seconds = min(int(microseconds) / 1e6, _LONGEST_RUN)
        return killed

    def kill_after_choice(self, number: int) -> set[str]:
        """Kills the daemon right after it has answered a choice, and during the next one."""
        killed = set()
        for reason in (f"first {number}", f"second {number}"):
            answered = reason.startswith("first")
            seconds = 0.0 if answered else self.dice.random() * _CHOICE_SECONDS
            arguments = [reason, "yes" if answered else "no", f"{seconds:.3f}"]
            ended = self.host.run(["sh", "-ec", _KILL_CHOICE, "choice", *arguments], deadline=120)
            invocation, result = ended.split()
            if result == "signal":
                killed.add(invocation)
            hold = json.loads(self.host.read(_CHOICES))["hold"]
            assert hold == reason or (not answered and hold == f"first {number}"), hold
        # If the daemon was killed before it had its name, the bus waits for the name.
        self.host.systemctl("start", _UPDATED)
        self.host.run(["buildosctl", "update", "resume"])
        self.wait_until_idle()
        return killed

    # Checks

    def wait_until_idle(self) -> None:
        def idle() -> bool:
            states = [self.host.unit(unit, "ActiveState")["ActiveState"] for unit in UNITS]
            return all(state in ("inactive", "failed") for state in states)

        self.host.wait_for(idle, "both programs have ended", 180)

    def check(self) -> None:
        """Lets the host follow the channel; nothing is left over, and nothing is missing."""
        age(self.host)
        state = update(self.host)
        assert state["problems"] == [], state
        assert json.loads(self.host.read("/run/buildos/machine-place/state.json"))["problems"] == []
        current = [name for name in revisions(self.host) if name.endswith("*")]
        assert current == sorted(f"{name}-{number}*" for name, number in self.wanted.items())
        machines = volume(self.host)["machines"]
        assert subvolumes(self.host) == sorted(f"machines/{m['path']}" for m in machines)
        orphans = [line for line in self.host.run(_ORPHANS).split("\n") if line[-1:] not in ":"]
        assert orphans == [], orphans
        # Pieces of the channel stay for other hosts.
        spool = "/run/buildos/machine-volumes/default/spool/objects"
        kept = set(self.host.run(["ls", "-A", spool]).split())
        assert kept <= self.objects(), kept - self.objects()

    def objects(self) -> set[str]:
        """Returns the objects of the channel: lists of pieces, and pieces."""
        lists = set(re.findall(r'pieces = "([0-9a-f]{64})"', self.farm.signed.read_text()))
        texts = [(self.farm.tree / "objects" / name).read_text() for name in lists]
        return lists | {piece for text in texts for piece in text.split()}

    def mounts(self) -> str:
        return self.host.run("findmnt --noheadings --raw --output TARGET --types btrfs")


UNITS = (_UPDATED, _PLACE)
WEIGHTS: dict[Callable[[Site], None], int] = {
    Site.upgrade: 24,
    Site.add: 14,
    Site.remove: 10,
    Site.cut: 12,
    Site.kill_helper: 14,
    Site.kill_daemon: 10,
    Site.reload: 8,
    Site.run: 8,
}


class Tasks:
    """Stand-ins of agents' tasks in the PID namespace of a host."""

    def __init__(self, host: Host, dice: random.Random):
        pid = host.pid
        directory = f"/proc/{pid}/root{MACHINES}"
        program = str(TOP / "tests/lib/machine_task.py")
        self.processes = [
            start(
                ["nsenter", f"--target={pid}", "--pid", "--", "/usr/bin/python3", program, directory,
                 str(dice.randrange(1 << 30)), *NAMES],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            )
            for _ in range(TASKS)
        ]  # fmt: skip

    def end(self) -> tuple[Counter[str], list[str]]:
        """Ends the tasks; returns what they counted, and the faults that they saw."""
        seen: Counter[str] = Counter()
        faults: list[str] = []
        for process in self.processes:
            output, _ = process.communicate(timeout=60)
            found: dict[str, Any] = json.loads(output)
            seen.update(found["seen"])
            faults += found["faults"]
        return seen, faults


@pytest.mark.parametrize("operations", [15, pytest.param(500, marks=pytest.mark.long)])
def test_tasks_see_whole_machines_during_random_operations(
    farm: Farm, host: Host, figure: Callable[[str], None], operations: int
) -> None:
    dice = random.Random(SEED)
    site = Site(farm, host, dice)
    site.begin("machines.keep = 0\n")
    mounts = site.mounts()
    tasks = Tasks(host, dice)
    for number in range(operations):
        (operation,) = dice.choices([*WEIGHTS], [*WEIGHTS.values()])
        site.done[operation.__name__] += 1
        try:
            operation(site)
            # Also the next operation can meet what a kill left.
            if not operation.__name__.startswith("kill") or dice.random() < 0.5:
                site.check()
        except Exception as error:
            error.add_note(f"operation {number}: {operation.__name__}, BUILDOS_SEED={SEED}")
            raise
    seen, faults = tasks.end()
    assert faults == []
    assert seen["box absent"] == 0
    assert seen["tasks"] > operations / 4, seen
    # The last link can have been replaced in the last run.
    site.check()
    site.check()
    machines = volume(host)["machines"]
    assert len(machines) <= len(site.wanted) * (1 + site.keep), machines
    assert site.mounts() == mounts
    killed = [m for m in host.journal("_PID=1") if "code=killed" in m["MESSAGE"]]
    assert len(killed) >= (site.done["kill_helper"] + site.done["kill_daemon"]) // 4
    figure(
        f"{operations} operations on machines, {len(killed)} kills:"
        f" {seen['tasks']} tasks read {seen['reads']} times: {len(faults)} faults"
    )


@pytest.mark.parametrize("kills", [8, pytest.param(1000, marks=pytest.mark.long)])
@pytest.mark.parametrize("unit", UNITS)
def test_kills_of_programs_leave_whole_machines(
    farm: Farm, host: Host, figure: Callable[[str], None], unit: str, kills: int
) -> None:
    dice = random.Random(SEED)
    site = Site(farm, host, dice)
    site.begin("machines.keep = 0\n")
    tasks = Tasks(host, dice)
    killed: set[str] = set()
    rounds = 0
    while len(killed) < kills:
        rounds += 1
        before = acknowledged(host)[0]
        try:
            killed |= site.kill_often(unit, 8)
            if unit == _UPDATED:
                killed |= site.kill_after_choice(rounds)
            record = host.read("/run/buildos/machine-volumes/default/records/accepted")
            assert int(record.split()[0]) >= before
            site.check()
        except Exception as error:
            error.add_note(f"round {rounds} after {len(killed)} kills, BUILDOS_SEED={SEED}")
            raise
    seen, faults = tasks.end()
    assert faults == []
    assert seen["box absent"] == 0
    figure(
        f"{len(killed)} kills of {unit.removesuffix('.service')} in {rounds} rounds:"
        f" {seen['tasks']} tasks read {seen['reads']} times, {len(faults)} faults"
    )
