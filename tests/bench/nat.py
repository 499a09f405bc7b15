#!/usr/bin/env python3
"""Measures the cost of NAT: natd's tables, one masquerade rule, and the rules of
systemd-networkd, libvirt and Docker.

    sudo tests/bench/nat.py [--rounds N] [--seconds S] [--sets NAMES] [--json FILE]
    tests/bench/nat.py --write docs/nat-cost.md FILE

A machine, a host with br0 and br1, and a server are network namespaces with veth pairs
between them. Each round measures every rule set once, in random order, in the same
namespaces and without connections of the previous set. The ratio to the masquerade rule
of the same round is compared: load affects all rule sets alike. nft and iptables come from
the system lane's root (`make check-system` makes it), else from this machine.

Table bridge buildos needs a kernel with NFT_BRIDGE_META, which tests/bench/nat-guest has.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

_TOP = Path(__file__).resolve().parents[2]
sys.path.append(str(_TOP / "image"))

from nat_report import Results, Round, document, figures  # noqa: E402
from nat_rules import MACHINE, MACHINE_MAC, PORT, Rules, rule_sets  # noqa: E402
from simlan.namespace import Namespace  # noqa: E402

_ROOT = _TOP / "build/roots/host"
_HOST_INSIDE = "172.23.0.1"
_HOST_OUTSIDE, _SERVER = "198.51.100.2", "198.51.100.1"
_CONNECT, _BULK = 7001, 7002
_MEASUREMENTS = ("connections", "bulk")


def _nft() -> list[str]:
    """Returns the prefix of command lines of nft and iptables; empty without nft."""
    if (_ROOT / "usr/sbin/nft").exists():
        return ["chroot", str(_ROOT)]
    return ["env"] if shutil.which("nft") else []


class Network:
    """Machine, host and server, with the processes that measure."""

    def __init__(self) -> None:
        self._namespaces = {name: Namespace() for name in ("machine", "host", "server")}
        pids = {name: namespace.pid for name, namespace in self._namespaces.items()}
        host = f"""
        ip link add br0 type bridge stp_state 0 forward_delay 0
        ip link add br1 type bridge stp_state 0 forward_delay 0
        ip link add {PORT} type veth peer name eth0 address {MACHINE_MAC} netns {pids["machine"]}
        ip link add eth0 type veth peer name eth0 netns {pids["server"]}
        ip link set {PORT} master br1 up
        ip link set eth0 master br0 up
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
        self._run("host", ["sh", "-euc", host])
        for name, address, route in (
            ("machine", f"{MACHINE}/16", f"default via {_HOST_INSIDE}"),
            # The route of answers for rule sets without NAT.
            ("server", f"{_SERVER}/24", f"172.23.0.0/16 via {_HOST_OUTSIDE}"),
        ):
            script = f"ip address add {address} dev eth0; ip link set eth0 up"
            self._run(name, ["sh", "-euc", f"{script}; ip route add {route}"])
        for end in ("connections-server", "bulk-server"):
            assert self._start("server", end).readline() == "ready\n"
        self._client = self._conversation("machine", "client")
        self._flush = self._conversation("host", "flush")

    def load(self, rules: Rules) -> None:
        """Replaces the rules, and removes all connections."""
        self._run("host", [*_nft(), "nft", "flush", "ruleset"])
        for command, text in rules.parts:
            self._run("host", [*_nft(), *command], stdin=text)
        answer = self._flush("")
        assert answer == "0\n", f"connections are not removed: {answer}"

    def measure(self, measurement: str, seconds: float) -> float:
        return float(self._client(f"{measurement} {seconds}"))

    def close(self) -> None:
        for namespace in self._namespaces.values():
            namespace.close()

    def _run(self, name: str, command: list[str], stdin: str = "") -> str:
        return self._namespaces[name].run(command, stdin=stdin)

    def _start(self, name: str, end: str) -> IO[str]:
        return self._process(name, end)[1]

    def _process(self, name: str, end: str) -> tuple[IO[str], IO[str]]:
        process = self._namespaces[name].start(
            [sys.executable, __file__, "--end", end], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdin and process.stdout
        return process.stdin, process.stdout

    def _conversation(self, name: str, end: str) -> Callable[[str], str]:
        """Starts an end that answers each line with a line."""
        requests, answers = self._process(name, end)

        def ask(line: str) -> str:
            requests.write(line + "\n")
            requests.flush()
            return answers.readline()

        return ask


# The ends of each measurement.


def _listen(port: int) -> socket.socket:
    server = socket.socket()
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind((_SERVER, port))
    server.listen(4096)
    print("ready", flush=True)
    return server


def _connections_server() -> None:
    server = _listen(_CONNECT)
    # The kernel has accepted the connection already.
    while True:
        server.accept()[0].close()


def _connections(seconds: float) -> float:
    """Returns sequential connections per second."""
    linger = b"\1\0\0\0\0\0\0\0"  # RST at close: no port stays in TIME_WAIT.
    where = (_SERVER, _CONNECT)
    count, began = 0, time.monotonic()
    while time.monotonic() < began + seconds:
        for _ in range(20):
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            client.connect(where)
            client.close()
        count += 20
    return count / (time.monotonic() - began)


def _bulk_server() -> None:
    server = _listen(_BULK)
    buffer = bytearray(1 << 20)
    while True:
        connection, _peer = server.accept()
        with connection:
            # MSG_TRUNC counts bytes without copying them.
            while connection.recv_into(buffer, 0, socket.MSG_TRUNC):
                pass


def _bulk(seconds: float) -> float:
    """Returns gigabits per second over one connection."""
    data = bytes(1 << 20)
    with socket.create_connection((_SERVER, _BULK)) as connection:
        sent, began = 0, time.monotonic()
        while time.monotonic() < began + seconds:
            sent += connection.send(data)
        return sent * 8 / (time.monotonic() - began) / 1e9


def _client() -> None:
    """Measures what each line names, for its time."""
    measure = {"connections": _connections, "bulk": _bulk}
    for line in sys.stdin:
        name, seconds = line.split()
        # The first packets resolve addresses.
        measure[name](0.02)
        print(measure[name](float(seconds)), flush=True)


def _flush() -> None:
    """Removes all tracked connections, and prints the error number or 0."""
    netfilter, connections, delete = 12, 1, 2  # linux/netfilter/nfnetlink_conntrack.h
    request, acknowledge = 1, 4
    message = (connections << 8) | delete
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, netfilter) as kernel:
        for _ in sys.stdin:
            kernel.send(struct.pack("=IHHIIBBH", 20, message, request | acknowledge, 1, 0, 0, 0, 0))
            print(-struct.unpack_from("=i", kernel.recv(4096), 16)[0], flush=True)


