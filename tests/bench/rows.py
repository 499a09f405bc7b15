"""The measurements. Each is a function of a client that returns figures by key. `None`
is shown as "never": the event did not happen before the deadline."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

from clients import Client
from dhcp_defects import LEASE_DEFECTS, OFFER_DEFECTS, READABLE_DEFECTS
from dhcp_double import DhcpDouble
from dhcp_server import Behaviour
from roots import kea_root
from simlan.errors import TimedOut
from simlan.wait import wait_for
from station import Event
from trial import FIRST, PREFIX, SERVER, Trial, first_after

Value = float | bool | None
Figures = Mapping[str, Value]

ROGUE = f"{PREFIX}.66"
ROGUE_FIRST = f"{PREFIX}.200/24"
_GAP = 0.03
"""Seconds between a bad OFFER and the correct OFFER."""
_PATIENCE = 12.0
"""Deadline for a lease, in seconds, if one OFFER is bad. dhcpcd needs six, for its ARP
probes."""


_EXACT = 2.5
"""Tolerance for the end of an address, in seconds: the kernel counts whole seconds from
the netlink request."""


@dataclass(frozen=True)
class Figure:
    key: str
    title: str
    unit: str
    """`ms`, `s`, `kB`, or `yes` for the number of true values."""
    bar: str
    """The required value for netd."""


@dataclass(frozen=True)
class Row:
    """A measurement and its figures."""

    key: str
    figures: tuple[Figure, ...]
    measure: Callable[[Sequence[Path], Client, int], Figures]
    """Takes the clients' root, the client and the number of the run."""
    parallel: int = 1
    """Number of runs that do not affect each other's figures if they run at a time."""
    runs: int | None = None
    """Number of repetitions; `None`: the caller decides."""
    one_shot: bool = False
    """Also measured for clients that end with their first lease."""
    variants: tuple[str, ...] = ()
    """Name of the case of each run, for rows that count cases."""


def _milliseconds(later: Event | None, earlier: float) -> float | None:
    """Returns the time from `earlier` to an event, `None` without event."""
    return None if later is None else 1000 * (later["time"] - earlier)


# From start to address


def _cold(dead: int, kea: bool = False) -> Callable[[Sequence[Path], Client, int], Figures]:
    key = "cold-kea" if kea else f"dead{dead}" if dead else "cold"

    def measure(root: Sequence[Path], client: Client, run: int) -> Figures:
        with closing(Trial(root, client, dead=dead, direct=not kea)) as trial:
            if kea:
                trial.lan.serve_kea(kea_root())
            else:
                trial.lan.serve_dhcp()
            trial.start()
            lease = trial.wait_lease()
            return {key: _milliseconds(lease, trial.started)}

    return measure


def _answer(root: Sequence[Path], client: Client, run: int) -> Figures:
    with closing(Trial(root, client, direct=True)) as trial:
        double = trial.double()
        trial.start()
        if not trial.wait_lease():
            return {"answer": None}
        offer = double.sent("OFFER")[0]["time"]
        return {"answer": _milliseconds(first_after(double.received("selecting"), offer), offer)}


# With a lease


def _restart(root: Sequence[Path], client: Client, run: int) -> Figures:
    with closing(Trial(root, client)) as trial:
        double = trial.double()
        trial.start()
        if not trial.wait_lease():
            return {"restart": None, "restart-kept": False}
        mark = trial.station.mark()
        trial.stop()
        again = trial.start()
        try:
            ack = wait_for(lambda: first_after(double.sent("ACK"), again), "an ACK", 15)
        except TimedOut:
            return {"restart": None, "restart-kept": False}
        # Changes after the ACK count, too.
        time.sleep(0.3)
        return {
            "restart": _milliseconds(ack, again),
            "restart-kept": not trial.lost(mark, time.monotonic()),
        }


def _carrier(root: Sequence[Path], client: Client, run: int) -> Figures:
    nothing: Figures = {"carrier-request": None, "carrier-ack": None, "carrier-kept": False}
    with closing(Trial(root, client)) as trial:
        double = trial.double()
        trial.start()
        if not trial.wait_lease():
            return nothing
        time.sleep(0.5)
        mark = trial.station.mark()
        trial.nic.unplug()
        time.sleep(3)
        when = trial.plug()
        kept = not trial.lost(mark, when)
        try:
            ack = wait_for(lambda: first_after(double.sent("ACK"), when), "an ACK", 10)
        except TimedOut:
            return {**nothing, "carrier-kept": kept}
        asked = first_after(double.received(), when)
        return {
            "carrier-request": _milliseconds(asked, when),
            "carrier-ack": _milliseconds(ack, when),
            "carrier-kept": kept,
        }


