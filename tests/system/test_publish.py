"""Publishes channels with buildosctl at a desk, and checks them with the real sqv.

The desk is the root of a host. gpg runs on the machine of the tests, as the root has none: a
script with its name passes arguments and text on, and waits for the result.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from buildroot import CommandFailed, Root

Desk = Callable[[str], str]

# Its FIFOs wait for the other side, so nothing polls.
GPG = """#!/bin/sh
for argument; do
    [ "$last" = --output ] && output=$argument
    last=$argument
done
printf '%s\\n' "$@" >/work/desk/gpg.arguments
cat "$last" >/work/desk/gpg.text
cat /work/desk/gpg.signed >"$output"
"""


class Signer:
    """Keys of operators in a home of gpg, and a thread that signs for the desk."""

    def __init__(self, home: Path, desk: Path):
        self.desk = desk
        self.env = {**os.environ, "GNUPGHOME": str(home)}
        for name in ("first", "second"):
            self.gpg("--passphrase", "", "--quick-generate-key", f"{name}@desk", "ed25519", "sign")
        for names in ("first", "second", "first second"):
            keys = [f"{name}@desk" for name in names.split()]
            (desk / f"{names.replace(' ', '-')}.gpg").write_bytes(self.gpg("--export", *keys))
        for name in ("arguments", "text", "signed"):
            os.mkfifo(desk / f"gpg.{name}")
        threading.Thread(target=self.serve, daemon=True).start()

    def gpg(self, *arguments: str, stdin: bytes = b"") -> bytes:
        command = ["gpg", "--batch", "--quiet", *arguments]
        return subprocess.run(
            command, env=self.env, input=stdin, check=True, capture_output=True
        ).stdout

    def serve(self) -> None:
        while True:
            arguments = (self.desk / "gpg.arguments").read_text().splitlines()
            text = (self.desk / "gpg.text").read_bytes()
            # The paths are those of the desk.
            at = arguments.index("--output")
            options = [*arguments[:at], *arguments[at + 2 : -1]]
            try:
                signed = self.gpg(*options, stdin=text)
            except subprocess.CalledProcessError:
                signed = b""  # The desk must not wait.
            (self.desk / "gpg.signed").write_bytes(signed)

    def end(self) -> None:
        subprocess.run(["gpgconf", "--kill", "gpg-agent"], env=self.env, check=True)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "desk"
    (path / "bin").mkdir(parents=True)
    (path / "bin" / "gpg").write_text(GPG)
    (path / "bin" / "gpg").chmod(0o755)
    return path


@pytest.fixture
def signer(directory: Path) -> Iterator[Signer]:
    # A short path: that of a socket in it has at most 108 bytes.
    with tempfile.TemporaryDirectory(prefix="gpg") as home:
        signer = Signer(Path(home), directory)
        yield signer
        signer.end()


@pytest.fixture
def desk(root: Root, directory: Path, signer: Signer) -> Desk:
    """Runs a shell command at the desk, and returns its output."""

    def run(command: str) -> str:
        output = root.output(
            ["sh", "-c", f"({command}) 2>&1 || echo \"status $?\""],
            binds={"/work/desk": directory},
            env={"PATH": "/work/desk/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
            directory="/work/desk",
        )
        return output.decode()

    return run


CHECK = "buildosctl check --keyring first-second.gpg"
PROMOTE = "buildosctl publish promote www --key first@desk"


def add_toolchain(directory: Path, version: str) -> None:
    """Adds a toolchain with its object to the draft."""
    content = f"# {version}\n".encode()
    sha256 = hashlib.sha256(content).hexdigest()
    (directory / "www/objects" / sha256).write_bytes(content)
    draft = directory / "www/desk/stable.toml"
    text = re.sub(r"\n\[\[toolchain\]\][^\[]*", "", draft.read_text())
    entry = f'[[toolchain]]\nname = "public"\nversion = "{version}"\n'
    entry += f'list = {{ sha256 = "{sha256}", size = {len(content)} }}\n\n'
    draft.write_text(text.replace("[rollout]", entry + "[rollout]"))


def test_promoted_channel_passes_the_check(desk: Desk, directory: Path) -> None:
    assert "The draft is www/desk/stable.toml" in desk("buildosctl publish init www")
    add_toolchain(directory, "0.18.0")
    assert "+ toolchain public version 0.18.0" in desk("buildosctl publish show www")
    promoted = desk(f"{PROMOTE} --percent 10")
    assert "+ toolchain public version 0.18.0\nwww/channel/stable: serial 1," in promoted
    assert "10 % of the hosts" in promoted
    assert desk(f"{CHECK} www/channel/stable") == ""
    add_toolchain(directory, "0.19.0")
    assert "version 0.19.0, was version 0.18.0" in desk("buildosctl publish show www")
    assert "serial 2," in desk(PROMOTE)
    assert desk(f"{CHECK} www/channel/stable") == ""
    shown = desk("buildosctl publish show www")
    assert "stable: serial 2," in shown and "draft" not in shown


def test_only_trusted_keys_and_enough_signatures_pass(desk: Desk) -> None:
    desk(f"buildosctl publish init www; {PROMOTE}")
    signed = "www/channel/stable"
    assert "give the keys that you trust" in desk(f"buildosctl check {signed}")
    strange = desk(f"buildosctl check --keyring second.gpg {signed}")
    assert "the signature is not valid: sqv failed" in strange and "status 1" in strange
    assert "status 1" in desk(f"{CHECK} --signatures 2 {signed}")
    desk(f"{PROMOTE} --key second@desk")
    assert desk(f"{CHECK} --signatures 2 {signed}") == ""
    # Two signatures of one key are one.
    desk(f"{PROMOTE} --key first@desk")
    assert "status 1" in desk(f"{CHECK} --signatures 2 {signed}")


def test_changed_text_is_refused(desk: Desk, directory: Path) -> None:
    desk(f"buildosctl publish init www; {PROMOTE}")
    signed = directory / "www/channel/stable"
    good = signed.read_text()
    for bad in (
        good.replace("serial = 1", "serial = 2"),
        good.replace("percent = 100", "percent = 0"),
        good[: len(good) // 2],
    ):
        assert bad != good
        signed.write_text(bad)
        assert "status 1" in desk(f"{CHECK} www/channel/stable"), bad
    signed.write_text(good + "\nserial = 99\n")
    assert "99" not in desk(f"{CHECK} www/channel/stable")


def test_mistakes_of_a_signed_text_are_reported(
    desk: Desk, directory: Path, signer: Signer
) -> None:
    desk("buildosctl publish init www")
    draft = (directory / "www/desk/stable.toml").read_text()

    def checked(text: str, name: str = "stable") -> str:
        signed = signer.gpg("--clearsign", "--local-user", "first@desk", stdin=text.encode())
        (directory / "www/channel" / name).write_bytes(signed)
        return desk(f"{CHECK} www/channel/{name}")

    assert checked(draft) == ""
    unknown = checked(draft.replace("serial", "serail = 2\nserial"))
    assert 'line 3: unknown key "serail"; the nearest valid key is "serial"' in unknown
    zero = checked(draft.replace("serial = 1", "serial = 0"))
    assert "line 3: serial: not a whole number" in zero
    old = re.sub(r"valid_until = \S+", "valid_until = 2020-01-01T00:00:00Z", draft)
    assert "hosts refuse it: it expired at 2020-01-01T00:00:00Z" in checked(old)
    far = re.sub(r"valid_until = \S+", "valid_until = 2099-01-01T00:00:00Z", draft)
    assert "more than 400 days away" in checked(far)
    assert "the file of channel stable, not of canary" in checked(draft, "canary")


def test_missing_object_is_not_signed(desk: Desk, directory: Path) -> None:
    desk(f"buildosctl publish init www; {PROMOTE}")
    add_toolchain(directory, "0.18.0")
    before = (directory / "www/channel/stable").read_text()
    [object_] = (directory / "www/objects").iterdir()
    object_.rename(directory / "away")
    assert f"nothing was signed: object {object_.name}" in desk(PROMOTE)
    assert (directory / "www/channel/stable").read_text() == before
    (directory / "away").rename(object_)
    assert "serial 2" in desk(PROMOTE)
    object_.write_bytes(b"half")
    assert "has 4 bytes instead of 9" in desk(f"{CHECK} www/channel/stable")


def test_second_channel_moves_to_the_first(desk: Desk, directory: Path) -> None:
    desk("buildosctl publish init www; buildosctl publish init www --channel canary")
    add_toolchain(directory, "0.18.0")
    draft = directory / "www/desk/stable.toml"
    canary = draft.read_text().replace('name = "stable"', 'name = "canary"')
    (directory / "www/desk/canary.toml").write_text(canary)
    assert "canary was never published" in desk(f"{PROMOTE} --from canary")
    assert "serial 1" in desk(f"{PROMOTE} --channel canary")
    assert "+ toolchain public version 0.18.0" in desk(f"{PROMOTE} --from canary")
    assert desk(f"{CHECK} www/channel/stable www/channel/canary") == ""


def test_failures_of_the_desk_are_explained(desk: Desk, root: Root, directory: Path) -> None:
    assert "begin with buildosctl publish init" in desk(PROMOTE)
    desk("buildosctl publish init www")
    assert "exists already" in desk("buildosctl publish init www")
    (directory / "bin/gpg").unlink()
    assert "it is not installed (package gnupg)" in desk(PROMOTE)
    (directory / "www/desk/stable.toml").write_text("format = 1\nformat = 1\n")
    assert "stable.toml: line 2: not TOML: duplicate key" in desk(PROMOTE)
    with pytest.raises(CommandFailed):
        root.output(["buildosctl", "publish", "show", "/nonexistent"])
