"""Parses DHCPv4 messages of clients in Ethernet frames; encodes those of servers, with
defects.

The module has no sockets and no clock.

Sources: RFC 791 (IPv4), RFC 768 (UDP), RFC 2131, RFC 2132 and RFC 3396 (DHCP).
"""

from __future__ import annotations

import ipaddress
import socket
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

BROADCAST_MAC = b"\xff" * 6
BROADCAST_IP = "255.255.255.255"
BROADCAST_FLAG = 0x8000
COOKIE = b"\x63\x82\x53\x63"
SERVER_PORT, CLIENT_PORT = 67, 68

ETHERNET, IPV4, ARP = 14, 0x0800, 0x0806
_BOOTP = struct.Struct("!4BIHH4s4s4s4s16s64s128s4s")
# BOOTP relays and some clients drop shorter messages (RFC 1542, section 2.1).
_MINIMUM = 300

DISCOVER, OFFER, REQUEST, DECLINE, ACK, NAK, RELEASE, INFORM = range(1, 9)
KINDS = {
    DISCOVER: "DISCOVER",
    OFFER: "OFFER",
    REQUEST: "REQUEST",
    DECLINE: "DECLINE",
    ACK: "ACK",
    NAK: "NAK",
    RELEASE: "RELEASE",
    INFORM: "INFORM",
}

Options = tuple[tuple[int, bytes], ...]


class NotDhcp(Exception):
    """The frame is not a message of a DHCP client."""


def mac_text(mac: bytes) -> str:
    return mac.hex(":")


def checksum(data: bytes) -> int:
    """Returns the Internet checksum (RFC 1071); 0 if `data` holds a correct one."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


# Options


def address(*texts: str) -> bytes:
    """Encodes a list of IPv4 addresses."""
    return b"".join(socket.inet_aton(text) for text in texts)


def seconds(value: int) -> bytes:
    """Encodes a time: options 51, 58, 59, 108."""
    return struct.pack("!I", value)


def classless_routes(*routes: tuple[str, str]) -> bytes:
    """Encodes option 121 (RFC 3442) from pairs of destination and gateway. The gateway
    0.0.0.0 means that the destination is on the link."""
    data = b""
    for destination, gateway in routes:
        network = ipaddress.ip_network(destination)
        significant = network.network_address.packed[: (network.prefixlen + 7) // 8]
        data += bytes([network.prefixlen]) + significant + socket.inet_aton(gateway)
    return data


def domain_names(*names: str) -> bytes:
    """Encodes option 119 (RFC 3397), with each name compressed against the earlier ones
    (RFC 1035, section 4.1.4)."""
    data = b""
    known: dict[str, int] = {}
    for name in names:
        labels = name.split(".")
        while labels:
            rest = ".".join(labels)
            if rest in known:
                data += struct.pack("!H", 0xC000 | known[rest])
                break
            known[rest] = len(data)
            label = labels.pop(0).encode()
            data += bytes([len(label)]) + label
        else:
            data += b"\0"
    return data


def encode_options(options: Iterable[tuple[int, bytes]]) -> bytes:
    """Encodes options without an end mark. Values longer than 255 bytes are split into
    several parts (RFC 3396)."""
    data = b""
    for code, value in options:
        parts = [value[i : i + 255] for i in range(0, len(value), 255)] or [b""]
        data += b"".join(bytes([code, len(part)]) + part for part in parts)
    return data


def decode_options(data: bytes) -> Options:
    """Returns the options in order, with separate parts of the same code.

    Raises `NotDhcp` if an option exceeds the data."""
    options = []
    at = 0
    while at < len(data) and data[at] != 255:
        if data[at] == 0:
            at += 1
            continue
        if at + 1 >= len(data) or at + 2 + data[at + 1] > len(data):
            raise NotDhcp(f"option {data[at]} exceeds the message")
        end = at + 2 + data[at + 1]
        options.append((data[at], data[at + 2 : end]))
        at = end
    return tuple(options)


# Messages of clients


@dataclass(frozen=True)
class Request:
    """A client's message with fields of its Ethernet, IPv4 and UDP headers."""

    ethernet_source: bytes
    ethernet_destination: bytes
    source: str
    destination: str
    udp_checksum: str
    """`ok`, `bad`, `none`, or `offloaded`: left to hardware, which veth pairs lack."""
    size: int
    """Length of the UDP payload in bytes."""
    op: int
    xid: int
    secs: int
    flags: int
    ciaddr: str
    giaddr: str
    chaddr: bytes
    options: Options

    def option(self, code: int) -> bytes | None:
        """Returns the joined parts of an option."""
        parts = [value for key, value in self.options if key == code]
        return b"".join(parts) if parts else None

    def option_address(self, code: int) -> str | None:
        """Returns an option that holds one address."""
        value = self.option(code)
        return socket.inet_ntoa(value) if value is not None and len(value) == 4 else None

    @property
    def kind(self) -> int:
        return (self.option(53) or b"\0")[0]

    @property
    def state(self) -> str:
        """`discover`, or for a REQUEST the client's state: `selecting`, `init-reboot`,
        `renewing`, `rebinding` (RFC 2131, section 4.3.2). Else the message type."""
        if self.kind != REQUEST:
            return KINDS.get(self.kind, "unknown").lower()
        if self.option(54) is not None:
            return "selecting"
        if self.ciaddr == "0.0.0.0":
            return "init-reboot"
        return "rebinding" if self.destination == BROADCAST_IP else "renewing"


