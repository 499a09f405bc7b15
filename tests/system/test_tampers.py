"""A host refuses an altered channel, object or boot file, and says which and what to do.

Altered pieces of machines are in test_machine_volumes, altered spools in test_os_handover.
"""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import netboot
from agents import state
from buildroot import TOP
from host import Host
from test_drain import AGENT
from test_os_update import SPOOL, Builds, builds, next_run, recorded, start
from update_farm import Farm, revisions, update

__all__ = ["builds"]

CONFIG = "/etc/buildos/updated.conf.d/60-test.toml"

COPY_CHANNEL = "copy the channel to the server again, or the key of its signer to /etc/buildos/keys"
COPY_FILE = "copy the file to the server again"
CORRECT = "promote a corrected draft"


class Server:
    """A tree whose files a test alters. Serial 2 brings a machine and an operating system."""

    def __init__(self, farm: Farm, host: Host, new: str, running: str):
        self.farm = farm
        self.host = host
        self.draft = (farm.tree / "desk/stable.toml").read_text()
        self.image, self.initrd = (farm.tree / "objects" / digest for digest in new.split(":"))
        self.running = farm.tree / "objects" / running.split(":")[0]
        self.good = {path: path.read_bytes() for path in [self.image, self.initrd, self.running]}
        self.farm.sign(serial=2)
        self.signed = self.farm.signed.read_bytes()
        self.serial = 2

    def restore(self) -> None:
        for path, content in self.good.items():
            path.write_bytes(content)
        self.farm.signed.write_bytes(self.signed)
        self.host.write(CONFIG, "")

    def write(self, content: bytes) -> None:
        self.farm.signed.write_bytes(content)

    def sign(self, old: str = "", new: str = "", *, key: str = "op@desk", gpg: tuple[str, ...] = ()) -> None:
        """Signs the draft, with `new` in place of `old`."""
        assert old in self.draft
        text = self.draft.replace(old, new, 1) if old else self.draft + new
        self.farm.sign(serial=self.serial, text=text, key=key, gpg=gpg)


class Tamper(NamedTuple):
    name: str
    alter: Callable[[Server], object]
    what: str
    remedy: str


def _two_signatures(server: Server) -> None:
    server.host.write(CONFIG, "update.signatures = 2\n")


def _size(server: Server, change: int) -> None:
    size = len(server.good[server.image])
    server.sign(f"size = {size}", f"size = {size + change}")


CHANNELS = [
    Tamper("truncated", lambda s: s.write(s.signed[:-150]), "signature is not valid", COPY_CHANNEL),
    Tamper("empty", lambda s: s.write(b""), "signature is not valid", COPY_CHANNEL),
    Tamper(
        "too long", lambda s: s.write(s.signed * 3000), "Maximum file size exceeded", COPY_FILE
    ),
    Tamper("missing", lambda s: s.farm.signed.unlink(), "error: 404", COPY_FILE),
    Tamper("unsigned", lambda s: s.write(s.draft.encode()), "signature is not valid", COPY_CHANNEL),
    Tamper(
        "altered after signing",
        lambda s: s.write(s.signed.replace(b"percent = 100", b"percent = 099")),
        "signature is not valid",
        COPY_CHANNEL,
    ),
    Tamper(
        "text of one file with the signature of another",
        lambda s: s.write(_spliced(s)),
        "signature is not valid",
        COPY_CHANNEL,
    ),
    Tamper(
        "signed by an unknown key",
        lambda s: s.sign(key="stranger@desk"),
        "signature is not valid",
        COPY_CHANNEL,
    ),
    Tamper(
        "signed in the future",
        lambda s: s.sign(gpg=("--faked-system-time", _in_a_month())),
        "signature is not valid",
        COPY_CHANNEL,
    ),
    Tamper("one signature of two", _two_signatures, "signature is not valid", COPY_CHANNEL),
    Tamper(
        "an older one",
        lambda s: s.farm.sign(serial=1),
        "its serial 1 is lower than 2",
        "copy the newest channel to the server",
    ),
    Tamper(
        "a different one with the same serial",
        lambda s: s.sign("percent = 100", "percent = 50"),
        "a different file with the same serial 2",
        "promote the draft again",
    ),
    Tamper(
        "expired", lambda s: s.farm.sign(serial=3, days=-1), "it expired at ", "promote it again"
    ),
    Tamper(
        "valid for years",
        lambda s: s.farm.sign(serial=3, days=500),
        "more than 400 days away",
        "promote it for fewer days",
    ),
    Tamper(
        "of another channel",
        lambda s: s.sign('name = "stable"', 'name = "canary"'),
        "it is the file of channel canary, not of stable",
        "copy the right file to the server",
    ),
    Tamper(
        "a section twice", lambda s: s.sign(new='\n[os]\nversion = "9"\n'), "duplicate key", CORRECT
    ),
    Tamper(
        "a machine twice",
        lambda s: s.sign(new=_machine(s.draft)),
        "the name box is used twice",
        CORRECT,
    ),
    Tamper("a newer format", lambda s: s.sign("format = 1", "format = 2"), "a newer format", CORRECT),
    Tamper(
        "a path in place of a digest",
        lambda s: s.sign(f'sha256 = "{s.image.name}"', 'sha256 = "../channel/stable"'),
        "os.image.sha256",
        CORRECT,
    ),
]

