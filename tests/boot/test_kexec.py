"""The operating system is replaced by kexec: a good one stays, and with --all, the host returns
from a bad one."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from booted_host import BOOT_SECONDS, Boot, BootedHost
from cpio_archive import DIRECTORY, archive
from simlan.boot_lan import ADDRESS, agent_parameters

TOP = Path(__file__).resolve().parents[2]
SPOOL = "/var/cache/buildos/updated"
STATE = "/run/buildos/os-handover/state"
TRIAL = "/run/buildos/trial/state"
AGENT = "bbot@default"

# natd does not start, whatever it tries.
BREAK_NATD = "rm /root/usr/sbin/buildos-natd"


@dataclass(frozen=True)
class System:
    """A kernel and an initrd."""

    image: Path
    initrd: Path

    @property
    def digests(self) -> tuple[str, str]:
        return _digest(self.image), _digest(self.initrd)

    @property
    def running(self) -> str:
        """The kernel parameter with its digests."""
        return "buildos.running={}:{}".format(*self.digests)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Publisher:
    """Systems made from one, on the web server of a LAN, and a key that signs their channel."""

    def __init__(self, directory: Path, image: Path) -> None:
        self.directory = directory
        self.tree = directory / "published"
        self.tree.mkdir()
        self._home = tempfile.mkdtemp(prefix="gpg", dir="/tmp")
        self._gpg("--passphrase", "", "--quick-generate-key", "op@desk", "ed25519", "sign")
        self.key = self._gpg("--armor", "--export", "op@desk").decode()
        self.good = self._publish(System(image / "buildos-image", image / "buildos-initrd"))

    def close(self) -> None:
        env = {**os.environ, "GNUPGHOME": self._home}
        subprocess.run(["gpgconf", "--kill", "gpg-agent"], env=env, check=False)
        shutil.rmtree(self._home, ignore_errors=True)

    def _gpg(self, *arguments: str, stdin: bytes = b"") -> bytes:
        env = {**os.environ, "GNUPGHOME": self._home}
        command = ["gpg", "--batch", "--quiet", *arguments]
        return subprocess.run(
            command, env=env, input=stdin, check=True, capture_output=True
        ).stdout

    def _publish(self, system: System) -> System:
        for path, digest in zip((system.image, system.initrd), system.digests, strict=True):
            target = self.tree / digest
            if not target.exists():
                shutil.copyfile(path, target)
        return system

    def variant(self, name: str, script: str) -> System:
        """Makes a system that runs a script in the initrd, before its root is PID 1."""
        init = (TOP / "image/initrd/init").read_text()
        head, command, tail = init.rpartition("exec switch_root")
        changed = f"{head}{script}\n{command}{tail}"
        initrd = self.directory / name
        shutil.copyfile(self.good.initrd, initrd)
        with initrd.open("ab") as file:
            file.write(bytes(-initrd.stat().st_size % 4) + archive("init", changed.encode()))
        return self._publish(System(self.good.image, initrd))

    def remove(self, system: System) -> None:
        """Removes what `variant` made."""
        (self.tree / system.digests[1]).unlink()
        system.initrd.unlink()

    def channel(self, system: System, serial: int) -> str:
        """Returns the signed channel that has this system."""
        until = (datetime.now(UTC) + timedelta(days=30)).strftime("%Y-%m-%dT%H:%M:%SZ")
        text = f'format = 1\nname = "stable"\nserial = {serial}\nvalid_until = {until}\n'
        text += f'\n[os]\nversion = "1.{serial}"\n'
        for key, path in (("image", system.image), ("initrd", system.initrd)):
            size = path.stat().st_size
            text += f'{key} = {{ sha256 = "{_digest(path)}", size = {size} }}\n'
        return self._gpg("--clearsign", stdin=text.encode()).decode()


@pytest.fixture
def publisher(image: Path, tmp_path: Path) -> Iterator[Publisher]:
    publisher = Publisher(tmp_path, image)
    yield publisher
    publisher.close()


def start(
    boot: Boot, publisher: Publisher, memory: int = 2048, trusts: bool = True, **options: Any
) -> BootedHost:
    """Boots the good system; waits for the first poll, and gives it the publisher's key."""
    append = f"console=ttyS0 {agent_parameters()} {publisher.good.running}"
    host = boot(
        "e1000@lan",
        append=append,
        published=publisher.tree,
        dhcp_boot=[],
        memory=memory,
        reboots=True,
        **options,
    )
    host.wait_for_poll()
    if trusts:
        trust(host, publisher.key)
    return host


def trust(host: BootedHost, key: str) -> None:
    """Gives a host the key of its farm, which an image of the farm would have. Waits for the clock:
    without it, no channel is accepted."""
    host.wait_for_systemd()
    clock = "timedatectl show -p NTPSynchronized"
    host.guest.wait_for(
        lambda: host.shell.run(clock).output.strip().endswith("yes"),
        "the clock is set",
        BOOT_SECONDS,
    )
    host.shell.output("mkdir -p /etc/buildos/keys")
    host.run(["sh", "-c", 'printf %s "$1" >/etc/buildos/keys/op.asc', "sh", key])


