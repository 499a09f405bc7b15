#!/usr/bin/python3
"""Simulates DHCP servers with configurable behaviour and defects.

    dhcp_server.py --interface lan0 --log FILE --servers JSON

One process simulates any number of servers on one link, so that a test controls the
time between the answers of two servers. A JSON list has one object per server, with
the fields of `Behaviour`. Each further line on the standard input replaces the list.
The servers remember the addresses that they granted before.

| class | subject |
|---|---|
| `Server` | decides the answer to a message and its delay; has no socket and no clock |
| `Link` | packet sockets; sends the frames of `dhcp_packets`, valid or not |
| `Program` | the loop, with the delayed answers |

The kernel of the namespace has the servers' addresses and answers ARP for them. An
unread UDP socket keeps the kernel from answering "port unreachable".

The log has one JSON object a line for each DHCP and ARP message, see `received`,
`sent` and `arp`. `time` is CLOCK_MONOTONIC in seconds, which all processes of the
machine share.

Each server numbers its clients, and the number decides the address. After a DECLINE
the client gets the next number. Only the server of that address answers INIT-REBOOT,
RENEWING and REBINDING; only the selected server answers SELECTING.
"""

from __future__ import annotations

import argparse
import dataclasses
import heapq
import ipaddress
import itertools
import json
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dhcp_defects import DEFECTS
from dhcp_packets import (
    ACK,
    ARP,
    BROADCAST_FLAG,
    BROADCAST_IP,
    BROADCAST_MAC,
    DECLINE,
    DISCOVER,
    IPV4,
    KINDS,
    NAK,
    OFFER,
    SERVER_PORT,
    Arp,
    NotDhcp,
    Reply,
    Request,
    address,
    header_field,
    mac_text,
    overload,
    parse,
    parse_arp,
    seconds,
    tagged,
)

STATES = ("discover", "selecting", "init-reboot", "renewing", "rebinding")
"""The states of `Request.state` that a server answers."""

OTHER_HOST = bytes.fromhex("02bdff000002")
"""Hardware address of the host with the addresses in `Behaviour.addresses_in_use`."""

# Linux, not in the socket module.
_SOL_PACKET, _PACKET_AUXDATA, _PACKET_QDISC_BYPASS, _CHECKSUM_PENDING = 263, 8, 20, 8


class InvalidBehaviour(Exception):
    """The description of a server is invalid."""


@dataclass(frozen=True)
class Behaviour:
    """The behaviour of a server; by the defaults it follows RFC 2131."""

    server: str
    """Address and server identifier (option 54)."""
    network: str = "198.51.100.0/24"
    first: int = 100
    """Index of the first granted address in the network."""
    router: str | None = None
    """Option 3; the server itself if None, no option if empty."""
    lease: int = 3600
    t1: int | None = None
    t2: int | None = None
    options: Mapping[int, bytes] = field(default_factory=dict)
    """Additional options, or replacements of 54, 51, 58, 59, 1 and 3."""
    file: tuple[int, ...] = ()
    """Options placed in the `file` field (option 52)."""
    sname: tuple[int, ...] = ()
    """Options placed in the `sname` field (option 52)."""
    silent: frozenset[str] = frozenset()
    """States in which the server does not answer."""
    delay: Mapping[str, float] = field(default_factory=dict)
    """Delay of the answer in seconds, by state."""
    nak: frozenset[str] = frozenset()
    """States in which the server answers with a NAK."""
    nak_by: str = "broadcast"
    """`broadcast`, as in RFC 2131, or `unicast`."""
    defect: str | None = None
    """Name of the defect of every OFFER and ACK, see dhcp_defects.py."""
    vlan: int | None = None
    """VLAN in the tag of each frame (IEEE 802.1Q); no tag if None. 0 is a priority tag."""
    addresses_in_use: frozenset[str] = frozenset()
    """Addresses for which another host on the link answers ARP."""

    @classmethod
    def parse(cls, description: Mapping[str, Any]) -> Behaviour:
        """Returns the behaviour of a JSON description, or raises `InvalidBehaviour`. The keys
        of `options` are decimal codes, the values hexadecimal."""
        known = {f.name for f in dataclasses.fields(cls)}
        values = dict(description)
        if unknown := values.keys() - known:
            raise InvalidBehaviour(f"no such fields: {', '.join(sorted(unknown))}")
        if "server" not in values:
            raise InvalidBehaviour("a server needs an address: server")
        options = values.get("options", {})
        values["options"] = {int(code): bytes.fromhex(value) for code, value in options.items()}
        for name in ("silent", "nak", "addresses_in_use"):
            values[name] = frozenset(values.get(name, ()))
        for name in ("file", "sname"):
            values[name] = tuple(values.get(name, ()))
        states = {*values["silent"], *values["nak"], *values.get("delay", {})}
        if unknown := states - {*STATES}:
            raise InvalidBehaviour(f"no such states: {', '.join(sorted(unknown))}")
        if values.get("defect") not in (None, *DEFECTS):
            raise InvalidBehaviour(f"no such defect: {values['defect']}")
        if values.get("nak_by", "broadcast") not in ("broadcast", "unicast"):
            raise InvalidBehaviour(f"nak_by is broadcast or unicast, not {values['nak_by']}")
        return cls(**values)

    def description(self) -> dict[str, Any]:
        """Returns the JSON description for `parse`."""
        values = dataclasses.asdict(self)
        values["options"] = {str(code): value.hex() for code, value in self.options.items()}
        return {k: sorted(v) if isinstance(v, frozenset) else v for k, v in values.items()}