OBJECTS = [
    Tamper(
        "a kernel with one different byte",
        lambda s: s.image.write_bytes(s.good[s.image][:-1] + b"x"),
        "the content has a different digest",
        COPY_FILE,
    ),
    Tamper(
        "a truncated initrd",
        lambda s: s.initrd.write_bytes(s.good[s.initrd][:1000]),
        "1000 bytes instead of 300000",
        COPY_FILE,
    ),
    Tamper(
        "an initrd with more",
        lambda s: s.initrd.write_bytes(s.good[s.initrd] + b"x"),
        "Maximum file size exceeded",
        COPY_FILE,
    ),
    Tamper(
        "the kernel of before",
        lambda s: s.image.write_bytes(s.good[s.running]),
        "the content has a different digest",
        COPY_FILE,
    ),
    Tamper("no kernel", lambda s: s.image.unlink(), "error: 404", COPY_FILE),
    Tamper("a larger size in the channel", lambda s: _size(s, 1), "300000 bytes instead of", COPY_FILE),
    Tamper(
        "a smaller size in the channel", lambda s: _size(s, -1), "Maximum file size", COPY_FILE
    ),
    Tamper(
        "an altered kernel to come back to",
        lambda s: s.running.write_bytes(s.good[s.running][::-1]),
        "the pair that runs is not at hand",
        COPY_FILE,
    ),
]


def _in_a_month() -> str:
    return (datetime.now(UTC) + timedelta(days=30)).strftime("%Y%m%dT%H%M%S!")


def _spliced(server: Server) -> bytes:
    text, mark, _ = server.signed.partition(b"-----BEGIN PGP SIGNATURE-----")
    server.farm.sign(serial=9)
    return text + mark + server.farm.signed.read_bytes().partition(mark)[2]


def _machine(draft: str) -> str:
    machine = draft[draft.index("[[machine]]") :].partition("[rollout]")[0]
    return f"\n{machine}"


