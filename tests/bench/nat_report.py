"""Reports the cost of NAT: figures for a terminal, and the page docs/nat-cost.md."""

from __future__ import annotations

import datetime
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

Round = dict[str, dict[str, float]]
"""Measurement → rule set → value."""

_TITLES = {
    "none": "none: routing alone",
    "bare": "one masquerade rule",
    "networkd": "systemd-networkd, `IPMasquerade=` (NAT alone)",
    "buildos": "**buildos: both tables**",
    "inet": "table `inet buildos` alone",
    "bridge": "one masquerade rule, and table `bridge buildos`",
    "docker": "Docker",
    "libvirt": "libvirt",
    "flowtable": "buildos with a flowtable",
}


@dataclass(frozen=True)
class Results:
    """Rounds on one kernel."""

    kernel: str
    rounds: Sequence[Round]

    @staticmethod
    def read(files: Sequence[Path]) -> Results:
        """Reads files that `write` wrote on the same kernel."""
        parts = [json.loads(file.read_text()) for file in files]
        (kernel,) = {part["kernel"] for part in parts}
        return Results(kernel, [r for part in parts for r in part["rounds"]])

    def write(self, file: Path) -> None:
        file.write_text(json.dumps({"kernel": self.kernel, "rounds": self.rounds}) + "\n")

    def names(self) -> list[str]:
        return [name for name in _TITLES if name in self.rounds[0]["connections"]]

    def values(self, measurement: str, name: str) -> list[float]:
        return [r[measurement][name] for r in self.rounds]

    def ratios(self, measurement: str, name: str) -> list[float]:
        """Returns the ratios to the masquerade rule of the same round."""
        return [r[measurement][name] / r[measurement]["bare"] for r in self.rounds]


def figures(results: Results) -> str:
    """Returns medians of values and ratios, with the smallest and greatest ratio."""
    lines = [f"{'':12}{'connections/s':>14}{'ratio':>21}{'Gbit/s':>14}{'ratio':>21}"]
    for name in results.names():
        line = f"{name:12}"
        for measurement in ("connections", "bulk"):
            value = statistics.median(results.values(measurement, name))
            line += f"{value:14.2f}{_cell(results.ratios(measurement, name)):>21}"
        lines.append(line)
    return "\n".join(lines)


def document(results: Results, command: str, machine: str) -> str:
    """Returns the page of docs/."""
    rows = [
        [_TITLES[name], *(_cell(results.ratios(m, name)) for m in ("connections", "bulk"))]
        for name in results.names()
    ]
    date = datetime.date.today().isoformat()
    lines = [["rules", "connections", "bytes"], ["---"] * 3, *rows]
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
    return f"""\
# What NAT costs

Made on {date} by
`{command}`,
{len(results.rounds)} rounds, on {machine}, which compiled and tested other programs at the
same time. A machine, a host with br0 and br1, and a server are network namespaces on the
kernel of the image (Debian 13, {results.kernel}) in QEMU. The guest's clock counts
instructions. The ratios therefore compare instructions per connection or byte, and the load
of the machine does not change them. `tests/bench/nat.py` measures the same by time, on the
kernel of the machine that runs it.

Ratios to one masquerade rule in the same round, `median (minimum–maximum)`; greater is
better:

{table}

The first three do not filter: a machine reaches the whole host and can use any source
address. Docker and libvirt do not check what a machine sends on the bridge: not its source
address, not ARP, not DHCP. natd's table `inet buildos` does their work. Table
`bridge buildos` adds the rest: the kernel calls it for each frame that enters a bridge, and
for each frame that the host sends there. These two hooks cost more than their rules, so both
tables together are dearer than Docker's rules if table `inet buildos` alone is not much
cheaper.

What costs in a connection:

- the two hooks of table `bridge buildos`, and the look-up of MAC address, IPv4 address and
  port in each frame of a machine;
- the hook before connection tracking, which drops forged addresses;
- the limit of connections of each address.

The tables avoid what is expensive: names of interfaces, for which the kernel copies 16
bytes (it compares the numbers of br0, br1 and the uplink first); the route for the segment
size, which the kernel looks up for each SYN packet (there is no such rule unless br0's MTU
is smaller than br1's); and the kernel's hash of a connection (the limit uses the source
port of TCP). `crates/buildos-natd/tests/firewall_cost.rs` counts the expressions of each
packet.

**No flowtable.** Its packets bypass the tables of other programs and the drops of natd's
own table. Build machines open many connections and seldom fill a line, and a line of
10 Gbit/s is filled without it.
"""


def _cell(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.3f} ({min(values):.3f}–{max(values):.3f})"