class Server:
    """Decides the answers of one server."""

    def __init__(self, behaviour: Behaviour, mac: bytes):
        self.behaviour = behaviour
        self._mac = mac
        self._numbers: dict[bytes, int] = {}

    def address_of(self, chaddr: bytes) -> str:
        """Returns the address of a client."""
        number = self._numbers.setdefault(chaddr, max(self._numbers.values(), default=-1) + 1)
        network = ipaddress.ip_network(self.behaviour.network)
        return str(network[self.behaviour.first + number])

    def answer(self, request: Request) -> tuple[float, Reply] | None:
        """Returns the delay in seconds and the reply to a message."""
        behaviour, state = self.behaviour, request.state
        if request.destination not in (BROADCAST_IP, behaviour.server):
            return None
        if request.kind == DECLINE:
            if request.option_address(54) == behaviour.server:
                self._numbers[request.chaddr] = max(self._numbers.values(), default=-1) + 1
            return None
        if state not in STATES or state in behaviour.silent:
            return None
        if state == "selecting" and request.option_address(54) != behaviour.server:
            return None
        own = self.address_of(request.chaddr)
        requested = request.option_address(50) if request.ciaddr == "0.0.0.0" else request.ciaddr
        if state in behaviour.nak:
            reply = self._nak(request)
        elif request.kind == DISCOVER or state == "selecting" or requested == own:
            reply = self._grant(request, own)
        else:
            return None
        return behaviour.delay.get(state, 0.0), reply

    def _nak(self, request: Request) -> Reply:
        broadcast = self.behaviour.nak_by == "broadcast"
        reply = self._reply(request, NAK, "0.0.0.0", ((54, address(self.behaviour.server)),))
        if broadcast:
            return replace(reply, ethernet_destination=BROADCAST_MAC, destination=BROADCAST_IP)
        destination = request.ciaddr if request.ciaddr != "0.0.0.0" else BROADCAST_IP
        return replace(reply, ethernet_destination=request.chaddr, destination=destination)

    def _grant(self, request: Request, yiaddr: str) -> Reply:
        behaviour = self.behaviour
        router = behaviour.server if behaviour.router is None else behaviour.router
        options: dict[int, bytes] = {
            54: address(behaviour.server),
            51: seconds(behaviour.lease),
        }
        if behaviour.t1 is not None:
            options[58] = seconds(behaviour.t1)
        if behaviour.t2 is not None:
            options[59] = seconds(behaviour.t2)
        options[1] = ipaddress.ip_network(behaviour.network).netmask.packed
        if router:
            options[3] = address(router)
        options |= behaviour.options
        kind = OFFER if request.kind == DISCOVER else ACK
        reply = self._reply(request, kind, yiaddr, tuple(options.items()))
        reply = replace(
            reply,
            options=overload(reply.options, behaviour.file, behaviour.sname),
            file=header_field(reply.options, behaviour.file),
            sname=header_field(reply.options, behaviour.sname),
        )
        return DEFECTS[behaviour.defect](reply) if behaviour.defect else reply

    def _reply(
        self, request: Request, kind: int, yiaddr: str, options: tuple[tuple[int, bytes], ...]
    ) -> Reply:
        # RFC 2131, section 4.1: to ciaddr; else by broadcast if the flag is set; else to
        # yiaddr at the hardware address.
        if request.ciaddr != "0.0.0.0":
            destination, ethernet = request.ciaddr, request.chaddr
        elif request.flags & BROADCAST_FLAG:
            destination, ethernet = BROADCAST_IP, BROADCAST_MAC
        else:
            destination, ethernet = yiaddr, request.chaddr
        return Reply(
            ethernet_source=self._mac,
            ethernet_destination=ethernet,
            source=self.behaviour.server,
            destination=destination,
            xid=request.xid,
            flags=request.flags,
            ciaddr=request.ciaddr,
            yiaddr=yiaddr,
            chaddr=request.chaddr,
            options=((53, bytes([kind])), *options),
        )