def parse(frame: bytes, checksum_pending: bool = False) -> Request:
    """Parses an Ethernet frame with a message to the server port.

    Raises `NotDhcp` for any other frame."""
    if frame[12:14] != b"\x08\x00" or len(frame) < ETHERNET + 28:
        raise NotDhcp("not IPv4")
    packet = frame[ETHERNET:]
    header = 4 * (packet[0] & 15)
    total = int.from_bytes(packet[2:4], "big")
    if packet[9] != socket.IPPROTO_UDP or int.from_bytes(packet[6:8], "big") & 0x3FFF:
        raise NotDhcp("not an unfragmented UDP datagram")
    datagram = packet[header:total]
    if len(datagram) < 8 or int.from_bytes(datagram[2:4], "big") != SERVER_PORT:
        raise NotDhcp("not to the server port")
    udp_length = int.from_bytes(datagram[4:6], "big")
    if total > len(packet) or udp_length > len(datagram):
        raise NotDhcp("shorter than the lengths in its headers")
    payload = datagram[8:udp_length]
    if len(payload) < _BOOTP.size:
        raise NotDhcp(f"{len(payload)} bytes are not a DHCP message")
    (op, _, hlen, _, xid, secs, flags, ciaddr, _, _, giaddr, chaddr, _, _, cookie) = (
        _BOOTP.unpack_from(payload)
    )
    if cookie != COOKIE:
        raise NotDhcp("no DHCP cookie")
    return Request(
        ethernet_destination=frame[:6],
        ethernet_source=frame[6:12],
        source=socket.inet_ntoa(packet[12:16]),
        destination=socket.inet_ntoa(packet[16:20]),
        udp_checksum=_checksum_state(packet, datagram, checksum_pending),
        size=len(payload),
        op=op,
        xid=xid,
        secs=secs,
        flags=flags,
        ciaddr=socket.inet_ntoa(ciaddr),
        giaddr=socket.inet_ntoa(giaddr),
        chaddr=chaddr[: min(hlen, 16)],
        options=decode_options(payload[_BOOTP.size :]),
    )


def _checksum_state(packet: bytes, datagram: bytes, pending: bool) -> str:
    if pending:
        return "offloaded"
    if datagram[6:8] == b"\0\0":
        return "none"
    return "ok" if checksum(_pseudo(packet, len(datagram)) + datagram) == 0 else "bad"


def _pseudo(packet: bytes, length: int) -> bytes:
    """Returns the pseudo header that the UDP checksum covers (RFC 768)."""
    return packet[12:20] + struct.pack("!BBH", 0, socket.IPPROTO_UDP, length)


# Messages of servers


