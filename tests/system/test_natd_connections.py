"""Tests connections of machines during restarts and changes of the uplink's address."""

from __future__ import annotations

import sys

from connections import hold
from host import Host
from machine import Machine
from nat import packets, public_address, table_handle, usage, wait_until_ready
from simlan.lan import Lan
from simlan.process import end, start
from simlan.wait import wait_for

_COUNT = 10_000


def _kill(host: Host, unit: str) -> None:
    pid = host.main_pid(unit)
    host.run(f"kill -KILL {pid}")
    host.wait_for(lambda: host.main_pid(unit) not in (0, pid), f"{unit} is started again")


def test_ten_thousand_connections_survive_restarts_and_kills(host: Host, lan: Lan) -> None:
    host.configure("natd", f"machine_connections = {2 * _COUNT}")
    lan.serve_dhcp()
    host.start([lan])
    wait_until_ready(host)
    machine = Machine(host)
    machine.take_lease()
    handle = table_handle(host)
    with hold(machine, lan, _COUNT) as connections:
        assert usage(host, "TrackedConnections")[0] >= _COUNT
        assert packets(host, "new connections") >= _COUNT
        for unit in ("buildos-natd.service", "buildos-dnsmasq.service"):
            _kill(host, unit)
            assert connections.alive() == _COUNT, unit
        wait_until_ready(host)
        host.systemctl("restart", "buildos-natd.service")
        assert connections.alive() == _COUNT
        assert table_handle(host) == handle
        # Connections survive a removal of the table, which natd repairs.
        host.run("nft flush ruleset")
        assert connections.alive() == _COUNT


# Sends numbered datagrams from one port and prints the answers.
_CLIENT = """
import socket, sys, time
client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
client.bind(("", 5005))
client.settimeout(0.1)
for number in range(1, 100000):
    client.sendto(str(number).encode(), (sys.argv[1], 5005))
    try:
        print(client.recv(64).decode(), flush=True)
    except TimeoutError:
        pass
    time.sleep(0.02)
"""
# Answers each datagram with the sender's address.
_SERVER = """
import socket, sys
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind((sys.argv[1], 5005))
print("listening", flush=True)
while True:
    _, sender = server.recvfrom(64)
    server.sendto(sender[0].encode(), sender)
"""


def test_changed_uplink_address_is_used_by_existing_flow(host: Host, lan: Lan) -> None:
    mac = "02:bd:00:00:*:*"
    lan.serve_dhcp(f"--dhcp-host={mac},{lan.prefix}.150")
    host.start([lan])
    wait_until_ready(host)
    assert public_address(host) == f"{lan.prefix}.150"
    machine = Machine(host)
    machine.take_lease()
    handle = table_handle(host)
    lan.start([sys.executable, "-c", _SERVER, lan.address], "udp.log")
    wait_for(lambda: "listening" in lan.log("udp.log"), "the server listens")
    answers = lan.directory / "client.log"
    with answers.open("w") as log:
        client = start(machine.outside([sys.executable, "-c", _CLIENT, lan.address]), stdout=log)
    try:
        wait_for(
            lambda: f"{lan.prefix}.150" in answers.read_text(), "an answer with the first address"
        )
        lan.stop_dhcp()
        lan.serve_dhcp(f"--dhcp-host={mac},{lan.prefix}.151")
        host.call("network1", "Renew")
        host.wait_for(
            lambda: host.addresses("br0") == [f"{lan.prefix}.151/24"], "the second address"
        )
        # The tracked connection of the same port does not keep the removed address.
        wait_for(
            lambda: f"{lan.prefix}.151" in answers.read_text(), "an answer with the second address"
        )
    finally:
        end(client)
    wait_until_ready(host)
    assert table_handle(host) == handle
