"""Makes parts of reports: Markdown tables, the machine that measured."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path


def markdown(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Makes a Markdown table with aligned columns."""
    rows = [list(head), *map(list, lines)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(c.ljust(w) for c, w in zip(cells, widths, strict=True)) + " |"

    rule = "|" + "|".join("-" * (width + 2) for width in widths) + "|"
    return "\n".join([line(rows[0]), rule, *map(line, rows[1:])])


def machine() -> str:
    """Returns processor and kernel of this machine."""
    model = "an unknown processor"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    count = len(os.sched_getaffinity(0))
    return f"{count} × {model}, Linux {platform.release()}"
