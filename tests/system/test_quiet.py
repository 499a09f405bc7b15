"""How much a host that has nothing to do writes to its journal."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from host import Host
from nat import wait_until_ready
from simlan.lan import Lan

DAY = 86_400
MOST = 200
"""Lines of ours in a day."""

PROBES = DAY // 300
"""At probe_interval_s as it is when nobody sets it."""

RENEWALS = DAY // 1800
"""Of leases of an hour, which is short."""


def _ours(entry: Mapping[str, str]) -> bool:
    """Written by a unit of ours, or by systemd about one. The agent's own lines are
    its own."""
    unit = str(entry.get("UNIT") or entry.get("_SYSTEMD_UNIT") or "")
    return unit.startswith("buildos-") and not unit.startswith(("buildos-bbot@", "buildos-bslave@"))


def _lines(host: Host, cursor: str) -> list[str]:
    entries = host.journal(f"--after-cursor={cursor}")
    return [str(entry["MESSAGE"]) for entry in entries if _ours(entry)]


def _cursor(host: Host) -> str:
    return str(host.journal("--lines=1")[-1]["__CURSOR"])


def test_idle_day_causes_little_work(host: Host, lan: Lan, figure: Callable[[str], None]) -> None:
    """A probe and a renewal are the only things that come again by themselves: so
    many lines each, so often a day."""
    host.configure("natd", "probe_interval_s = 10")
    lan.serve_dhcp()
    host.start([lan])
    wait_until_ready(host)
    host.wait_for(lambda: host.active("buildos-console.service"), "the console is kept")
    told = "journalctl --unit=buildos-netd.service --grep=extended"
    host.wait_for(lambda: host.succeeds(told), "the server is told the host's name")

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
    of_renewal = _lines(host, cursor)
    assert len(of_renewal) == 1, of_renewal

    day = len(of_probes) * PROBES + len(of_renewal) * RENEWALS
    assert day < MOST
    figure(f"lines of ours in a day of idling, lease 3600 s: {day} (at most {MOST})")


def _acquired(host: Host) -> int:
    lease = host.bus_property("network1", "Lease")
    return int(lease["AcquiredUSec"]["data"])
