"""tests/lane: what fails runs a second time, and is named."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

LANE = Path(__file__).resolve().parents[1] / "lane"

UNSTABLE = """
from pathlib import Path

def test_unstable():
    marker = Path(__file__).with_name("marker")
    first = not marker.exists()
    marker.touch()
    assert not first
"""


# Passes in the one process of a second run only.
PASSES_ALONE = """
import os

def test_unstable():
    assert "PYTEST_XDIST_WORKER" not in os.environ
"""


def _lane(
    directory: Path, content: str, *arguments: str
) -> subprocess.CompletedProcess[str]:
    (directory / "pytest.ini").touch()
    (directory / "test_example.py").write_text(content)
    return subprocess.run(
        [LANE, directory, *arguments], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def test_unstable_test_is_named_and_passes(tmp_path: Path) -> None:
    result = _lane(tmp_path, UNSTABLE + "\ndef test_good():\n    pass\n")
    assert result.returncode == 0
    assert "UNSTABLE" in result.stdout
    assert result.stdout.rstrip().endswith("test_example.py::test_unstable")
    assert result.stdout.count("1 passed") == 2


def test_second_run_has_one_process(tmp_path: Path) -> None:
    content = PASSES_ALONE + "\ndef test_good():\n    pass\n"
    result = _lane(tmp_path, content, "-n", "2", "--dist=loadfile")
    assert result.returncode == 0, result.stdout
    assert "UNSTABLE" in result.stdout
    assert result.stdout.count("1 passed") == 2


def test_fault_fails_twice(tmp_path: Path) -> None:
    result = _lane(tmp_path, "def test_bad():\n    assert False\n")
    assert result.returncode == 1
    assert result.stdout.count("1 failed") == 2


@pytest.mark.parametrize(
    "content",
    [
        "def test_good():\n    pass\n",
        "import no_such_module\n",
        "import pytest\n@pytest.mark.parametrize('x', range(4))\ndef test_bad(x):\n    assert 0\n",
    ],
    ids=["passed", "not collected", "four failed"],
)
def test_other_results_are_not_repeated(tmp_path: Path, content: str) -> None:
    result = _lane(tmp_path, content)
    assert "second time" not in result.stdout
    assert (result.returncode == 0) == ("good" in content)