@dataclass(frozen=True)
class Reply:
    """A server's message with its headers. Each field can have a wrong value by itself."""

    ethernet_source: bytes
    ethernet_destination: bytes
    source: str
    destination: str
    xid: int
    flags: int
    ciaddr: str
    yiaddr: str
    chaddr: bytes
    options: Options
    op: int = 2
    hlen: int = 6
    cookie: bytes = COOKIE
    sname: bytes = b""
    file: bytes = b""
    end: bytes = b"\xff"
    """Bytes after the options."""
    padded: bool = True
    cut: int | None = None
    """Length of the truncated UDP payload in bytes."""
    ip_checksum_error: int = 0
    udp_checksum_error: int = 0
    udp_length_error: int = 0
    """Difference of the length in the UDP header from the correct one, in bytes."""

    def option(self, code: int) -> bytes | None:
        return next((value for key, value in self.options if key == code), None)

    @property
    def kind(self) -> int:
        return (self.option(53) or b"\0")[0]

    def payload(self) -> bytes:
        data = _BOOTP.pack(
            self.op,
            1,
            self.hlen,
            0,
            self.xid,
            0,
            self.flags,
            socket.inet_aton(self.ciaddr),
            socket.inet_aton(self.yiaddr),
            b"",
            b"",
            self.chaddr,
            self.sname,
            self.file,
            self.cookie,
        )
        data += encode_options(self.options) + self.end
        if self.padded:
            data = data.ljust(_MINIMUM, b"\0")
        return data[: self.cut]

    def encode(self) -> bytes:
        """Returns the Ethernet frame."""
        payload = self.payload()
        length = 8 + len(payload)
        head = struct.pack("!BBHHHBBH", 0x45, 0x10, 20 + length, 0, 0, 64, socket.IPPROTO_UDP, 0)
        packet = head + socket.inet_aton(self.source) + socket.inet_aton(self.destination)
        sum_ip = checksum(packet) ^ self.ip_checksum_error
        packet = packet[:10] + struct.pack("!H", sum_ip) + packet[12:]
        udp_length = length + self.udp_length_error
        udp = struct.pack("!HHHH", SERVER_PORT, CLIENT_PORT, udp_length, 0)
        # The checksum matches the length in the header, so that a wrong length is the only
        # defect. Zero would mean "no checksum".
        covered = (udp + payload)[:udp_length].ljust(udp_length, b"\0")
        sum_udp = (checksum(_pseudo(packet, udp_length) + covered) or 0xFFFF) ^ (
            self.udp_checksum_error
        )
        udp = udp[:6] + struct.pack("!H", sum_udp)
        ethernet = self.ethernet_destination + self.ethernet_source + b"\x08\x00"
        return ethernet + packet + udp + payload


def tagged(frame: bytes, vlan: int | None) -> bytes:
    """Returns the Ethernet frame with the tag of a VLAN, if there is one (IEEE 802.1Q)."""
    if vlan is None:
        return frame
    return frame[:12] + struct.pack("!HH", 0x8100, vlan) + frame[12:]


def overload(options: Options, file: Sequence[int], sname: Sequence[int]) -> Options:
    """Returns the option field without the options placed in `file` and `sname`, and with
    option 52 that declares them."""
    moved = {*file, *sname}
    value = (1 if file else 0) | (2 if sname else 0)
    rest = tuple(option for option in options if option[0] not in moved)
    return (*rest, (52, bytes([value]))) if value else options


def header_field(options: Options, codes: Sequence[int]) -> bytes:
    """Returns the header field with these options, see `overload`."""
    chosen = [option for option in options if option[0] in codes]
    return encode_options(chosen) + b"\xff" if codes else b""


# ARP (RFC 826)


@dataclass(frozen=True)
class Arp:
    """An ARP message without the target hardware address, an argument of `encode`."""

    ethernet_source: bytes
    ethernet_destination: bytes
    operation: int
    sender_mac: bytes
    sender: str
    target: str

    def encode(self, target_mac: bytes) -> bytes:
        ethernet = self.ethernet_destination + self.ethernet_source + b"\x08\x06"
        head = struct.pack("!HHBBH", 1, IPV4, 6, 4, self.operation)
        sender = self.sender_mac + socket.inet_aton(self.sender)
        return ethernet + head + sender + target_mac + socket.inet_aton(self.target)


def parse_arp(frame: bytes) -> Arp:
    """Parses an ARP message for IPv4 over Ethernet, or raises `NotDhcp`."""
    if len(frame) < 42 or frame[12:20] != b"\x08\x06\x00\x01\x08\x00\x06\x04":
        raise NotDhcp("not ARP for IPv4")
    return Arp(
        ethernet_destination=frame[:6],
        ethernet_source=frame[6:12],
        operation=int.from_bytes(frame[20:22], "big"),
        sender_mac=frame[22:28],
        sender=socket.inet_ntoa(frame[28:32]),
        target=socket.inet_ntoa(frame[38:42]),
    )
