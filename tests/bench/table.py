"""Makes the tables of the report: ratios to the best peer, then all figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from report import markdown
from rows import Figure, Value

NETD = "netd"
Results = Mapping[tuple[str, str], Sequence[Value]]
"""Values by client and key of the figure, in the order of the runs."""


def _numbers(values: Sequence[Value]) -> list[float]:
    return [float(value) for value in values if value is not None]


def middle(values: Sequence[Value]) -> float | None:
    """Returns the median, with "never" as infinite. Returns `None` without values, or if
    the median is infinite."""
    if not values:
        return None
    found = median([float("inf") if value is None else float(value) for value in values])
    return None if found == float("inf") else found


def _format(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def cell(figure: Figure, values: Sequence[Value]) -> str:
    """Formats the values of a client: median (minimum–maximum), or a count."""
    if not values:
        return "–"
    if figure.unit == "yes":
        return f"{sum(bool(value) for value in values)}/{len(values)}"
    found = middle(values)
    numbers = _numbers(values)
    missing = len(values) - len(numbers)
    if found is None:
        return "never"
    text = f"{_format(found)} ({_format(min(numbers))}–{_format(max(numbers))})"
    return f"{text}, never {missing}/{len(values)}" if missing else text


def ratio(figure: Figure, results: Results, clients: Sequence[str]) -> list[str]:
    """Returns a row: measure, bar, netd, the best peer, and the ratio of the two."""
    own = results.get((NETD, figure.key), ())
    peers = {name: results.get((name, figure.key), ()) for name in clients if name != NETD}
    peers = {name: values for name, values in peers.items() if values}
    unit = "" if figure.unit == "yes" else f" {figure.unit}"
    head = [figure.title, figure.bar, f"{cell(figure, own)}{unit}"]
    if figure.unit == "yes":
        counts = {name: sum(map(bool, values)) for name, values in peers.items()}
        if not counts:
            return [*head, "–", ""]
        best = max(counts, key=lambda name: counts[name])
        return [*head, f"{cell(figure, peers[best])} {best}", ""]
    medians = {n: m for n, values in peers.items() if (m := middle(values)) is not None}
    if not medians:
        return [*head, "never" if peers else "–", ""]
    best = min(medians, key=lambda name: medians[name])
    median_of_netd = middle(own)
    times = f"{medians[best] / median_of_netd:.1f}" if median_of_netd else ""
    return [*head, f"{cell(figure, peers[best])}{unit} {best}", times]


def tables(figures: Sequence[Figure], clients: Sequence[str], results: Results) -> tuple[str, str]:
    """Makes the table of ratios and the table of all figures."""
    shown = [f for f in figures if any(results.get((name, f.key)) for name in clients)]
    ratios = markdown(
        ["measure", "bar", NETD, "best peer", "× netd"],
        [ratio(figure, results, clients) for figure in shown],
    )
    everything = markdown(
        ["measure", "", *clients],
        [
            [figure.title, "" if figure.unit == "yes" else figure.unit]
            + [cell(figure, results.get((name, figure.key), ())) for name in clients]
            for figure in shown
        ],
    )
    return ratios, everything
