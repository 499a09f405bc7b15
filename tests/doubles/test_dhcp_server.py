"""Tests the simulated DHCP servers, their defects and their log."""

from __future__ import annotations

import json
import socket
import struct
from dataclasses import replace
from pathlib import Path

import pytest
from dhcp_defects import LEASE_DEFECTS, OFFER_DEFECTS, READABLE_DEFECTS
from dhcp_double import DhcpDouble
from dhcp_packets import (
    ACK,
    BROADCAST_IP,
    BROADCAST_MAC,
    COOKIE,
    DECLINE,
    DISCOVER,
    NAK,
    OFFER,
    REQUEST,
    NotDhcp,
    Reply,
    Request,
    address,
    checksum,
    classless_routes,
    decode_options,
    domain_names,
    encode_options,
    parse,
    parse_arp,
)
from dhcp_server import STATES, Behaviour, InvalidBehaviour, Server
from simlan.lan import Lan
from simlan.wait import wait_for

MAC = bytes.fromhex("02bd00000001")
SERVER_MAC = bytes.fromhex("02bd0000ffff")


def request(kind: int, *options: tuple[int, bytes], **fields: object) -> Request:
    """Returns a client's message."""
    message = Request(
        ethernet_source=MAC,
        ethernet_destination=BROADCAST_MAC,
        source="0.0.0.0",
        destination=BROADCAST_IP,
        udp_checksum="ok",
        size=300,
        op=1,
        xid=0x12345678,
        secs=0,
        flags=0,
        ciaddr="0.0.0.0",
        giaddr="0.0.0.0",
        chaddr=MAC,
        options=((53, bytes([kind])), *options),
    )
    return replace(message, **fields)  # type: ignore[arg-type]


def answer(message: Request, **behaviour: object) -> Reply | None:
    """Returns the answer of a server at .1 that has granted .100 to this client."""
    server = Server(Behaviour.parse({"server": "198.51.100.1", **behaviour}), SERVER_MAC)
    server.address_of(MAC)
    answered = server.answer(message)
    return answered[1] if answered else None


def offer(**behaviour: object) -> Reply:
    reply = answer(request(DISCOVER), **behaviour)
    assert reply is not None
    return reply


def client_frame(payload: bytes, port: int = 67) -> bytes:
    """Returns a client's broadcast without a UDP checksum."""
    udp = struct.pack("!HHHH", 68, port, 8 + len(payload), 0) + payload
    head = struct.pack("!BBHHHBB", 0x45, 0, 20 + len(udp), 1, 0, 64, 17)
    ends = bytes(4) + b"\xff" * 4
    head += struct.pack("!H", checksum(head + b"\0\0" + ends)) + ends
    return BROADCAST_MAC + MAC + b"\x08\x00" + head + udp


def discover_payload() -> bytes:
    head = struct.pack("!4BIHH", 1, 1, 6, 0, 7, 3, 0x8000).ljust(28, b"\0") + MAC
    return head.ljust(236, b"\0") + COOKIE + encode_options([(53, b"\x01")]) + b"\xff"


def test_offer_is_a_valid_packet() -> None:
    frame = offer().encode()
    packet = frame[14:]
    assert frame[:14] == MAC + SERVER_MAC + b"\x08\x00"
    assert checksum(packet[:20]) == 0
    assert int.from_bytes(packet[2:4], "big") == len(packet)
    assert socket.inet_ntoa(packet[16:20]) == "198.51.100.100"
    udp = packet[20:]
    assert udp[:4] == struct.pack("!HH", 67, 68) and len(udp) == 308
    pseudo = packet[12:20] + struct.pack("!HH", 17, len(udp))
    assert checksum(pseudo + udp) == 0
    options = dict(decode_options(udp[8 + 240 :]))
    assert options[53] == bytes([OFFER]) and options[3] == address("198.51.100.1")
    assert options[1] == address("255.255.255.0") and options[51] == b"\0\0\x0e\x10"


@pytest.mark.parametrize(
    ("message", "state", "kind"),
    [
        (request(DISCOVER), "discover", OFFER),
        (request(REQUEST, (54, address("198.51.100.1"))), "selecting", ACK),
        (request(REQUEST, (54, address("198.51.100.2"))), "selecting", None),
        (request(REQUEST, (50, address("198.51.100.100"))), "init-reboot", ACK),
        (request(REQUEST, (50, address("198.51.100.7"))), "init-reboot", None),
        (request(REQUEST, ciaddr="198.51.100.100"), "rebinding", ACK),
        (
            request(REQUEST, ciaddr="198.51.100.100", destination="198.51.100.1"),
            "renewing",
            ACK,
        ),
        (
            request(REQUEST, ciaddr="198.51.100.100", destination="198.51.100.2"),
            "renewing",
            None,
        ),
    ],
)
def test_request_gets_answer_for_client_state(
    message: Request, state: str, kind: int | None
) -> None:
    assert message.state == state
    reply = answer(message)
    assert (reply.kind if reply else None) == kind
    assert answer(message, silent=[state]) is None
    denied = answer(message, nak=[state])
    if kind is not None:
        assert denied is not None and denied.kind == NAK and denied.destination == BROADCAST_IP