def test_altered_channels_and_objects_are_refused(
    farm: Farm, builds: Builds, host: Host
) -> None:
    farm.add_key("stranger@desk")
    running = builds.publish("1")
    # Its mounts are of the host, so it has no file over its /proc/cmdline.
    host.file(
        "/etc/systemd/system/buildos-machine-volumes.service.d/test-cmdline.conf",
        "[Service]\nBindReadOnlyPaths=\n",
    )
    start(farm, host, running)
    farm.attach(host, farm.disk())
    assert update(host)["result"] == "serial 1: everything is there"
    farm.desk("machine box\nhead -c 1000000 /dev/urandom >desk/box/disk.img\npublish box >/dev/null")
    server = Server(farm, host, builds.publish("2"), running)
    new = [server.image.name, server.initrd.name]

    def assert_nothing_began(name: str) -> None:
        assert not host.succeeds("test -e /run/recorder/request"), name
        assert not host.succeeds("test -e /run/buildos/updated/os-request"), name
        assert state(host, AGENT) == "running", name

    # A host that has accepted serial 2 refuses an older one.
    host.write(CONFIG, 'update.method = "off"\nmachines.select = []\n')
    assert next_run(host)["serial"] == 2
    for tamper in CHANNELS:
        server.restore()
        tamper.alter(server)
        after = next_run(host)
        assert after["result"] in after["problems"], (tamper.name, after)
        sentence = after["result"]
        assert "/channel/stable" in sentence, (tamper.name, sentence)
        assert tamper.what in sentence and tamper.remedy in sentence, (tamper.name, sentence)
        assert after["serial"] == 2 and after["fetched"] == 0, (tamper.name, after)
        assert revisions(host) == [], tamper.name
        assert not host.succeeds(f"ls {SPOOL}/objects/*"), tamper.name
        assert_nothing_began(tamper.name)

    for serial, tamper in enumerate(OBJECTS, start=3):
        server.restore()
        server.serial = serial
        server.sign()
        # What came before would stay.
        host.run(f"rm -f {SPOOL}/objects/* {SPOOL}/parts/*")
        tamper.alter(server)
        after = next_run(host)
        assert after["os"]["state"] == "held", (tamper.name, after)
        sentence = after["os"]["reason"]
        assert "/objects/" in sentence, (tamper.name, sentence)
        assert tamper.what in sentence and tamper.remedy in sentence, (tamper.name, sentence)
        there = host.run(f"ls {SPOOL}/objects").split()
        assert sorted(there) != sorted([*new, *running.split(":")]), tamper.name
        assert_nothing_began(tamper.name)

    # What was not altered is taken: nothing above was refused for another reason.
    server.restore()
    farm.sign(serial=99)
    host.systemctl("start", "--no-block", "buildos-updated.service")
    assert '"version":"2"' in recorded(host, "request").replace(" ", "")
    assert revisions(host) == ["box-1*"]


def test_altered_boot_files_are_not_served(tmp_path: Path) -> None:
    image, www = tmp_path / "image", tmp_path / "www"
    image.mkdir()
    kernel, initrd, sums = (
        image / name for name in ["buildos-image", "buildos-initrd", "SHA256SUMS"]
    )

    def make() -> None:
        for path, content in [(kernel, b"kernel" * 1000), (initrd, b"initrd" * 1000)]:
            path.write_bytes(content)
        lines = [f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.name}\n" for p in (kernel, initrd)]
        sums.write_text("".join(lines))

    def exchange() -> None:
        one, other = kernel.read_bytes(), initrd.read_bytes()
        kernel.write_bytes(other)
        initrd.write_bytes(one)

    copy, build = "copy it again", "image/build makes it"
    cases: list[tuple[str, Callable[[], object], str, str]] = [
        ("altered kernel", lambda: kernel.write_bytes(b"x" * 6000), str(kernel), copy),
        ("truncated initrd", lambda: initrd.write_bytes(b"initrd"), str(initrd), copy),
        ("exchanged", exchange, str(kernel), copy),
        ("no initrd", initrd.unlink, str(initrd), build),
        ("no list", sums.unlink, "no SHA256SUMS", build),
        ("a list without them", lambda: sums.write_text("0  a\n"), str(kernel), copy),
        ("a damaged list", lambda: sums.write_text(sums.read_text()[:30]), "SHA256SUMS", copy),
        ("a list that is no text", lambda: sums.write_bytes(b"\xff\0\n"), "SHA256SUMS", copy),
    ]
    for name, alter, what, remedy in cases:
        make()
        alter()
        serve = [str(TOP / "image/serve"), str(www), "--image", str(image)]
        done = subprocess.run(serve, capture_output=True, text=True)
        assert done.returncode == 1, (name, done)
        (sentence,) = done.stderr.splitlines()
        assert what in sentence and remedy in sentence, (name, sentence)
        assert not www.exists(), name


def test_damaged_object_of_a_build_is_replaced(tmp_path: Path) -> None:
    image, www = tmp_path / "image", tmp_path / "www"
    image.mkdir()
    digests = []
    for name in netboot.NEEDED:
        (image / name).write_bytes(name.encode())
        digests.append(hashlib.sha256(name.encode()).hexdigest())
    for _ in range(2):
        netboot.keep_build(www, image, digests)
        for digest in digests:
            kept = www / "objects" / digest
            assert hashlib.sha256(kept.read_bytes()).hexdigest() == digest
            kept.write_bytes(b"damaged")
