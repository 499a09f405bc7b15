"""Measures the journal lines of an idle host."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from host import Host
from nat import wait_until_ready
from simlan.lan import Lan

DAY = 86_400
MAX_LINES = 200
"""Maximum of buildos's lines in a day."""

PROBES = DAY // 300
"""Probes in a day, at the default of probe_interval_s."""

RENEWALS = DAY // 1800
"""Renewals in a day, with leases of an hour."""


def _is_of_buildos(entry: Mapping[str, str]) -> bool:
    """Returns true for lines of a buildos unit, or of systemd about one, except agents."""
    unit = str(entry.get("UNIT") or entry.get("_SYSTEMD_UNIT") or "")
    return unit.startswith("buildos-") and not unit.startswith(("buildos-bbot@", "buildos-bslave@"))


def _lines(host: Host, cursor: str) -> list[str]:
    entries = host.journal(f"--after-cursor={cursor}")
    return [str(entry["MESSAGE"]) for entry in entries if _is_of_buildos(entry)]


def _cursor(host: Host) -> str:
    return str(host.journal("--lines=1")[-1]["__CURSOR"])


def test_idle_day_writes_few_journal_lines(
    host: Host, lan: Lan, figure: Callable[[str], None]
) -> None:
    """Only probes and renewals recur on an idle host. The test counts the lines of each and
    multiplies them by their number in a day."""
    host.configure("natd", "probe_interval_s = 10")
    lan.serve_dhcp()
    host.start([lan])
    wait_until_ready(host)
    host.wait_for(lambda: host.active("buildos-console.service"), "buildos-console runs")
    renewed = "journalctl --unit=buildos-netd.service --grep=extended"
    host.wait_for(lambda: host.succeeds(renewed), "netd sends the host name to the server")

    def probed() -> int:
        return int(host.bus_property("nat1", "ProbeUSec"))

    cursor, last = _cursor(host), probed()
    for _ in range(2):
        before = last
        host.wait_for(lambda: probed() > before, "the next probe")
        last = probed()
        host.systemctl("start", "buildos-metrics.service")
    of_probes = _lines(host, cursor)
    assert of_probes == []

    cursor, acquired = _cursor(host), _acquired(host)
    host.run("buildosctl renew")
    host.wait_for(lambda: _acquired(host) > acquired, "the lease is extended")
    # The line repeats one of the start, so netd writes it some seconds later.
    of_renewal = host.wait_for(lambda: _lines(host, cursor), "netd logs the renewal")
    assert len(of_renewal) == 1, of_renewal

    day = len(of_probes) * PROBES + len(of_renewal) * RENEWALS
    assert day < MAX_LINES
    figure(f"lines of buildos in a day of idling, lease 3600 s: {day} (at most {MAX_LINES})")


def _acquired(host: Host) -> int:
    lease = host.bus_property("network1", "Lease")
    return int(lease["AcquiredUSec"]["data"])
