"""A trial: one client on one station in one LAN, from its start to its end."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from pathlib import Path

from clients import Client
from dhcp_double import DhcpDouble, Entry
from dhcp_server import Behaviour
from simlan.errors import TimedOut
from simlan.lan import Lan
from simlan.wait import wait_for
from station import Event, Station

PREFIX = "198.51.100"
SERVER = f"{PREFIX}.1"
FIRST = f"{PREFIX}.100/24"
"""The first address of a server's pool."""

# Sets an interface up and prints when, see netdevice(7).
_PLUG = """
import fcntl, socket, struct, sys, time
SIOCGIFFLAGS, SIOCSIFFLAGS, IFF_UP = 0x8913, 0x8914, 1
ifreq = struct.Struct("16sh22x")
name = sys.argv[1].encode()
with socket.socket() as control:
    _, flags = ifreq.unpack(fcntl.ioctl(control, SIOCGIFFLAGS, ifreq.pack(name, 0)))
    up = ifreq.pack(name, flags | IFF_UP)
    print(time.monotonic())
    fcntl.ioctl(control, SIOCSIFFLAGS, up)
"""


class Trial:
    """A client on a station, and its LANs. The client does not run until `start`."""

    def __init__(
        self,
        root: Sequence[Path],
        client: Client,
        *,
        dead: int = 0,
        bus: bool = False,
        direct: bool = False,
    ):
        """Makes a station with a live NIC after `dead` NICs without server. `direct`
        connects the live one to the server without a bridge, see `Lan`."""
        self.client = client
        self.lan = Lan(PREFIX, direct=direct)
        # One LAN per NIC: clients that bridge all NICs would make a loop.
        self.dead = [Lan("203.0.113", "dead") for _ in range(dead)]
        self.pid = 0
        self.started = 0.0
        nics = [f"eth{index}" for index in range(dead + 1)]
        try:
            self.station = Station(root, client.files(nics))
        except BaseException:
            self._close_lans()
            raise
        for lan in self.dead:
            self.station.connect(lan)
        self.nic = self.station.connect(self.lan)
        self._argv = client.command(nics)
        for line in client.preparation(bus):
            self.station.run("sh", "-ec", line)

    def close(self) -> None:
        """Ends station and LANs."""
        self.station.close()
        self._close_lans()

    def _close_lans(self) -> None:
        for lan in (self.lan, *self.dead):
            lan.close()

    def double(self, *servers: Behaviour) -> DhcpDouble:
        """Starts the DHCP double with `servers`, or with one correct server."""
        return DhcpDouble(self.lan, *(servers or [Behaviour(SERVER)]))

    # The client

    def start(self) -> float:
        """Starts the client; returns the time of its execve."""
        self.pid, self.started = self.station.execute(*self._argv)
        return self.started

    def stop(self, number: int = signal.SIGTERM, deadline: float = 10) -> None:
        """Ends the client, with SIGKILL after the deadline."""
        mark = self.station.mark()
        self.station.signal(self.pid, number)

        def ended() -> bool:
            return any(e["pid"] == self.pid for e in self.station.events("exit", mark))

        try:
            wait_for(ended, f"{self.client.name} ends", deadline)
        except TimedOut:
            self.station.signal(self.pid, signal.SIGKILL)
            wait_for(ended, f"{self.client.name} ends", deadline)

    def plug(self) -> float:
        """Gives the NIC carrier again; returns the time before that. A client can react
        before the kernel's announcement arrives here."""
        return float(self.lan.run(["/usr/bin/python3", "-I", "-S", "-c", _PLUG, self.nic.cable]))

    # Its addresses

    def address_events(self, since: int = 0) -> list[Event]:
        """Returns the events of addresses on the client's interface, without br1 of
        netd."""
        wanted = self.client.interface
        return [
            event
            for event in self.station.events("address", since)
            if event["interface"] == (wanted or self.nic.name)
        ]

    def addresses(self) -> set[str]:
        """Returns the current addresses."""
        present: set[str] = set()
        for event in self.address_events():
            (present.add if event["added"] else present.discard)(event["address"])
        return present

    def leased(self, since: int = 0, wanted: Sequence[str] = ()) -> Event | None:
        """Returns the event of the first address from the LAN, or of those wanted."""
        for event in self.address_events(since):
            if event["added"] and (
                event["address"] in wanted
                or (not wanted and event["address"].startswith(f"{PREFIX}."))
            ):
                return event
        return None

    def wait_lease(
        self, since: int = 0, deadline: float = 30, wanted: Sequence[str] = ()
    ) -> Event | None:
        """Waits for `leased`; returns `None` after the deadline."""
        try:
            return wait_for(lambda: self.leased(since, wanted), "a lease", deadline)
        except TimedOut:
            return None

    def lost(self, since: int, until: float) -> bool:
        """Returns true if an address was removed before that time."""
        return any(
            not event["added"] and event["time"] <= until for event in self.address_events(since)
        )


def first_after(entries: Sequence[Entry], time: float) -> Entry | None:
    """Returns the first entry of a log after that time."""
    return next((entry for entry in entries if entry["time"] > time), None)
