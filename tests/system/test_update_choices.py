"""An operator pins, adds, removes and holds machines by buildosctl and D-Bus."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from conftest import NewHost
from disk import Disk, accept_disks, btrfs
from host import Host
from update_farm import Farm, age, revisions, subvolumes, updated, volume

MACHINES = "/build/machines/default"
UNIT = "buildos-updated.service"
CHOICES = "/var/lib/buildos/updated/choices.json"
BUS = "org.build2.buildos.update1"
MANAGER = [BUS, "/org/build2/buildos/update1", f"{BUS}.Manager"]
FORGETFUL = ", until the next boot: this host has no state volume\n"


def publish(farm: Farm, *names: str) -> None:
    for name in names:
        script = f"head -c 300000 /dev/urandom >desk/{name}/disk.img"
        farm.desk(f"machine {name}\n{script}\npublish {name} >/dev/null")
    farm.sign()


def ctl(host: Host, *arguments: str, user: bool = False) -> subprocess.CompletedProcess[str]:
    unprivileged = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"] if user else []
    return subprocess.run(
        host.command([*unprivileged, "buildosctl", *arguments]),
        capture_output=True,
        text=True,
        timeout=180,
    )


def chosen(host: Host, *arguments: str) -> str:
    done = ctl(host, *arguments)
    assert (done.returncode, done.stderr) == (0, ""), done
    return done.stdout


def refused(host: Host, *arguments: str) -> str:
    done = ctl(host, *arguments)
    assert done.returncode == 1, done
    return done.stderr.removeprefix("buildosctl: ")


def check(host: Host) -> str:
    """Lets a run take place; returns its result."""
    done = ctl(host, "update", "check", "--wait")
    assert done.stderr == "", done
    return done.stdout


def check_later(host: Host) -> str:
    """As `check`, a minute after links were replaced."""
    # The helper tidies up what `age` writes.
    host.wait_for(lambda: updated(host)["phase"] == "idle", "the run has ended")
    age(host)
    return check(host)


def is_inactive(host: Host) -> bool:
    return host.unit(UNIT, "ActiveState")["ActiveState"] == "inactive"


def test_pinned_machine_stays_until_it_is_unpinned(farm: Farm, host: Host) -> None:
    publish(farm, "box", "other")
    farm.start(host, "machines.keep = 0\n")
    assert check(host) == "serial 1: 2 placed\n"
    assert refused(host, "machines", "pin", "bok") == (
        "there is no machine bok on the volume; the nearest name is box\n"
    )
    assert refused(host, "machines", "pin", "box", "7") == (
        "revision 7 of machine box is not on the volume; revision 1 is there\n"
    )
    assert chosen(host, "machines", "pin", "box") == "box stays at its current revision" + FORGETFUL
    publish(farm, "box", "other")
    sent = farm.sent()
    assert check(host) == "serial 2: 1 placed\n"
    assert check_later(host) == "serial 2: everything is there\n"
    assert revisions(host) == ["box-1*", "other-2*"]
    assert farm.sent() - sent < 600_000, "only the other machine was fetched"
    assert "box      2        1        pinned" in chosen(host, "update", "status")
    assert "current, pinned" in chosen(host, "machines", "list")
    assert "= box revision 1: pinned" in chosen(host, "machines", "plan")
    # What the helper of root believes is the same.
    host.systemctl("start", "buildos-machine-place.service")
    assert revisions(host) == ["box-1*", "other-2*"]

    assert chosen(host, "machines", "unpin", "box") == "box follows the channel" + FORGETFUL
    host.wait_for(lambda: "box-2*" in revisions(host), "the new revision is there")
    assert check_later(host) == "serial 2: everything is there\n"
    assert revisions(host) == ["box-2*", "other-2*"]
    assert refused(host, "machines", "unpin", "box") == "machine box is not pinned\n"
    assert host.run(["readlink", f"{MACHINES}/box/box"]) == "box-2\n"


def test_removed_machine_leaves_after_its_last_process(farm: Farm, host: Host) -> None:
    publish(farm, "box", "other", "x-large")
    farm.start(host, 'machines.select = ["*o*"]\n')
    assert check(host) == "serial 1: 2 placed\n"
    hold = f"exec 3<{MACHINES}/box/box/disk.img; exec sleep infinity"
    host.run(["systemd-run", "--unit=holder", "sh", "-c", hold])
    assert chosen(host, "machines", "remove", "box").startswith("box is removed once no process")
    host.wait_for(lambda: not host.succeeds(f"test -L {MACHINES}/box/box"), "the link is gone")
    assert check_later(host) == "serial 1: everything is there\n"
    assert revisions(host) == ["box-1", "other-1*"]
    assert "leaving, removed by an operator" in chosen(host, "update", "status")
    host.systemctl("stop", "holder.service")
    assert check(host) == "serial 1: everything is there\n"
    assert revisions(host) == ["other-1*"]
    assert subvolumes(host) == ["machines/other/other-1"]
    # It does not come back, also with a new revision.
    publish(farm, "box")
    assert check(host) == "serial 2: everything is there\n"
    assert refused(host, "machines", "remove", "box") == "machine box is removed already\n"

    chosen(host, "machines", "add", "box")
    assert refused(host, "machines", "add", "bix") == (
        "there is no machine bix in the channel; the nearest name is box\n"
    )
    # The pattern does not match it.
    chosen(host, "machines", "add", "x-large")
    host.wait_for(
        lambda: revisions(host) == ["box-2*", "other-1*", "x-large-1*"], "both are placed", 120
    )
    assert "current, added" in chosen(host, "machines", "list")
    # The server is not needed to remove one.
    host.wait_for(lambda: updated(host)["phase"] == "idle", "the run has ended")
    farm.signed.rename(farm.signed.with_suffix(".away"))
    chosen(host, "machines", "remove", "x-large")
    link = f"{MACHINES}/x-large/x-large"
    host.wait_for(lambda: not host.succeeds(f"test -L {link}"), "its link is gone")
    host.wait_for(lambda: updated(host)["phase"] == "idle", "the run has ended")
    chosen(host, "machines", "add", "x-large")
    host.wait_for(lambda: host.succeeds(f"test -L {link}"), "its link is there again")


def test_hold_lasts_and_only_admins_choose(farm: Farm, host: Host) -> None:
    publish(farm, "box")
    farm.start(host)
    host.wait_for(lambda: is_inactive(host), "no run takes place")
    # A call starts the daemon, and not a run before the call.
    assert chosen(host, "update", "hold", "release", "week") == "updates are held" + FORGETFUL
    assert refused(host, "update", "check") == (
        "updates are held: release week; end that first, with buildosctl update resume\n"
    )
    assert host.bus_property("update1", "Held") == "release week"
    host.wait_for(lambda: updated(host)["held"] == "release week", "the run has ended")
    for arguments in (["update", "resume"], ["machines", "remove", "box"], ["update", "check"]):
        denied = ctl(host, *arguments, user=True)
        assert denied.returncode == 1
        assert denied.stderr == "buildosctl: only root and members of buildos-admin may do that\n"
    assert "held: release week" in ctl(host, "update", "status", user=True).stdout
    for command in ("status", "why"):
        assert "release week" in host.run(f"buildosctl {command} || true")
    assert "after this boot: this host has no state volume" in ctl(host, "status", user=True).stdout
    group = host.run("getent group buildos-admin | cut -d: -f3").strip()
    user = ["setpriv", "--reuid=65534", "--regid=65534", f"--groups={group}"]
    host.run([*user, "busctl", "call", *MANAGER, "Hold", "s", "maintenance"])

    assert host.bus_property("update1", "Held") == "maintenance"

    # Without calls the daemon ends, also while others read, and a start of the timer keeps the
    # hold. A follower does not start it.
    read = ["busctl", "--auto-start=no", "call", *MANAGER[:2], "org.freedesktop.DBus.Properties"]
    host.wait_for(
        lambda: not host.succeeds([*read, "GetAll", "s", MANAGER[2]]) and is_inactive(host),
        "the daemon has ended without calls",
    )
    assert host.failed_units() == []
    host.run(["buildosctl", "status"], check=False)
    assert not host.succeeds([*read, "GetAll", "s", MANAGER[2]])
    assert is_inactive(host)
    host.systemctl("start", UNIT)
    assert updated(host)["result"] == "updates are held: maintenance"
    assert volume(host)["machines"] == [] and farm.sent() == 0
    host.run([*user, "busctl", "call", *MANAGER, "Hold", "s", ""])
    host.run(["systemctl", "kill", "--signal=KILL", UNIT])
    host.wait_for(lambda: not host.active(UNIT), "the daemon was killed")
    assert host.bus_property("update1", "Held") == "by an operator"
    assert "held: by an operator" in chosen(host, "update", "status")

    assert chosen(host, "update", "resume") == "updates go on" + FORGETFUL
    host.wait_for(lambda: revisions(host) == ["box-1*"], "the machine is placed")
    assert refused(host, "update", "resume") == "updates are not held\n"

    # A lost pin would remove revisions.
    host.write(CHOICES, "{")
    publish(farm, "box")
    assert refused(host, "update", "check").startswith(f"cannot read the choices: {CHOICES}: ")
    host.wait_for(lambda: is_inactive(host), "the daemon has ended")
    host.systemctl("start", UNIT)
    assert updated(host)["problems"][0].endswith("remove the file to forget all choices")
    assert revisions(host) == ["box-1*"]
    host.run(["rm", CHOICES])
    # The bus is not needed for a run.
    host.run(["mv", "/run/dbus/system_bus_socket", "/run/dbus/away"])
    host.run(["systemctl", "start", UNIT])
    host.run(["mv", "/run/dbus/away", "/run/dbus/system_bus_socket"])
    assert updated(host)["result"] == "serial 2: 1 placed"


@pytest.fixture
def disk() -> Iterator[Disk]:
    disk = btrfs()
    yield disk
    for host in disk.hosts:
        host.stop()
    disk.close()


def boot(host: Host) -> None:
    accept_disks(host)
    host.start([])
    host.wait_for_boot()


def plug(host: Host, disk: Disk) -> None:
    disk.plug_into(host)
    host.wait_for(
        lambda: "state    active" in host.run("buildosctl status", check=False),
        "the state volume is active",
    )


def saved(host: Host, part: str) -> Callable[[], bool]:
    return lambda: part in host.run("cat /state/updated/choices.json", check=False)


def test_state_volume_keeps_choices(new_host: NewHost, disk: Disk) -> None:
    first = new_host("first")
    boot(first)
    # Before the volume is there.
    assert chosen(first, "update", "hold", "first") == "updates are held" + FORGETFUL
    plug(first, disk)
    assert chosen(first, "update", "hold", "second") == "updates are held\n"
    first.wait_for(saved(first, '"hold":"second"'), "the hold is on the volume")
    first.stop()

    second = new_host("second")
    boot(second)
    assert "held" not in chosen(second, "update", "status")
    plug(second, disk)
    assert "held: second" in chosen(second, "update", "status")
    second.systemctl("start", UNIT)
    assert updated(second)["result"] == "updates are held: second"
    assert chosen(second, "update", "resume") == "updates go on\n"
    second.wait_for(lambda: not saved(second, "hold")(), "the end of the hold is on the volume")
    second.stop()

    third = new_host("third")
    boot(third)
    plug(third, disk)
    assert "held" not in chosen(third, "update", "status")
