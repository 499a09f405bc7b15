"""DHCPv4 in Ethernet frames, byte by byte: the messages of clients as they came,
and those of servers with everything that can be wrong with them.

Nothing here knows sockets or time. RFC 791, 768, 2131, 2132, 3396.
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
# BOOTP relays and some clients drop what is shorter (RFC 1542, section 2.1).
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
    """A frame that is no message of a DHCP client."""


def mac_text(mac: bytes) -> str:
    return mac.hex(":")


def checksum(data: bytes) -> int:
    """The Internet checksum (RFC 1071), 0 when `data` holds a right one."""
    if len(data) % 2:
        data += b"\0"
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


# Options


def address(*texts: str) -> bytes:
    """An option that is a list of IPv4 addresses."""
    return b"".join(socket.inet_aton(text) for text in texts)


def seconds(value: int) -> bytes:
    """An option that is a time: 51, 58, 59, 108."""
    return struct.pack("!I", value)


def classless_routes(*routes: tuple[str, str]) -> bytes:
    """Option 121 (RFC 3442): destination with prefix → gateway; a gateway 0.0.0.0
    means that the destination is on the link."""
    data = b""
    for destination, gateway in routes:
        network = ipaddress.ip_network(destination)
        significant = network.network_address.packed[: (network.prefixlen + 7) // 8]
        data += bytes([network.prefixlen]) + significant + socket.inet_aton(gateway)
    return data


def domain_names(*names: str) -> bytes:
    """Option 119 (RFC 3397): each name compressed against those before it
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
    """The options without an end; what is longer than 255 bytes in several parts
    of the same code (RFC 3396)."""
    data = b""
    for code, value in options:
        parts = [value[i : i + 255] for i in range(0, len(value), 255)] or [b""]
        data += b"".join(bytes([code, len(part)]) + part for part in parts)
    return data


def decode_options(data: bytes) -> Options:
    """The options in their order, parts of one code not joined.

    Raises `NotDhcp` for an option that goes past the end."""
    options = []
    at = 0
    while at < len(data) and data[at] != 255:
        if data[at] == 0:
            at += 1
            continue
        if at + 1 >= len(data) or at + 2 + data[at + 1] > len(data):
            raise NotDhcp(f"option {data[at]} goes past the end")
        end = at + 2 + data[at + 1]
        options.append((data[at], data[at + 2 : end]))
        at = end
    return tuple(options)


# What clients send


@dataclass(frozen=True)
class Request:
    """A client's message, with what the packets around it say."""

    ethernet_source: bytes
    ethernet_destination: bytes
    source: str
    destination: str
    udp_checksum: str
    """`ok`, `bad`, `none`, or `offloaded`: left to hardware that a virtual cable
    does not have."""
    size: int
    """Bytes of the UDP payload."""
    op: int
    xid: int
    secs: int
    flags: int
    ciaddr: str
    giaddr: str
    chaddr: bytes
    options: Options

    def option(self, code: int) -> bytes | None:
        """The parts of an option, joined."""
        parts = [value for key, value in self.options if key == code]
        return b"".join(parts) if parts else None

    def option_address(self, code: int) -> str | None:
        """An option that is one address."""
        value = self.option(code)
        return socket.inet_ntoa(value) if value is not None and len(value) == 4 else None

    @property
    def kind(self) -> int:
        return (self.option(53) or b"\0")[0]

    @property
    def state(self) -> str:
        """What the client asks for: `discover`, `selecting`, `init-reboot`,
        `renewing`, `rebinding` (RFC 2131, section 4.3.2), or the kind."""
        if self.kind != REQUEST:
            return KINDS.get(self.kind, "unknown").lower()
        if self.option(54) is not None:
            return "selecting"
        if self.ciaddr == "0.0.0.0":
            return "init-reboot"
        return "rebinding" if self.destination == BROADCAST_IP else "renewing"


