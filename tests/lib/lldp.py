"""A switch that says by LLDP which port a cable is in (IEEE 802.1AB-2016)."""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Sequence

_GROUP = bytes.fromhex("0180c200000e")
"""Nearest bridge."""
_ETHERTYPE = 0x88CC
_MAC = bytes.fromhex("0255000000fe")
_IEEE_802_1 = bytes.fromhex("0080c2")


def frame(
    system: str, port: str, *, ttl: int = 120, untagged: int = 0, tagged: Sequence[int] = ()
) -> bytes:
    """Returns an Ethernet frame with the TLVs of a usual switch."""
    tlvs = [
        (1, b"\4" + _MAC),  # Chassis ID: a MAC address
        (2, b"\5" + port.encode()),  # Port ID: an interface name
        (3, struct.pack("!H", ttl)),
        (4, b"to a build host"),
        (5, system.encode()),
        (7, struct.pack("!HH", 4, 4)),  # a bridge
    ]
    if untagged:
        tlvs.append((127, _IEEE_802_1 + b"\1" + struct.pack("!H", untagged)))
    for vlan in tagged:
        name = f"vlan{vlan}".encode()
        value = struct.pack("!HB", vlan, len(name)) + name
        tlvs.append((127, _IEEE_802_1 + b"\3" + value))
    tlvs.append((0, b""))
    payload = b"".join(struct.pack("!H", kind << 9 | len(value)) + value for kind, value in tlvs)
    return (_GROUP + _MAC + struct.pack("!H", _ETHERTYPE) + payload).ljust(60, b"\0")


def main() -> None:
    """Sends a frame, given in hexadecimal, by an interface."""
    interface, text = sys.argv[1:]
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sender:
        sender.bind((interface, 0))
        sender.send(bytes.fromhex(text))


if __name__ == "__main__":
    main()