def _silence(root: Sequence[Path], client: Client, run: int) -> Figures:
    with closing(Trial(root, client)) as trial:
        double = DhcpDouble(trial.lan)
        trial.start()
        # Random, so that the moment differs between runs for clients with regular delays.
        until = trial.started + 20 + 4 * random.Random(run).random()
        time.sleep(max(0.0, until - time.monotonic()))
        double.serve(Behaviour(SERVER))
        back = double.serving_since()
        lease = trial.wait_lease(deadline=60)
        return {"silence": None if lease is None else lease["time"] - back}


def _nak(root: Sequence[Path], client: Client, run: int) -> Figures:
    with closing(Trial(root, client)) as trial:
        server = Behaviour(SERVER, lease=24, t1=5, t2=18)
        double = trial.double(server)
        trial.start()
        if not trial.wait_lease():
            return {"nak": None}
        mark = trial.station.mark()
        double.serve(Behaviour(SERVER, lease=24, t1=5, t2=18, nak=frozenset({"renewing"})))
        try:
            nak = double.wait_sent("NAK", deadline=20)["time"]

            def reaction() -> float | None:
                gone = [e["time"] for e in trial.address_events(mark) if not e["added"]]
                asked = [e["time"] for e in double.received("discover", "selecting")]
                return min((t for t in [*gone, *asked] if t > nak), default=None)

            return {"nak": 1000 * (wait_for(reaction, "a reaction", 4) - nak)}
        except TimedOut:
            return {"nak": None}


def _expiry(root: Sequence[Path], client: Client, run: int) -> Figures:
    with closing(Trial(root, client)) as trial:
        double = trial.double(Behaviour(SERVER, lease=20))
        trial.start()
        lease = trial.wait_lease()
        acks = double.sent("ACK")
        if not lease or not acks:
            return {"expiry": False}
        trial.stop(signal.SIGKILL)
        end = acks[-1]["time"] + 20
        time.sleep(max(0.0, end + _EXACT - time.monotonic()))
        gone = [e["time"] for e in trial.address_events() if not e["added"]]
        return {"expiry": any(abs(when - end) < _EXACT for when in gone)}


# Memory and CPU time


def _memory(root: Sequence[Path], client: Client, run: int) -> Figures:
    with closing(Trial(root, client, bus=True)) as trial:
        trial.lan.serve_dhcp()
        trial.start()
        if not trial.wait_lease():
            return {"rss": None, "dirty": None}
        time.sleep(2)
        resident, dirty = trial.station.memory()
        return {"rss": resident, "dirty": dirty}


_RENEWALS = 5


def _cpu(root: Sequence[Path], client: Client, run: int) -> Figures:
    with closing(Trial(root, client, bus=True)) as trial:
        double = trial.double(Behaviour(SERVER, lease=8, t1=2, t2=7))
        trial.start()

        def renewals(count: int) -> int:
            """Waits for `count` renewals; returns those of the last 70 seconds at most.
            udhcpc accepts no lease time below two minutes."""
            asked = ("renewing", "rebinding", "init-reboot")
            with suppress(TimedOut):
                double.wait_received(*asked, count=count, deadline=70)
            return len(double.received(*asked))

        if not trial.wait_lease() or not (first := renewals(1)):
            return {"cpu": None, "cpu-kept": False}
        time.sleep(0.5)
        mark, before = trial.station.mark(), trial.station.cpu()
        last = renewals(first + _RENEWALS)
        time.sleep(0.5)
        if last == first:
            return {"cpu": None, "cpu-kept": False}
        return {
            "cpu": 1000 * (trial.station.cpu() - before) / (last - first),
            "cpu-kept": not trial.lost(mark, time.monotonic()),
        }


# Bad servers


def _bad_offer(root: Sequence[Path], client: Client, run: int) -> Figures:
    kind = list(OFFER_DEFECTS)[run]
    mute = frozenset() if kind in READABLE_DEFECTS else frozenset({"selecting"})
    with closing(Trial(root, client)) as trial:
        rogue = Behaviour(ROGUE, first=200, defect=kind, silent=mute)
        trial.double(rogue, Behaviour(SERVER, delay={"discover": _GAP}))
        trial.start()
        wanted = [FIRST, ROGUE_FIRST] if kind in READABLE_DEFECTS else [FIRST]
        return {"bad-offer": trial.wait_lease(deadline=_PATIENCE, wanted=wanted) is not None}


def _impossible(root: Sequence[Path], client: Client, run: int) -> Figures:
    kind = list(LEASE_DEFECTS)[run]
    with closing(Trial(root, client)) as trial:
        rogue = Behaviour(ROGUE, first=200, defect=kind)
        trial.double(rogue, Behaviour(SERVER, delay={"discover": _GAP}))
        trial.start()
        good = trial.wait_lease(deadline=_PATIENCE, wanted=[FIRST])
        taken = {event["address"] for event in trial.address_events() if event["added"]}
        return {
            "impossible": good is not None and taken == {FIRST},
            "impossible-refused": not taken - {FIRST},
        }