def parse(frame: bytes, checksum_pending: bool = False) -> Request:
    """Reads an Ethernet frame with a message to the server port.

    Raises `NotDhcp` for everything else."""
    if frame[12:14] != b"\x08\x00" or len(frame) < ETHERNET + 28:
        raise NotDhcp("no IPv4")
    packet = frame[ETHERNET:]
    header = 4 * (packet[0] & 15)
    total = int.from_bytes(packet[2:4], "big")
    if packet[9] != socket.IPPROTO_UDP or int.from_bytes(packet[6:8], "big") & 0x3FFF:
        raise NotDhcp("no whole UDP datagram")
    datagram = packet[header:total]
    if len(datagram) < 8 or int.from_bytes(datagram[2:4], "big") != SERVER_PORT:
        raise NotDhcp("not to the server port")
    promised = int.from_bytes(datagram[4:6], "big")
    if total > len(packet) or promised > len(datagram):
        raise NotDhcp("shorter than its headers promise")
    payload = datagram[8:promised]
    if len(payload) < _BOOTP.size:
        raise NotDhcp(f"{len(payload)} bytes are no DHCP message")
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
        udp_checksum=_judge(packet, datagram, checksum_pending),
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


def _judge(packet: bytes, datagram: bytes, pending: bool) -> str:
    if pending:
        return "offloaded"
    if datagram[6:8] == b"\0\0":
        return "none"
    return "ok" if checksum(_pseudo(packet, len(datagram)) + datagram) == 0 else "bad"


def _pseudo(packet: bytes, length: int) -> bytes:
    """The pseudo header that the UDP checksum covers too (RFC 768)."""
    return packet[12:20] + struct.pack("!BBH", 0, socket.IPPROTO_UDP, length)


# What servers send


@dataclass(frozen=True)
class Reply:
    """A server's message and the packets around it; every field can be made
    wrong by itself."""

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
    """What follows the options."""
    padded: bool = True
    cut: int | None = None
    """Size of the UDP payload, if it is cut off."""
    ip_checksum_error: int = 0
    udp_checksum_error: int = 0
    udp_length_error: int = 0
    """Bytes that the UDP header promises too many."""

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
        """The Ethernet frame."""
        payload = self.payload()
        length = 8 + len(payload)
        head = struct.pack("!BBHHHBBH", 0x45, 0x10, 20 + length, 0, 0, 64, socket.IPPROTO_UDP, 0)
        packet = head + socket.inet_aton(self.source) + socket.inet_aton(self.destination)
        sum_ip = checksum(packet) ^ self.ip_checksum_error
        packet = packet[:10] + struct.pack("!H", sum_ip) + packet[12:]
        promised = length + self.udp_length_error
        udp = struct.pack("!HHHH", SERVER_PORT, CLIENT_PORT, promised, 0)
        # Right for the length promised, so that only one thing is wrong; 0 would
        # mean that there is none.
        covered = (udp + payload)[:promised].ljust(promised, b"\0")
        sum_udp = (checksum(_pseudo(packet, promised) + covered) or 0xFFFF) ^ (
            self.udp_checksum_error
        )
        udp = udp[:6] + struct.pack("!H", sum_udp)
        ethernet = self.ethernet_destination + self.ethernet_source + b"\x08\x00"
        return ethernet + packet + udp + payload


def overload(options: Options, file: Sequence[int], sname: Sequence[int]) -> Options:
    """What remains in the option field when the options named in `file` and `sname`
    are moved there, with option 52 that says so."""
    moved = {*file, *sname}
    value = (1 if file else 0) | (2 if sname else 0)
    rest = tuple(option for option in options if option[0] not in moved)
    return (*rest, (52, bytes([value]))) if value else options


def header_field(options: Options, codes: Sequence[int]) -> bytes:
    """The header field that holds these options, for `overload`."""
    chosen = [option for option in options if option[0] in codes]
    return encode_options(chosen) + b"\xff" if codes else b""


# ARP (RFC 826), which shows how clients look for other users of an address


@dataclass(frozen=True)
class Arp:
    """A message; `encode` wants the one field that no test asks for."""

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
    """Reads an ARP message for IPv4 over Ethernet; raises `NotDhcp` for others."""
    if len(frame) < 42 or frame[12:20] != b"\x08\x06\x00\x01\x08\x00\x06\x04":
        raise NotDhcp("no ARP for IPv4")
    return Arp(
        ethernet_destination=frame[:6],
        ethernet_source=frame[6:12],
        operation=int.from_bytes(frame[20:22], "big"),
        sender_mac=frame[22:28],
        sender=socket.inet_ntoa(frame[28:32]),
        target=socket.inet_ntoa(frame[38:42]),
    )
