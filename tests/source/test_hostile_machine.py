"""The help of tests/hostile-machine describes every command."""

import re
import subprocess
from pathlib import Path

import pytest

PROGRAM = Path(__file__).resolve().parents[1] / "hostile-machine"


def output(*arguments):
    return subprocess.run(
        [PROGRAM, *arguments], check=True, capture_output=True, text=True, env={"COLUMNS": "200"}
    ).stdout


COMMANDS = re.findall(r"^    ([a-z-]+)\s+(.+)", output("--help"), re.MULTILINE)


@pytest.mark.parametrize(("command", "summary"), COMMANDS, ids=[name for name, _ in COMMANDS])
def test_help_names_what_must_not_happen(command, summary):
    help_text = output(command, "--help")
    assert "Must not happen" in help_text or summary.startswith("(observer)")


def test_help_lists_attacks():
    assert len(COMMANDS) >= 9
