"""The table "To change X, open Y" of docs/developing.md names paths that exist."""

import re
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]


def rows():
    """Returns question and paths of each row."""
    text = (TOP / "docs/developing.md").read_text()
    table = text.split("## To change X, open Y")[1].split("\n## ")[0]
    cells = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("| ")]
    return [(question, re.findall(r"`([^`]+/[^`]*)`", answer)) for question, answer in cells[1:]]


def test_table_has_at_least_25_rows():
    assert len(rows()) >= 25


@pytest.mark.parametrize(("question", "paths"), rows(), ids=[question for question, _ in rows()])
def test_row_names_existing_paths(question, paths):
    assert paths, question
    assert [path for path in paths if not (TOP / path).exists()] == []
