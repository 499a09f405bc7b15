"""An operating system is published at a desk; a host takes it, keeps it, and returns from the next
one, which is bad; only with --all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from booted_host import Boot, BootedHost
from roots import host_debs, host_root
from simlan.boot_lan import ADDRESS, agent_parameters
from test_kexec import (
    BREAK_NATD,
    Publisher,
    System,
    publisher,
    trust,
    wait_for_boot,
    wait_for_trial,
)
from update_farm import PORT, Farm

pytestmark = pytest.mark.long

__all__ = ["publisher"]

_TRIAL_S = 300
"""Time for a boot without KVM, and for the two minutes in which all must be good."""


@pytest.fixture
def host(boot_once: Boot, publisher: Publisher) -> BootedHost:
    """A host that has the source of updates from its boot server, after its first poll."""
    source = (
        f"buildos.updated.update.source=http://{ADDRESS.ip}:{PORT} "
        f"buildos.updated.update.trial_s={_TRIAL_S}"
    )
    host = boot_once(
        "e1000@lan",
        append=f"console=ttyS0 {agent_parameters()} {publisher.good.running} {source}",
        memory=3072,
        reboots=True,
    )
    host.wait_for_poll()
    return host


@pytest.fixture
def farm(host: BootedHost, tmp_path: Path) -> Iterator[Farm]:
    with Farm(host_root(host_debs()), tmp_path / "farm", host.lan) as farm:
        yield farm


def _publish(farm: Farm, system: System, version: str) -> None:
    directory = farm.directory / version
    directory.mkdir()
    sums = []
    pairs = zip((system.image, system.initrd), system.digests, strict=True)
    for name, (path, digest) in zip(("buildos-image", "buildos-initrd"), pairs, strict=True):
        shutil.copyfile(path, directory / name)
        sums.append(f"{digest}  {name}\n")
    (directory / "SHA256SUMS").write_text("".join(sums))
    (directory / "buildos.manifest").write_text(f"buildos {version} amd64 x 1\n")
    farm.desk(f"buildosctl publish os --tree www --name {version} {version}")
    farm.sign()
    shutil.rmtree(directory)


def _os(host: BootedHost) -> dict[str, Any]:
    text = host.shell.run("cat /run/buildos/updated/state.json").output
    found: dict[str, Any] = json.loads(text)["os"] if text.startswith("{") else {}
    return found


def test_host_takes_system_of_channel_and_returns_from_the_next(
    host: BootedHost, farm: Farm, publisher: Publisher
) -> None:
    good = publisher.variant("next", "touch /root/etc/next")
    bad = publisher.variant("bad", BREAK_NATD)
    _publish(farm, publisher.good, "1.0")
    _publish(farm, good, "1.1")
    farm.serve()
    trust(host, farm.key)
    host.shell.output("buildosctl update check", 120)
    line = wait_for_boot(host, 2)
    assert good.running in line
    assert host.shell.run("test -e /etc/next").status == 0
    trial = wait_for_trial(host, "proven")
    assert trial["version"] == "1.1"
    assert host.shell.output("ls /run/buildos/previous") == ""

    _publish(farm, bad, "1.2")
    trust(host, farm.key)
    host.shell.output("buildosctl update check", 120)
    line = wait_for_boot(host, 3)
    assert bad.running in line
    line = wait_for_boot(host, 4)
    assert good.running in line
    assert "buildos.returned=why-10:" in line
    assert host.shell.run("test -e /etc/next").status == 0
    trial = wait_for_trial(host, "returned")
    assert (trial["image"], trial["initrd"]) == bad.digests
    # Never again.
    trust(host, farm.key)
    host.shell.output("buildosctl update check --wait", 300)
    found = _os(host)
    assert found["state"] == "bad", found
    assert "(daemons)" in host.shell.output("buildosctl update history")