def test_answer_goes_to_the_destination_of_rfc_2131() -> None:
    assert offer().destination == "198.51.100.100"
    wanted = answer(request(DISCOVER, flags=0x8000))
    assert wanted is not None
    assert (wanted.destination, wanted.ethernet_destination) == (BROADCAST_IP, BROADCAST_MAC)
    renewing = request(REQUEST, ciaddr="198.51.100.100", destination="198.51.100.1")
    denied = answer(renewing, nak=["renewing"], nak_by="unicast")
    assert denied is not None
    assert (denied.destination, denied.ethernet_destination) == ("198.51.100.100", MAC)


def test_declined_address_is_not_granted_again() -> None:
    server = Server(Behaviour("198.51.100.1"), SERVER_MAC)
    assert server.address_of(MAC) == "198.51.100.100"
    decline = request(DECLINE, (54, address("198.51.100.1")))
    assert server.answer(decline) is None
    assert server.address_of(MAC) == "198.51.100.101"
    assert server.address_of(MAC[::-1]) == "198.51.100.102"


def test_defect_changes_the_message() -> None:
    assert (len(OFFER_DEFECTS), len(LEASE_DEFECTS)) == (31, 12)
    assert OFFER_DEFECTS.keys() > READABLE_DEFECTS
    good = offer().encode()
    frames = {name: offer(defect=name).encode() for name in {**OFFER_DEFECTS, **LEASE_DEFECTS}}
    assert good not in frames.values()
    # The two tables share four defects.
    assert len(set(frames.values())) == len(frames) - 4


def test_long_option_is_split_and_overloaded_options_are_moved() -> None:
    assert encode_options([(43, bytes(300))]) == b"\x2b\xff" + bytes(255) + b"\x2b\x2d" + bytes(45)
    reply = offer(options={"15": b"lan.example".hex()}, file=[15, 3], sname=[1])
    assert reply.option(52) == b"\x03" and reply.option(15) is None
    assert decode_options(reply.file) == (
        (3, address("198.51.100.1")),
        (15, b"lan.example"),
    )
    assert decode_options(reply.sname) == ((1, address("255.255.255.0")),)


def test_routes_and_domain_names_are_encoded() -> None:
    routes = classless_routes(("0.0.0.0/0", "192.0.2.1"), ("192.0.2.1/32", "0.0.0.0"))
    assert routes.hex() == "00c0000201" + "20c000020100000000"
    names = domain_names("lan.example", "eng.lan.example", "lan.example")
    assert names == b"\x03lan\x07example\0" + b"\x03eng\xc0\x00" + b"\xc0\x00"


def test_truncated_message_is_rejected() -> None:
    whole = client_frame(discover_payload())
    message = parse(whole)
    assert (message.state, message.xid, message.secs, message.flags) == ("discover", 7, 3, 0x8000)
    assert message.udp_checksum == "none" and parse(whole, True).udp_checksum == "offloaded"
    for length in range(len(whole) - 1):
        with pytest.raises(NotDhcp):
            parse(whole[:length])
        with pytest.raises(NotDhcp):
            parse_arp(whole[:length])
    with pytest.raises(NotDhcp):
        parse(client_frame(discover_payload(), port=68))


@pytest.mark.parametrize(
    ("description", "reason"),
    [
        ({}, "address"),
        ({"server": "192.0.2.1", "colour": "red"}, "colour"),
        ({"server": "192.0.2.1", "silent": ["sleeping"]}, "sleeping"),
        ({"server": "192.0.2.1", "defect": "wrong colour"}, "wrong colour"),
        ({"server": "192.0.2.1", "nak_by": "letter"}, "letter"),
    ],
)
def test_invalid_description_is_rejected_with_the_reason(
    description: dict[str, object], reason: str
) -> None:
    with pytest.raises(InvalidBehaviour, match=reason):
        Behaviour.parse(description)


def test_description_is_parsed_back() -> None:
    behaviour = Behaviour(
        "192.0.2.1",
        options={26: b"\x05\x78"},
        silent=frozenset(STATES[:2]),
        delay={"renewing": 0.5},
        file=(3,),
    )
    assert Behaviour.parse(json.loads(json.dumps(behaviour.description()))) == behaviour


def test_program_answers_clients_on_a_link(tmp_path: Path) -> None:
    with Lan() as lan:
        double = DhcpDouble(lan, Behaviour(lan.address))
        payload = discover_payload()
        # The client is a packet socket in the namespace of the LAN.
        program = (
            "import socket, sys\n"
            "s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0x0008)\n"
            "s.bind((sys.argv[1], 0x0800))\n"
            "s.settimeout(10)\n"
            "s.send(bytes.fromhex(sys.argv[2]))\n"
            "while s.recv(2000)[34:38] != bytes([0, 67, 0, 68]): pass\n"
        )
        lan.run(["ip", "link", "add", "client", "type", "veth", "peer", "name", "cable"])
        lan.run(["ip", "link", "set", "cable", "master", "lan0", "up"])
        lan.run(["ip", "link", "set", "client", "up"])
        forwards = ["bridge", "link", "show", "dev", "cable"]
        wait_for(lambda: "forwarding" in lan.run(forwards), "the link forwards")
        lan.run(["python3", "-c", program, "client", client_frame(payload).hex()])
        wait_for(lambda: double.sent("OFFER"), "the offer is in the log")
        seen = double.received("DISCOVER")[0]
        assert (seen["xid"], seen["broadcast"], seen["size"]) == (7, True, len(payload))
        assert double.sent("OFFER")[0]["time"] >= seen["time"]
        double.serve(Behaviour(lan.address, silent=frozenset({"discover"})))
        assert double.received() == [] == double.sent()
