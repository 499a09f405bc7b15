"""buildos-os-handover refuses requests, channels and systems that are not right."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from host import Host
from update_farm import Farm

SPOOL = "/var/cache/buildos/updated"
STATE = "/run/buildos/os-handover/state"
UNIT = "buildos-os-handover.service"

NEW = ("new kernel", "new initrd")
OLD = ("old kernel", "old initrd")

REQUEST: dict[str, Any] = {
    "version": "1.5",
    "serial": 5,
    "method": "kexec",
    "deadline_s": 900,
    "agents": ["bbot@default"],
    "why_before": 0,
}


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def channel(serial: int = 5, system: tuple[str, str] | None = NEW) -> str:
    text = f'format = 1\nname = "stable"\nserial = {serial}\nvalid_until = 2020-01-01T00:00:00Z\n'
    if system:
        text += f'\n[os]\nversion = "1.{serial}"\n'
        for key, content in zip(("image", "initrd"), system, strict=True):
            text += f'{key} = {{ sha256 = "{digest(content)}", size = {len(content)} }}\n'
    return text


def running(system: tuple[str, str] = OLD) -> str:
    image, initrd = map(digest, system)
    return f"buildos.running={image}:{initrd}"


class Handover:
    """A host whose spool the test fills in place of buildos-updated."""

    def __init__(self, farm: Farm, host: Host) -> None:
        self.farm = farm
        self.host = host
        (farm.tree / "channel").mkdir(parents=True)
        farm.lan.serve_dhcp()
        host.file("/etc/buildos/keys/op.asc", farm.key)
        host.command_line(running())
        host.start([farm.lan])
        host.wait_for_boot()
        # On an installed host both have happened at boot.
        host.systemctl("start", "systemd-sysusers.service", "buildos-os-handover.path")
        # The unit makes the spool and the directory of requests.
        host.systemctl("start", "buildos-updated.service")
        host.run(f"runuser -u buildos-updated -- mkdir {SPOOL}/objects")
        host.run("mkdir -p /run/systemd/timesync && touch /run/systemd/timesync/synchronized")
        self.reset()

    def reset(self) -> None:
        """Makes a spool in which all is right, but the kernel cannot run."""
        self.parameters(running())
        self.host.run(f"rm -rf {SPOOL}/objects/* /var/lib/buildos/os-handover/accepted")
        for content in (*NEW, *OLD):
            self.host.write(f"{SPOOL}/objects/{digest(content)}", content)
        self.publish(channel())

    def publish(self, text: str, days: float = 30) -> None:
        line = next(line for line in text.splitlines() if line.startswith("serial = "))
        self.farm.sign(serial=int(line.split()[-1]), text=text, days=days)
        self.host.write(f"{SPOOL}/channel", self.farm.signed.read_text())

    def parameters(self, text: str) -> None:
        # The file is bound over /proc/cmdline of the service.
        self.host.write("/etc/buildos-test/cmdline", f"{text}\n")

    def request(self, content: str | None = None, **changes: Any) -> tuple[str, str]:
        """Requests a handover; returns its state and the reason."""
        path = "/run/buildos/updated/os-request"
        self.host.run(f"rm -f {STATE}")
        text = json.dumps({**REQUEST, **changes}) if content is None else content
        self.host.write(f"{path}.new", text)
        self.host.run(f"mv {path}.new {path}")
        self.host.wait_for(lambda: self.host.succeeds(f"test -e {STATE}"), "the answer")
        self.host.wait_for(lambda: not self.host.active(UNIT), "the end of the helper")
        state = json.loads(self.host.read(STATE))
        return state["state"], state["reason"]


@pytest.fixture
def handover(farm: Farm, host: Host) -> Handover:
    return Handover(farm, host)


def test_wrong_requests_are_refused_with_the_reason(handover: Handover) -> None:
    host = handover.host
    old, new = digest(OLD[1]), digest(NEW[1])

    def remove(content: str) -> None:
        host.run(f"rm {SPOOL}/objects/{digest(content)}")

    def replace(content: str, other: str) -> None:
        host.write(f"{SPOOL}/objects/{digest(content)}", other)

    def link(content: str) -> None:
        path = f"{SPOOL}/objects/{digest(content)}"
        host.run(f"ln -sf /etc/shadow {path}")

    def damage() -> None:
        text = host.read(f"{SPOOL}/channel").replace("1.5", "1.6")
        host.write(f"{SPOOL}/channel", text)

    cases: list[tuple[str, Any, dict[str, Any], str]] = [
        ("no JSON", None, {"content": "kexec"}, "the request is invalid: "),
        ("too long", None, {"content": "x" * 70000}, "larger than 65536 bytes"),
        ("method", None, {"method": "halt"}, "unknown variant `halt`"),
        ("deadline", None, {"deadline_s": 1}, "a trial of 1 s is not between 60 and 86400 s"),
        ("version", None, {"version": "1.6"}, "the channel has version 1.5, and the request 1.6"),
        ("serial", None, {"serial": 6}, "the channel has serial 5, and the request 6"),
        ("unsigned", lambda: host.write(f"{SPOOL}/channel", channel()), {}, "sqv failed"),
        ("damaged", damage, {}, "sqv failed"),
        ("expired", lambda: handover.publish(channel(), days=-1), {}, "it expired at "),
        ("no system", lambda: handover.publish(channel(system=None)), {}, "no operating system"),
        (
            "same system",
            lambda: handover.parameters(running(NEW)),
            {},
            "version 1.5 runs already",
        ),
        (
            "no digests",
            lambda: handover.parameters("quiet"),
            {},
            "the kernel command line does not have buildos.running=",
        ),
        (
            "older than the running one",
            lambda: handover.parameters(f"{running()} buildos.trial=6"),
            {},
            "its serial 5 is lower than 6, which brought the running system",
        ),
        (
            "older than the accepted one",
            lambda: host.run(
                "mkdir -p /var/lib/buildos/os-handover && "
                f"echo 9 {old} >/var/lib/buildos/os-handover/accepted"
            ),
            {},
            "its serial 5 is lower than 9, which this host has accepted",
        ),
        (
            "returned from it",
            lambda: handover.parameters(
                f"{running()} buildos.returned=why-15:{digest(NEW[0])}:{digest(NEW[1])}"
            ),
            {},
            "version 1.5 did not prove itself on this host (why-15)",
        ),
        (
            "long command line",
            lambda: handover.parameters(f"{running()} x={'y' * 2000}"),
            {},
            "the kernel command line would have ",
        ),
        ("no new initrd", lambda: remove(NEW[1]), {}, "the initrd of the new system is not in the"),
        ("no way back", lambda: remove(OLD[1]), {}, "the initrd of the running system is not in"),
        (
            "altered initrd",
            lambda: replace(NEW[1], NEW[1].upper()),
            {},
            f"initrd of the new system has the digest {digest(NEW[1].upper())} instead of {new}",
        ),
        ("cut initrd", lambda: replace(NEW[1], "new"), {}, "has 3 bytes instead of 10"),
        (
            "altered way back",
            lambda: replace(OLD[1], "another"),
            {},
            f"has the digest {digest('another')} instead of {old}",
        ),
        ("link", lambda: link(NEW[0]), {}, "cannot read the kernel of the new system"),
    ]
    for name, prepare, changes, reason in cases:
        handover.reset()
        if prepare:
            prepare()
        state, text = handover.request(**changes)
        assert state == "refused", (name, text)
        assert reason in text, (name, text)
        # Nothing was accepted, and the objects stay for the next attempt.
        assert name == "older than the accepted one" or not host.succeeds(
            "test -e /var/lib/buildos/os-handover/accepted"
        ), name
        assert host.succeeds(f"test -e {SPOOL}/objects/{digest(OLD[0])}"), name
    messages = [entry["MESSAGE"] for entry in host.journal(f"_SYSTEMD_UNIT={UNIT}")]
    assert any("the operating system is not replaced" in message for message in messages)


def test_what_is_no_kernel_fails_in_the_kernel(handover: Handover) -> None:
    state, reason = handover.request()
    assert state == "failed", reason
    # From the kernel, as the sandbox would forbid the call with EPERM. Kernels of some test machines
    # have no kexec.
    has_kexec = Path("/sys/kernel/kexec_loaded").exists()
    error = "Exec format error" if has_kexec else "Function not implemented"
    assert reason.startswith(f"the kernel does not load version 1.5: {error}"), reason
    assert not handover.host.succeeds("grep 1 /sys/kernel/kexec_loaded")
