"""Defines defects of DHCP servers, each as a change of a valid message.

| table | defects |
|---|---|
| `OFFER_DEFECTS` | of an OFFER, which a client has to survive when a valid one follows |
| `LEASE_DEFECTS` | of a lease that no host can use, in OFFER and ACK |

Each change makes one defect only.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Callable
from dataclasses import replace

from dhcp_packets import Reply, address, seconds

Change = Callable[[Reply], Reply]


def _with(code: int, value: bytes) -> Change:
    """Sets the value of an option, which keeps its place, or adds the option."""

    def change(reply: Reply) -> Reply:
        options = [(key, value if key == code else old) for key, old in reply.options]
        if reply.option(code) is None:
            options.append((code, value))
        return replace(reply, options=tuple(options))

    return change


def _without(code: int) -> Change:
    def change(reply: Reply) -> Reply:
        return replace(reply, options=tuple(o for o in reply.options if o[0] != code))

    return change


def _address(text: str) -> Change:
    return lambda reply: replace(reply, yiaddr=text)


def _in_network(which: Callable[[ipaddress.IPv4Network], ipaddress.IPv4Address]) -> Change:
    """Sets an address that the network of the message does not allow for a host."""

    def change(reply: Reply) -> Reply:
        mask = ipaddress.IPv4Address(reply.option(1) or b"\xff\xff\xff\0")
        network = ipaddress.IPv4Network(f"{reply.yiaddr}/{mask}", strict=False)
        return replace(reply, yiaddr=str(which(network)))

    return change


def _both(*changes: Change) -> Change:
    def change(reply: Reply) -> Reply:
        for each in changes:
            reply = each(reply)
        return reply

    return change


def _twice(reply: Reply) -> Reply:
    """Repeats every option except the message type. The parts joined by RFC 3396 have
    wrong lengths."""
    doubled = [o for o in reply.options for _ in range(1 if o[0] == 53 else 2)]
    return replace(reply, options=tuple(doubled))


_HOLES = address("255.0.255.0")
# Every byte is too large for the length of an option here.
_GARBAGE = bytes(range(0xC0, 0x100)) * 2

OFFER_DEFECTS: dict[str, Change] = {
    "ends inside an option": lambda r: replace(r, end=b"\x2b", padded=False),
    "length past the end": lambda r: replace(r, end=b"\x2b\xc8\x01\x02", padded=False),
    "zero-length 54": _with(54, b""),
    "zero-length 51": _with(51, b""),
    "zero-length 1": _with(1, b""),
    "zero-length 3": _with(3, b""),
    "zero-length 53": _with(53, b""),
    "overload with garbage": _both(
        _with(52, b"\x03"), lambda r: replace(r, file=_GARBAGE, sname=_GARBAGE[:64])
    ),
    "overload 255": _with(52, b"\xff"),
    "1 kB of options": _with(43, bytes(1000)),
    "repeated options": _twice,
    "wrong xid": lambda r: replace(r, xid=r.xid ^ 0x5A5A5A5A),
    "wrong chaddr": lambda r: replace(r, chaddr=r.chaddr[:5] + bytes([r.chaddr[5] ^ 0xFF])),
    "wrong op": lambda r: replace(r, op=1),
    "wrong hlen": lambda r: replace(r, hlen=255),
    "wrong magic": lambda r: replace(r, cookie=b"\x63\x82\x53\x36"),
    "wrong IP checksum": lambda r: replace(r, ip_checksum_error=0x5555),
    "wrong UDP checksum": lambda r: replace(r, udp_checksum_error=0x5555),
    "UDP length too small": lambda r: replace(r, udp_length_error=-100),
    "UDP length too big": lambda r: replace(r, udp_length_error=200),
    "100-byte packet": lambda r: replace(r, cut=100),
    "no message type": _without(53),
    "no server id": _without(54),
    "yiaddr 0.0.0.0": _address("0.0.0.0"),
    "yiaddr 255.255.255.255": _address("255.255.255.255"),
    "yiaddr 224.0.0.5": _address("224.0.0.5"),
    "yiaddr 127.0.0.1": _address("127.0.0.1"),
    "no lease time": _without(51),
    "zero lease time": _with(51, seconds(0)),
    "no netmask": _without(1),
    "netmask with holes": _with(1, _HOLES),
}

READABLE_DEFECTS = frozenset(
    {
        "ends inside an option",
        "length past the end",
        "zero-length 3",
        "overload with garbage",
        "overload 255",
        "1 kB of options",
        "repeated options",
    }
)
"""Defects of `OFFER_DEFECTS` that leave the required options readable. A client may request
such an OFFER; the server then grants it."""

LEASE_DEFECTS: dict[str, Change] = {
    "address in 0/8": _address("0.1.2.3"),
    "address in 127/8": _address("127.1.2.3"),
    "address in 224/4": _address("224.1.2.3"),
    "address in 240/4": _address("240.1.2.3"),
    "address 255.255.255.255": _address("255.255.255.255"),
    "broadcast address of its network": _in_network(lambda n: n.broadcast_address),
    "address of its network": _in_network(lambda n: n.network_address),
    "netmask missing": _without(1),
    "netmask with holes in it": _with(1, _HOLES),
    "netmask 0.0.0.0": _with(1, address("0.0.0.0")),
    "gateway with the leased address": lambda r: _with(3, address(r.yiaddr))(r),
    "lease of 0 seconds": _with(51, seconds(0)),
}

DEFECTS: dict[str, Change] = {**OFFER_DEFECTS, **LEASE_DEFECTS}