# The log


def received(request: Request, when: float) -> dict[str, Any]:
    """Returns the log line of a client's message. `size` is that of the UDP payload;
    `broadcast` refers to the Ethernet frame."""
    return {
        "time": when,
        "direction": "received",
        "kind": KINDS.get(request.kind, str(request.kind)),
        "state": request.state,
        "op": request.op,
        "xid": request.xid,
        "secs": request.secs,
        "flags": request.flags,
        "ciaddr": request.ciaddr,
        "giaddr": request.giaddr,
        "chaddr": mac_text(request.chaddr),
        "options": {code: (request.option(code) or b"").hex() for code, _ in request.options},
        "size": request.size,
        "udp_checksum": request.udp_checksum,
        "source": request.source,
        "destination": request.destination,
        "ethernet_source": mac_text(request.ethernet_source),
        "ethernet_destination": mac_text(request.ethernet_destination),
        "broadcast": request.ethernet_destination == BROADCAST_MAC,
    }


def sent(reply: Reply, when: float, behaviour: Behaviour, state: str) -> dict[str, Any]:
    """Returns the log line of a server's message; `state` is that of the request."""
    return {
        "time": when,
        "direction": "sent",
        "kind": KINDS.get(reply.kind, "none"),
        "state": state,
        "server": behaviour.server,
        "defect": behaviour.defect,
        "xid": reply.xid,
        "flags": reply.flags,
        "ciaddr": reply.ciaddr,
        "yiaddr": reply.yiaddr,
        "chaddr": mac_text(reply.chaddr),
        "options": {code: value.hex() for code, value in reply.options},
        "destination": reply.destination,
        "ethernet_destination": mac_text(reply.ethernet_destination),
        "broadcast": reply.ethernet_destination == BROADCAST_MAC,
    }


def arp(message: Arp, when: float) -> dict[str, Any]:
    """Returns the log line of an ARP message."""
    return {
        "time": when,
        "direction": "received",
        "kind": "ARP",
        "operation": message.operation,
        "sender_mac": mac_text(message.sender_mac),
        "sender": message.sender,
        "target": message.target,
        "broadcast": message.ethernet_destination == BROADCAST_MAC,
    }


# The program


class Link:
    """The packet sockets on one interface."""

    def __init__(self, interface: str):
        self._bound = (interface, 0)
        self.messages = self._open(IPV4)
        self.arp = self._open(ARP)
        self.mac: bytes = self.messages.getsockname()[4]
        self._unread: socket.socket | None = None

    def bind_port(self, bind: bool) -> None:
        """Binds the server port, so that the kernel does not answer clients with "port
        unreachable", or releases it for a real server."""
        if self._unread and not bind:
            self._unread.close()
            self._unread = None
        if bind and not self._unread:
            unread = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            unread.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            unread.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, self._bound[0].encode())
            unread.bind(("", SERVER_PORT))
            self._unread = unread

    def _open(self, protocol: int) -> socket.socket:
        opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(protocol))
        opened.setsockopt(_SOL_PACKET, _PACKET_AUXDATA, 1)
        # The kernel installs the queue of a link some time after carrier.
        opened.setsockopt(_SOL_PACKET, _PACKET_QDISC_BYPASS, 1)
        opened.setblocking(False)
        opened.bind((self._bound[0], protocol))
        return opened

    @staticmethod
    def receive(source: socket.socket) -> tuple[bytes, bool] | None:
        """Returns the next frame, and whether its UDP checksum was offloaded. Returns None
        if no frame waits."""
        try:
            frame, ancillary, _, _ = source.recvmsg(4096, 128)
        except BlockingIOError:
            return None
        for level, kind, data in ancillary:
            if (level, kind) == (_SOL_PACKET, _PACKET_AUXDATA):
                return frame, bool(int.from_bytes(data[:4], sys.byteorder) & _CHECKSUM_PENDING)
        return frame, False

    def send(self, frame: bytes) -> None:
        self.messages.send(frame)


