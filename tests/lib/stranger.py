"""Runs on the machine and on the LAN: sends what a hostile machine would send.

Usage: stranger.py receive ADDRESS PORT...
       stranger.py accept ADDRESS PORT
       stranger.py datagram SOURCE-PORT ADDRESS PORT
       stranger.py flows ADDRESS PORT COUNT
       stranger.py connections ADDRESS PORT COUNT
       stranger.py hardware-addresses COUNT
"""

from __future__ import annotations

import resource
import select
import socket
import sys
import time


def _udp(port: int, address: str = "") -> socket.socket:
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind((address, port))
    return udp


def _receive(address: str, *ports: str) -> None:
    """Prints destination port, source address and source port of each datagram."""
    sockets = [_udp(int(port), address) for port in ports]
    print("listening", flush=True)
    while True:
        for udp in select.select(sockets, [], [])[0]:
            _, (source, port) = udp.recvfrom(2048)
            print(udp.getsockname()[1], source, port, flush=True)


def _accept(address: str, port: str) -> None:
    """Keeps each connection; prints the largest segment that it sends there."""
    server = socket.create_server((address, int(port)), backlog=4096)
    print("listening", flush=True)
    connections = []
    while True:
        connection, _ = server.accept()
        connections.append(connection)
        print("segment", connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG), flush=True)


def _datagram(source: str, address: str, port: str) -> None:
    _udp(int(source)).sendto(b"a stranger", (address, int(port)))


def _flows(address: str, port: str, count: str) -> None:
    """Sends a datagram from each of `count` ports."""
    for _ in range(int(count)):
        with _udp(0) as udp:
            udp.sendto(b"a stranger", (address, int(port)))


def _connections(address: str, port: str, count: str) -> None:
    """Opens connections until one fails; prints their number, and keeps them."""
    connections = []
    for _ in range(int(count)):
        try:
            connections.append(socket.create_connection((address, int(port)), timeout=1))
        except OSError:
            break
    print(len(connections), flush=True)
    time.sleep(60)


def _hardware_addresses(count: str) -> None:
    """Broadcasts a frame from each of `count` hardware addresses."""
    packet = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    packet.bind(("eth0", 0))
    for number in range(int(count)):
        address = b"\x02\x55" + number.to_bytes(4, "big")
        # IEEE 802's type for experiments.
        packet.send(b"\xff" * 6 + address + b"\x88\xb5" + bytes(46))


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (8192, 8192))
    commands = [_receive, _accept, _datagram, _flows, _connections, _hardware_addresses]
    names = {command.__name__[1:].replace("_", "-"): command for command in commands}
    names[sys.argv[1]](*sys.argv[2:])
