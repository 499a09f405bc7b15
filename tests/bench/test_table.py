"""Tests the tables of the report."""

from __future__ import annotations

from rows import ROWS, Figure, Value
from table import NETD, cell, middle, tables

TIME = Figure("time", "cold start", "ms", "≤ 12")
COUNT = Figure("count", "bad OFFERs", "yes", "all")


def test_cell_shows_median_and_range_or_a_count() -> None:
    assert cell(TIME, [3.0, 1.0, 200.0]) == "3.0 (1.0–200)"
    assert cell(COUNT, [True, False, True]) == "2/3"
    assert cell(TIME, []) == "–"


def test_missing_values_count_as_never() -> None:
    assert middle([None, None, 1.0]) is None
    assert cell(TIME, [None, None, 1.0]) == "never"
    assert cell(TIME, [1.0, 2.0, None]) == "2.0 (1.0–2.0), never 1/3"


def test_ratio_is_to_the_best_peer() -> None:
    results: dict[tuple[str, str], list[Value]] = {
        (NETD, "time"): [5.0],
        ("slow", "time"): [50.0],
        ("fast", "time"): [20.0],
        ("mute", "time"): [None],
        (NETD, "count"): [True],
        ("slow", "count"): [False],
    }
    ratios, everything = tables([TIME, COUNT], [NETD, "slow", "fast", "mute"], results)
    line = ratios.splitlines()[2].split("|")
    assert [part.strip() for part in line[1:6]] == [
        "cold start",
        "≤ 12",
        "5.0 (5.0–5.0) ms",
        "20.0 (20.0–20.0) ms fast",
        "4.0",
    ]
    assert "never" in everything


def test_figure_keys_are_unique() -> None:
    keys = [figure.key for row in ROWS for figure in row.figures]
    assert len(keys) == len(set(keys))