class Program:
    """Receives frames and sends replies when they are due."""

    def __init__(self, link: Link, log: Path):
        self._link = link
        self._log = log.open("a", buffering=1)
        self._servers: dict[str, Server] = {}
        self._answering: list[Server] = []
        self._pending: list[tuple[float, int, Reply, bytes, Behaviour, str]] = []
        self._sequence = itertools.count()

    def serve(self, line: str) -> None:
        """Replaces the servers by those of a JSON list, and drops delayed answers."""
        behaviours = [Behaviour.parse(description) for description in json.loads(line)]
        self._pending.clear()
        self._answering.clear()
        for behaviour in behaviours:
            server = self._servers.setdefault(behaviour.server, Server(behaviour, self._link.mac))
            server.behaviour = behaviour
            self._answering.append(server)
        self._link.bind_port(bool(behaviours))
        # The test waits for this line, after which the new servers are active.
        names = [behaviour.server for behaviour in behaviours]
        self._write(
            {"time": time.monotonic(), "direction": "none", "kind": "SERVING", "servers": names}
        )

    def run(self) -> None:
        commands = sys.stdin.fileno()
        sources = [self._link.messages, self._link.arp, commands]
        buffer = b""
        while True:
            ready, _, _ = select.select(sources, [], [], self._wait())
            if self._link.messages in ready:
                while got := self._link.receive(self._link.messages):
                    self._message(*got)
            if self._link.arp in ready:
                while got := self._link.receive(self._link.arp):
                    self._arp(got[0])
            if commands in ready:
                data = os.read(commands, 65536)
                if not data:
                    return
                *lines, buffer = (buffer + data).split(b"\n")
                for line in lines:
                    self.serve(line.decode())
            self._send_due()

    def _wait(self) -> float | None:
        return max(0.0, self._pending[0][0] - time.monotonic()) if self._pending else None

    def _message(self, frame: bytes, checksum_pending: bool) -> None:
        now = time.monotonic()
        try:
            request = parse(frame, checksum_pending)
        except NotDhcp:
            return
        for server in self._answering:
            if (answer := server.answer(request)) is not None:
                delay, reply = answer
                frame = tagged(reply.encode(), server.behaviour.vlan)
                waiting = (reply, frame, server.behaviour, request.state)
                heapq.heappush(self._pending, (now + delay, next(self._sequence), *waiting))
        # Answers without a delay are sent before the log is written.
        self._send_due(first=received(request, now))

    def _send_due(self, first: dict[str, Any] | None = None) -> None:
        lines = [first] if first else []
        while self._pending and self._pending[0][0] <= time.monotonic():
            _, _, reply, frame, behaviour, state = heapq.heappop(self._pending)
            self._link.send(frame)
            lines.append(sent(reply, time.monotonic(), behaviour, state))
        for line in lines:
            self._write(line)

    def _arp(self, frame: bytes) -> None:
        now = time.monotonic()
        try:
            message = parse_arp(frame)
        except NotDhcp:
            return
        in_use = {ip for server in self._answering for ip in server.behaviour.addresses_in_use}
        if message.operation == 1 and message.target in in_use:
            answer = Arp(
                OTHER_HOST, message.ethernet_source, 2, OTHER_HOST, message.target, message.sender
            )
            self._link.send(answer.encode(message.sender_mac))
        self._write(arp(message, now))

    def _write(self, line: dict[str, Any]) -> None:
        self._log.write(json.dumps(line) + "\n")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--interface", required=True, help="network interface")
    parser.add_argument("--log", type=Path, required=True, help="file for the log of messages")
    parser.add_argument("--servers", default="[]", help="JSON list of servers, see Behaviour")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        program = Program(Link(arguments.interface), arguments.log)
        program.serve(arguments.servers)
        program.run()
    except (InvalidBehaviour, json.JSONDecodeError) as error:
        print(f"dhcp_server.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
