"""Connections of machines outlive whatever happens to what serves them."""

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


def test_ten_thousand_connections_survive_restarts_and_kills(online: Host, lan: Lan) -> None:
    machine = Machine(online)
    machine.take_lease()
    handle = table_handle(online)
    with hold(machine, lan, _COUNT) as connections:
        assert usage(online, "TrackedConnections")[0] >= _COUNT
        assert packets(online, "new connections") >= _COUNT
        for unit in ("buildos-natd.service", "buildos-dnsmasq.service"):
            _kill(online, unit)
            assert connections.alive() == _COUNT, unit
        wait_until_ready(online)
        online.systemctl("restart", "buildos-natd.service")
        assert connections.alive() == _COUNT
        assert table_handle(online) == handle
        # Nor are they lost when the table is, for a moment.
        online.run("nft flush ruleset")
        assert connections.alive() == _COUNT


# Sends a number from one port, again and again, and says so once it is answered.
_TALK = """
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
# Answers with the address that it was asked from.
_LISTEN = """
import socket, sys
server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind((sys.argv[1], 5005))
print("listening", flush=True)
while True:
    _, sender = server.recvfrom(64)
    server.sendto(sender[0].encode(), sender)
"""


def test_changed_uplink_address_is_used_at_once(host: Host, lan: Lan) -> None:
    mac = "02:bd:00:00:*:*"
    lan.serve_dhcp(f"--dhcp-host={mac},{lan.prefix}.150")
    host.start([lan])
    wait_until_ready(host)
    assert public_address(host) == f"{lan.prefix}.150"
    machine = Machine(host)
    machine.take_lease()
    handle = table_handle(host)
    lan.start([sys.executable, "-c", _LISTEN, lan.address], "udp.log")
    wait_for(lambda: "listening" in lan.log("udp.log"), "the server listens")
    talk = lan.directory / "talk.log"
    with talk.open("w") as log:
        talker = start(machine.outside([sys.executable, "-c", _TALK, lan.address]), stdout=log)
    try:
        wait_for(lambda: f"{lan.prefix}.150" in talk.read_text(), "it is the first address")
        lan.stop_dhcp()
        lan.serve_dhcp(f"--dhcp-host={mac},{lan.prefix}.151")
        host.call("network1", "Renew")
        host.wait_for(
            lambda: host.addresses("br0") == [f"{lan.prefix}.151/24"], "the other address"
        )
        # The same talk, from the same port, is not stuck to the address that is gone.
        wait_for(lambda: f"{lan.prefix}.151" in talk.read_text(), "it is the other address")
    finally:
        end(talker)
    wait_until_ready(host)
    assert table_handle(host) == handle
