"""Publishes channels with buildosctl at a desk, and checks them with the real sqv.

The desk is the root of a host.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from buildroot import CommandFailed, Root

Desk = Callable[[str], str]

# The operators' keys, and keyrings of one and both.
KEYS = """
set -eu
for name in first second; do
    gpg --batch --quiet --passphrase "" --quick-generate-key $name@desk ed25519 sign
    gpg --batch --quiet --export $name@desk >$name.gpg
done
gpg --batch --quiet --export first@desk second@desk >first-second.gpg
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    path = tmp_path / "desk"
    (path / "keys").mkdir(parents=True)
    (path / "keys").chmod(0o700)
    return path


@pytest.fixture
def desk(root: Root, directory: Path) -> Desk:
    """Runs a shell command at the desk, and returns its output."""

    def run(command: str) -> str:
        output = root.output(
            ["sh", "-c", f"({command}) 2>&1 || echo \"status $?\""],
            binds={"/work/desk": directory},
            env={"GNUPGHOME": "/work/desk/keys"},
            directory="/work/desk",
        )
        return output.decode()

    assert run(KEYS) == ""
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


def test_mistakes_of_a_signed_text_are_reported(desk: Desk, directory: Path) -> None:
    desk("buildosctl publish init www")
    draft = (directory / "www/desk/stable.toml").read_text()

    def checked(text: str, name: str = "stable") -> str:
        (directory / "text").write_text(text)
        sign = "gpg --batch --quiet --clearsign --local-user first@desk"
        return desk(f"{sign} <text >www/channel/{name}; {CHECK} www/channel/{name}")

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
    missing = desk(f"PATH=/nonexistent /usr/bin/{PROMOTE}")
    assert "it is not installed (package gnupg)" in missing
    (directory / "www/desk/stable.toml").write_text("format = 1\nformat = 1\n")
    assert "stable.toml: line 2: not TOML: duplicate key" in desk(PROMOTE)
    with pytest.raises(CommandFailed):
        root.output(["buildosctl", "publish", "show", "/nonexistent"])