def _mute(root: Sequence[Path], client: Client, run: int) -> Figures:
    with closing(Trial(root, client)) as trial:
        rogue = Behaviour(ROGUE, first=200, silent=frozenset({"selecting"}))
        trial.double(rogue, Behaviour(SERVER, delay={"discover": _GAP}))
        trial.start()
        lease = trial.wait_lease(deadline=40, wanted=[FIRST])
        return {"mute": None if lease is None else lease["time"] - trial.started}


def _duplicate(root: Sequence[Path], client: Client, run: int) -> Figures:
    with closing(Trial(root, client)) as trial:
        double = trial.double(Behaviour(SERVER, addresses_in_use=frozenset({FIRST.split("/")[0]})))
        trial.start()
        try:
            double.wait_received("DECLINE", deadline=_PATIENCE)
        except TimedOut:
            return {"declines": False}
        return {"declines": True}


ROWS = [
    Row(
        "cold",
        (Figure("cold", "cold start, dnsmasq: exec to address", "ms", "≤ 12"),),
        _cold(0),
        one_shot=True,
    ),
    Row(
        "kea",
        (Figure("cold-kea", "cold start, Kea behind a bridge: exec to address", "ms", "≤ 12"),),
        _cold(0, kea=True),
        one_shot=True,
    ),
    Row(
        "dead",
        (Figure("dead1", "the same with 1 dead NIC before the live NIC", "ms", "none + 3"),),
        _cold(1),
        one_shot=True,
    ),
    Row(
        "dead",
        (Figure("dead3", "the same with 3 dead NICs before the live NIC", "ms", "none + 3"),),
        _cold(3),
        one_shot=True,
    ),
    Row(
        "answer",
        (Figure("answer", "OFFER to the REQUEST, by the server", "ms", "median ≤ 0.4"),),
        _answer,
        one_shot=True,
    ),
    Row(
        "restart",
        (
            Figure("restart", "restart with a known lease: exec to ACK", "ms", "≤ 7"),
            Figure("restart-kept", "… and the address was never removed", "yes", "all"),
        ),
        _restart,
    ),
    Row(
        "carrier",
        (
            Figure("carrier-request", "carrier back after 3 s: to the REQUEST", "ms", "≤ 5"),
            Figure("carrier-ack", "… to the ACK", "ms", "max ≤ 30"),
            Figure("carrier-kept", "… and the address was kept meanwhile", "yes", "all"),
        ),
        _carrier,
        parallel=2,
    ),
    Row(
        "silence",
        (
            Figure(
                "silence",
                "server back after 20 s of silence: to the address",
                "s",
                "median ≤ 1.5, max ≤ 3",
            ),
        ),
        _silence,
        parallel=8,
    ),
    Row(
        "nak",
        (Figure("nak", "broadcast NAK while renewing: to the reaction", "ms", "≤ 50"),),
        _nak,
        parallel=8,
    ),
    Row(
        "expiry",
        (Figure("expiry", "killed: the address ends with the lease", "yes", "all"),),
        _expiry,
        parallel=8,
        runs=3,
    ),
    Row(
        "memory",
        (
            Figure(
                "rss", "RSS with a lease, including D-Bus if the client uses it", "kB", "≤ 4096"
            ),
            Figure("dirty", "… private dirty", "kB", "≤ 400"),
        ),
        _memory,
        parallel=8,
        runs=3,
    ),
    Row(
        "cpu",
        (
            Figure("cpu", "processor time per renewal", "ms", "≤ 0.7"),
            Figure("cpu-kept", "… and the address was never removed", "yes", "all"),
        ),
        # Another trial would take the caches of the CPU.
        _cpu,
        runs=3,
    ),
    Row(
        "bad-offers",
        (
            Figure(
                "bad-offer",
                f"{len(OFFER_DEFECTS)} kinds of bad OFFER, "
                f"a correct OFFER {1000 * _GAP:.0f} ms later: lease",
                "yes",
                "all",
            ),
        ),
        _bad_offer,
        parallel=10,
        one_shot=True,
        variants=tuple(OFFER_DEFECTS),
    ),
    Row(
        "impossible",
        (
            Figure(
                "impossible",
                f"{len(LEASE_DEFECTS)} impossible leases, ACKed: a lease from the correct server",
                "yes",
                "all",
            ),
            Figure("impossible-refused", "… and no address from the faulty server", "yes", "all"),
        ),
        _impossible,
        parallel=10,
        one_shot=True,
        variants=tuple(LEASE_DEFECTS),
    ),
    Row(
        "mute",
        (
            Figure(
                "mute",
                "a first OFFER that is never ACKed: to a lease from the correct server",
                "s",
                "≤ 5",
            ),
        ),
        _mute,
        parallel=10,
        runs=3,
        one_shot=True,
    ),
    Row(
        "duplicate",
        (Figure("declines", "the address is in use: DECLINE", "yes", "all"),),
        _duplicate,
        parallel=10,
        runs=3,
    ),
]
