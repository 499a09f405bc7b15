"""The option `--all` of a lane, which adds the tests with the marker `long`."""

from __future__ import annotations

import pytest


def add_option(parser: pytest.Parser, what: str) -> None:
    parser.addoption("--all", action="store_true", help=f"adds the long tests: {what}")


def add_marker(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "long: only with --all")


def deselect(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects the long tests without --all."""
    if config.getoption("--all"):
        return
    long = [item for item in items if item.get_closest_marker("long")]
    config.hook.pytest_deselected(items=long)
    items[:] = [item for item in items if item not in long]
