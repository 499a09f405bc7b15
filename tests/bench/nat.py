#!/usr/bin/env python3
"""Measures the cost of NAT: natd's table, one masquerade rule, and the rules of
systemd-networkd, libvirt and Docker.

    sudo tests/bench/nat.py [--rounds N] [--seconds S] [--flowtable] [--json FILE]

A machine, a host with br0 and br1, and a server are network namespaces with veth pairs
between them. Each round measures every rule set once, in random order. The ratio to the
masquerade rule of the same round is compared: load affects all rule sets alike. nft and
iptables come from the system lane's root (`make check-system` makes it), else from this
machine.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import socket
import statistics
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

_TOP = Path(__file__).resolve().parents[2]
sys.path.append(str(_TOP / "image"))

from nat_rules import Rules, rule_sets  # noqa: E402
from simlan.namespace import Namespace  # noqa: E402
from simlan.process import end  # noqa: E402

_ROOT = _TOP / "build/roots/host"
_MACHINE, _HOST_INSIDE = "172.23.0.9", "172.23.0.1"
_HOST_OUTSIDE, _SERVER = "198.51.100.2", "198.51.100.1"
_CONNECT, _BULK = 7001, 7002


def _nft() -> list[str]:
    """Returns the prefix of command lines of nft and iptables; empty without nft."""
    if (_ROOT / "usr/sbin/nft").exists():
        return ["chroot", str(_ROOT)]
    return ["env"] if shutil.which("nft") else []


class Network:
    """Machine, host and server, with one rule set."""

    def __init__(self, rules: Rules):
        self._namespaces = {name: Namespace() for name in ("machine", "host", "server")}
        pids = {name: namespace.pid for name, namespace in self._namespaces.items()}
        host = f"""
        ip link add br0 type bridge stp_state 0 forward_delay 0
        ip link add br1 type bridge stp_state 0 forward_delay 0
        ip link add machine type veth peer name eth0 netns {pids["machine"]}
        ip link add server type veth peer name eth0 netns {pids["server"]}
        ip link set machine master br1 up
        ip link set server master br0 up
        ip address add {_HOST_INSIDE}/16 dev br1
        ip address add {_HOST_OUTSIDE}/24 dev br0
        ip link set br0 up
        ip link set br1 up
        echo 1 >/proc/sys/net/ipv4/conf/br0/forwarding
        echo 1 >/proc/sys/net/ipv4/conf/br1/forwarding
        for switch in /proc/sys/net/bridge/bridge-nf-call-*; do
            [ ! -e $switch ] || echo 0 >$switch
        done
        """
        self.run("host", ["sh", "-euc", host])
        for name, address, route in (
            ("machine", f"{_MACHINE}/16", f"default via {_HOST_INSIDE}"),
            # The route of answers for rule sets without NAT.
            ("server", f"{_SERVER}/24", f"172.23.0.0/16 via {_HOST_OUTSIDE}"),
        ):
            script = f"ip address add {address} dev eth0; ip link set eth0 up"
            self.run(name, ["sh", "-euc", f"{script}; ip route add {route}"])
        if rules.text:
            self._namespaces["host"].run([*_nft(), *rules.command], stdin=rules.text)

    def run(self, name: str, command: list[str]) -> str:
        return self._namespaces[name].run(command)

    def measure(self, measurement: str, seconds: float) -> float:
        """Runs the two ends of a measurement on the server and on the machine."""
        program = [sys.executable, __file__, "--end"]
        server = self._namespaces["server"].start(
            [*program, f"{measurement}-server"], stdout=subprocess.PIPE
        )
        try:
            assert server.stdout is not None and server.stdout.readline() == "ready\n"
            return float(self.run("machine", [*program, f"{measurement}-client", str(seconds)]))
        finally:
            end(server)

    def close(self) -> None:
        for namespace in self._namespaces.values():
            namespace.close()


# The two ends of each measurement.


def _listen(port: int) -> socket.socket:
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((_SERVER, port))
    server.listen(4096)
    print("ready", flush=True)
    return server


def _connections_server(_: float) -> None:
    server = _listen(_CONNECT)
    # The kernel has accepted the connection already.
    while True:
        server.accept()[0].close()


def _connections_client(seconds: float) -> None:
    """Prints sequential connections per second."""
    linger = b"\1\0\0\0\0\0\0\0"  # RST at close: no port stays in TIME_WAIT.
    where = (_SERVER, _CONNECT)
    count, stop = 0, time.monotonic() + seconds
    began = time.monotonic()
    while time.monotonic() < stop:
        for _ in range(50):
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            client.connect(where)
            client.close()
        count += 50
    print(count / (time.monotonic() - began))


def _bulk_server(_: float) -> None:
    server = _listen(_BULK)
    buffer = bytearray(1 << 20)
    while True:
        connection, _peer = server.accept()
        with connection:
            # MSG_TRUNC counts bytes without copying them.
            while connection.recv_into(buffer, 0, socket.MSG_TRUNC):
                pass


def _bulk_client(seconds: float) -> None:
    """Prints gigabits per second over one connection."""
    data = bytes(1 << 20)
    with socket.create_connection((_SERVER, _BULK)) as connection:
        sent, began = 0, time.monotonic()
        while time.monotonic() < began + seconds:
            sent += connection.send(data)
        print(sent * 8 / (time.monotonic() - began) / 1e9)


_ENDS = {
    "connections-server": _connections_server,
    "connections-client": _connections_client,
    "bulk-server": _bulk_server,
    "bulk-client": _bulk_client,
}


def _round(sets: list[Rules], seconds: float) -> dict[str, dict[str, float]]:
    """Measures each rule set; returns measurement → rule set → value."""
    values: dict[str, dict[str, float]] = {"connections": {}, "bulk": {}}
    for rules in random.sample(sets, len(sets)):
        network = Network(rules)
        try:
            for measurement in values:
                values[measurement][rules.name] = network.measure(measurement, seconds)
        finally:
            network.close()
    return values


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    parser.add_argument(
        "--flowtable",
        action="store_true",
        help="also measure natd's table with a flowtable; needs nft_flow_offload",
    )
    parser.add_argument("--json", type=Path, help="write all values to the file")
    parser.add_argument("--end", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.end:
        name, *seconds = options.end
        with suppress(KeyboardInterrupt):
            _ENDS[name](float(seconds[0]) if seconds else 0)
        return
    assert _nft(), f"no nft on this machine and no {_ROOT}: make check-system makes it"
    sets = rule_sets(options.flowtable)
    rounds = []
    for number in range(options.rounds):
        rounds.append(_round(sets, options.seconds))
        print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    if options.json:
        options.json.write_text(json.dumps(rounds))
    print(f"{'':12}{'connections/s':>16}{'ratio':>8}{'Gbit/s':>10}{'ratio':>8}")
    for rules in sets:
        line = f"{rules.name:12}"
        for measurement, width in (("connections", 16), ("bulk", 10)):
            values = [r[measurement][rules.name] for r in rounds]
            ratios = [r[measurement][rules.name] / r[measurement]["bare"] for r in rounds]
            line += f"{statistics.median(values):{width}.1f}{statistics.median(ratios):8.3f}"
        print(line)


if __name__ == "__main__":
    main()
