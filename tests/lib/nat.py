"""Reads the state of natd: readiness, status, counters, messages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from host import Host

# See units/systemd/catalog/buildos-natd.catalog.
INSTALLED = "8583a305106a49859c8cfe4c9c6d98c8"
RESTORED = "e027bb31090a415fa94f4619ad223281"
CLOSED = "29b2fbf214a64e1f98b6f35ad254d52e"
FOREIGN = "0be98759428341bd99b276342a1a834d"
FOREIGN_GONE = "0eb980ec091c4585bff3e681a281e8c3"

AGENT_TFTP = "196.254.111.222"
"""The address at which a machine fetches its task from the agent."""

_UNIT = "buildos-natd.service"


def wait_until_ready(host: Host) -> None:
    """Waits until natd is ready for machines."""
    host.wait_for(lambda: host.bus_property("network1", "Online"), "online")
    host.wait_for(lambda: host.bus_property("nat1", "Ready"), "ready for machines")


def wait_for_status(host: Host, part: str) -> str:
    """Waits until natd's STATUS= contains `part`; returns the STATUS=."""
    return host.wait_for(
        lambda: next((t for t in [host.status_text(_UNIT)] if part in t), None),
        f"natd's STATUS= contains {part!r}",
    )


def public_address(host: Host) -> str:
    return host.addresses("br0")[0].partition("/")[0]


def dnsmasq_pid(host: Host) -> int:
    """Returns dnsmasq's process id in the host's PID namespace; 0 if it does not serve."""
    return int(host.run("cat /run/buildos/dnsmasq/dnsmasq.pid 2>/dev/null || echo 0"))


def table_handle(host: Host) -> int:
    """Returns the handle of natd's table, which changes when natd replaces it."""
    listed = json.loads(host.run("nft --json list tables inet"))["nftables"]
    tables = [entry["table"] for entry in listed if "table" in entry]
    return next(int(table["handle"]) for table in tables if table["name"] == "buildos")


def packets(host: Host, comment: str) -> int:
    """Returns the packet counter of the rule with that comment."""
    return int(usage(host, "Counters")[comment][0])


def usage(host: Host, name: str) -> Any:
    """Returns a property of nat1's Usage interface."""
    nat = "org.build2.buildos.nat1"
    target = [nat, "/org/build2/buildos/nat1", f"{nat}.Usage", name]
    return json.loads(host.run(["busctl", "--json=short", "get-property", *target]))["data"]


def messages(host: Host, message: str, since: str = "") -> list[dict[str, str]]:
    """Returns natd's messages with that MESSAGE_ID, since a time of `now`."""
    matches = [f"MESSAGE_ID={message}", *([f"--since=@{since}"] if since else [])]
    return [dict(m) for m in host.journal(*matches)]


def now(host: Host) -> str:
    """Returns the time in the format of journalctl(1)."""
    return host.run(["date", "+%s.%N"]).strip()


_QUIET = 10
"""Journal lines of all units that an attack may cause in a minute."""


@contextmanager
def quiet_journal(host: Host) -> Iterator[None]:
    """Asserts that the host logs few lines while the context lasts, up to a minute."""
    cursor = host.journal("--lines=1")[-1]["__CURSOR"]
    yield
    lines = [str(line["MESSAGE"]) for line in host.journal(f"--after-cursor={cursor}")]
    assert len(lines) <= _QUIET, lines
