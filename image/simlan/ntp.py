#!/usr/bin/python3
"""Answers SNTP requests (RFC 5905) with this machine's clock.

    ntp.py --listen ADDRESS --log FILE

The log has the address of a client a line.
"""

from __future__ import annotations

import argparse
import socket
import struct
import time
from pathlib import Path

PORT = 123

EPOCH = 2_208_988_800
"""Seconds from 1900, the start of NTP's era 0, to 1970."""


def timestamp(seconds: float) -> bytes:
    """Returns an NTP timestamp: seconds since 1900 and their fraction, 32 bits each."""
    whole = int(seconds)
    fraction = int((seconds - whole) * 2**32)
    return struct.pack("!II", (whole + EPOCH) % 2**32, fraction)


def answer(request: bytes, received: float, sent: float) -> bytes | None:
    """Returns the answer to a client's request (mode 3); None for other messages."""
    if len(request) < 48 or request[0] & 7 != 3:
        return None
    version = request[0] & 0x38
    # No leap second, mode 4 (server), stratum 1, precision of a microsecond (2^-20).
    header = struct.pack("!BBbb", version | 4, 1, request[2] % 18, -20)
    origin = request[40:48]
    times = [timestamp(received), origin, timestamp(received), timestamp(sent)]
    return header + struct.pack("!II4s", 0, 0, b"LOCL") + b"".join(times)


def main() -> None:
    parser = argparse.ArgumentParser(description="Answers SNTP requests.")
    parser.add_argument("--listen", required=True, metavar="ADDRESS")
    parser.add_argument("--log", required=True, type=Path, metavar="FILE")
    arguments = parser.parse_args()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
        server.bind((arguments.listen, PORT))
        print(f"ntp: listening on {arguments.listen}", flush=True)
        while True:
            request, client = server.recvfrom(512)
            reply = answer(request, time.time(), time.time())
            if reply:
                server.sendto(reply, client)
                with arguments.log.open("a") as log:
                    log.write(f"{client[0]}\n")


if __name__ == "__main__":
    main()