def request(
    host: BootedHost, publisher: Publisher, system: System, serial: int, deadline: int
) -> None:
    """Does the work of buildos-updated: fills the spool, and asks for the system."""
    digests = {*publisher.good.digests, *system.digests}
    running = host.shell.output("cat /proc/cmdline")
    digests.update(running.split("buildos.running=")[1].split()[0].split(":"))
    url = f"http://{ADDRESS.ip}/netboot"
    # The unit makes the spool and the directory of requests.
    host.shell.output("systemctl start buildos-updated", BOOT_SECONDS)
    host.shell.output(f"runuser -u buildos-updated -- mkdir -p {SPOOL}/objects")
    for digest in digests:
        host.shell.output(f"curl --fail --silent -o {SPOOL}/objects/{digest} {url}/{digest}", 300)
    channel = publisher.channel(system, serial)
    host.run(["sh", "-c", f'printf %s "$1" >{SPOOL}/channel', "sh", channel])
    request = {
        "version": f"1.{serial}",
        "serial": serial,
        "method": "kexec",
        "deadline_s": deadline,
        "agents": [AGENT],
        "why_before": 0,
    }
    path = "/run/buildos/updated/os-request"
    write = f'printf %s "$1" >{path}.new && mv {path}.new {path}'
    host.run(["sh", "-c", write, "sh", json.dumps(request)])


def wait_for_load(host: BootedHost, kernel: int) -> None:
    """Waits until the next system is loaded, or its kernel, the `kernel`-th, has started."""

    def handed_over() -> bool:
        if kernels(host) >= kernel:
            return True
        state = host.shell.run(f"cat {STATE}", BOOT_SECONDS).output
        if "refused" in state or "failed" in state:
            pytest.fail(state)
        return "loaded" in state

    host.guest.wait_for(handed_over, "the next system is loaded", BOOT_SECONDS)


def wait_for_boot(host: BootedHost, kernel: int) -> str:
    """Waits for the `kernel`-th start of a kernel; returns its command line."""
    host.guest.wait_for(lambda: kernels(host) >= kernel, "a kernel starts", 2 * BOOT_SECONDS)
    host.shell.reset()
    host.shell.wait(BOOT_SECONDS)
    return host.shell.output("cat /proc/cmdline")


def kernels(host: BootedHost) -> int:
    return host.guest.console().count("] Linux version ")


def trial_of(host: BootedHost) -> dict[str, Any]:
    text = host.shell.run(f"cat {TRIAL}").output
    return json.loads(text) if text.startswith("{") else {}


def wait_for_trial(host: BootedHost, state: str) -> dict[str, Any]:
    def reached() -> dict[str, Any] | None:
        trial = trial_of(host)
        return trial if trial.get("state") == state else None

    return host.guest.wait_for(reached, f"the trial is {state}", BOOT_SECONDS)


@pytest.mark.long
def test_host_returns_from_bad_system(boot_once: Boot, publisher: Publisher) -> None:
    """natd of the new system does not start. The host returns without disk and boot server."""
    host = start(boot_once, publisher)
    bad = publisher.variant("bad", BREAK_NATD)
    # Long enough to read the command line before the host returns.
    request(host, publisher, bad, serial=1, deadline=300)
    wait_for_load(host, 2)
    line = wait_for_boot(host, 2)
    assert bad.running in line
    assert "buildos.trial=1" in line

    line = wait_for_boot(host, 3)
    assert publisher.good.running in line
    assert "buildos.trial" not in line
    assert "buildos.returned=why-10:" in line
    trial = wait_for_trial(host, "returned")
    assert (trial["image"], trial["initrd"]) == bad.digests
    assert "(daemons)" in trial["reason"], trial
    polls = len(host.lan.task_requests())
    host.guest.wait_for(
        lambda: len(host.lan.task_requests()) > polls, "the agent polls again", BOOT_SECONDS
    )


def test_system_with_a_previous_one_is_proven_and_frees_it(
    boot_once: Boot, image: Path, tmp_path: Path
) -> None:
    """QEMU loads what buildos-os-handover would load."""
    contents = {"buildos-image": b"old kernel", "buildos-initrd": b"old initrd"}
    image_digest, initrd_digest = (hashlib.sha256(text).hexdigest() for text in contents.values())
    record = {
        "version": "1.5",
        "image": "0" * 64,
        "initrd": "1" * 64,
        "previous_image": image_digest,
        "previous_initrd": initrd_digest,
        "command_line": "quiet",
        "deadline_s": 3600,
        "agents": [AGENT],
        "why_before": 0,
    }
    contents["record.json"] = json.dumps(record).encode()
    initrd = tmp_path / "initrd"
    shutil.copyfile(image / "buildos-initrd", initrd)
    with initrd.open("ab") as file:
        file.write(bytes(-initrd.stat().st_size % 4))
        file.write(archive("buildos-previous", mode=DIRECTORY))
        for name, content in contents.items():
            file.write(archive(f"buildos-previous/{name}", content))
    host = boot_once("e1000@lan", extra=["-initrd", str(initrd)])
    host.wait_for_poll()
    host.shell.wait(BOOT_SECONDS)
    trial = wait_for_trial(host, "trial")
    assert (trial["version"], trial["image"]) == ("1.5", "0" * 64)
    found = host.shell.output("cd /run/buildos/previous && stat -c '%U %a' . && cat buildos-initrd")
    assert found.splitlines() == ["root 700", "old initrd"]
    trial = wait_for_trial(host, "proven")
    assert (trial["reason"], trial["deadline_usec"]) == ("", 0)
    assert host.shell.output("ls /run/buildos/previous") == ""