_ENDS = {
    "connections-server": _connections_server,
    "bulk-server": _bulk_server,
    "client": _client,
    "flush": _flush,
}


def _measure(sets: list[Rules], rounds: int, seconds: float) -> list[Round]:
    network = Network()
    results: list[Round] = []
    try:
        for number in range(rounds):
            values: Round = {measurement: {} for measurement in _MEASUREMENTS}
            for rules in random.sample(sets, len(sets)):
                network.load(rules)
                for measurement in _MEASUREMENTS:
                    values[measurement][rules.name] = network.measure(measurement, seconds)
            results.append(values)
            print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
    finally:
        network.close()
    return results


def _machine() -> str:
    """Returns the processors of this machine."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return f"{len(os.sched_getaffinity(0))} × {line.split(':', 1)[1].strip()}"
    return "an unknown processor"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [rules.name for rules in rule_sets()]
    parser.add_argument("results", nargs="*", type=Path, help="with --write: files of --json")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each measurement")
    parser.add_argument("--sets", default=",".join(names), help="rule sets beside `bare`")
    parser.add_argument("--json", type=Path, help="write all values to the file")
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the page of results")
    parser.add_argument("--command", default="", help="command of the page")
    parser.add_argument("--end", choices=_ENDS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.end:
        _ENDS[options.end]()
        return
    if options.write:
        page = document(Results.read(options.results), options.command, _machine())
        options.write.write_text(page)
        return
    assert _nft(), f"no nft on this machine and no {_ROOT}: make check-system makes it"
    chosen = {"bare", *options.sets.split(",")}
    if unknown := chosen - set(names):
        sys.exit(f"{', '.join(sorted(unknown))}: choose from {', '.join(names)}")
    sets = [rules for rules in rule_sets() if rules.name in chosen]
    results = Results(platform.release(), _measure(sets, options.rounds, options.seconds))
    if options.json:
        results.write(options.json)
    print(figures(results))


if __name__ == "__main__":
    main()
