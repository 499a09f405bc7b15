"""Hosts of a LAN share the pieces of machines: peers first, the origin last."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from conftest import NewHost
from host import Host
from machine import machine_with_lease
from nat import wait_until_ready
from simlan.lan import Lan
from simlan.process import run
from update_farm import Farm, revisions, update, updated

PORT = 7873
PIECE = 16 << 20
OBJECTS = "/run/buildos/spool/default/objects"
MACHINES = "/build/machines/default"

_ASK = """
import socket, sys
address, *pieces = sys.argv[1:]
text = "BUILDOS-SEARCH * HTTP/1.1\\r\\nCookie: 00000000000000aa\\r\\n"
text += "".join(f"Want: {piece}\\r\\n" for piece in pieces) + "\\r\\n"
asker = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
asker.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
if address == "255.255.255.255":
    asker.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lan0")
asker.settimeout(3)
asker.sendto(text.encode(), (address, 7873))
try:
    print(asker.recv(2000).decode())
except TimeoutError:
    print("no answer")
"""


def publish(farm: Farm, size: int) -> None:
    farm.desk(f"machine box\nhead -c {size} /dev/urandom >desk/box/disk.img\npublish box >/dev/null")
    farm.sign()
    farm.lan.serve_dhcp()


def boot(farm: Farm, host: Host, url: str, toml: str = "") -> Host:
    """Boots a host with an empty volume."""
    farm.prepare(host, url, toml)
    host.start([farm.lan])
    host.wait_online()
    farm.attach(host, farm.disk())
    host.wait_for(lambda: host.active("buildos-pieces-http.socket"), "it shares pieces")
    host.wait_for(lambda: host.active("buildos-pieces.socket"), "it answers")
    return host


def address(host: Host) -> str:
    return host.addresses("br0")[0].split("/")[0]


def ask(lan: Lan, to: str, pieces: list[str]) -> str:
    return lan.run(["/usr/bin/python3", "-c", _ASK, to, *pieces])


def status(lan: Lan, host: str, path: str) -> str:
    """Returns the status of HTTP, or that of curl(1)."""
    command = ["curl", "--silent", "--output", "/dev/null", "--write-out", "%{http_code}"]
    command += ["--max-time", "5", "--path-as-is", f"http://{host}:{PORT}/{path}"]
    return lan.run(command, check=False)


def test_second_host_takes_pieces_from_the_first_but_not_damaged_ones(
    farm: Farm, new_host: NewHost
) -> None:
    publish(farm, 40_000_000)
    url = farm.serve()
    hosts = [boot(farm, new_host(f"host{number}"), url) for number in range(3)]
    first = update(hosts[0])
    assert first["result"] == "serial 1: 1 placed", first
    assert (first["from_peers"], first["bad_peers"]) == (0, [])
    sent = farm.sent()
    assert first["fetched"] == sent

    second = update(hosts[1])
    assert second["result"] == "serial 1: 1 placed", second
    assert farm.sent() == sent, "the origin sent pieces that a peer has"
    assert (second["fetched"], second["from_peers"]) == (0, sent)
    assert revisions(hosts[1]) == ["box-1*"]

    # Content of the same size, half of a piece, and more than a piece.
    for host, damage in [
        (hosts[0], "printf x | dd of=$1 bs=1 seek=1000 conv=notrunc 2>/dev/null"),
        (hosts[1], "truncate --size=-1000 $1"),
    ]:
        for piece in farm.pieces():
            host.run(["sh", "-ec", damage, "damage", f"{OBJECTS}/{piece.name}"])
    third = update(hosts[2])
    assert third["result"] == "serial 1: 1 placed", third
    assert revisions(hosts[2]) == ["box-1*"]
    bad = sorted(line.split(":")[0] for line in third["bad_peers"])
    assert bad == sorted(address(host) for host in hosts[:2]), third
    whole = sum(piece.stat().st_size for piece in farm.pieces())
    assert third["fetched"] == whole, "poisoned pieces were placed"
    messages = hosts[2].journal("_SYSTEMD_UNIT=buildos-updated.service", "PRIORITY=4")
    assert len(messages) == 2 and all("BUILDOS_PEER" in message for message in messages)
    assert "peers" in hosts[2].run("buildosctl machines list")


def test_host_shares_whole_pieces_on_its_link_only(farm: Farm, host: Host) -> None:
    publish(farm, 20_000_000)
    boot(farm, host, farm.serve())
    wait_until_ready(host)
    lan, at = farm.lan, address(host)
    piece = farm.pieces()[0].name
    # Before the first run nothing is shared.
    assert ask(lan, at, [piece]) == "no answer\n"
    assert status(lan, at, piece) == "000"
    update(host)

    assert status(lan, at, piece) == "200"
    got = lan.run(["sh", "-c", f"curl --silent http://{at}:{PORT}/{piece} | sha256sum"])
    assert got.split()[0] == piece
    for path in ["", "..", "../channel", f"../parts/{piece}", "%2e%2e/channel", "cgi-bin/x", "x"]:
        assert status(lan, at, path) in ("400", "403", "404"), path
    for to in (at, "255.255.255.255"):
        answer = ask(lan, to, [piece, "0" * 64])
        assert f"Have: {piece}\n" in answer and "0" * 64 not in answer, answer
    assert ask(lan, at, ["0" * 64]) == "no answer\n"
    # A machine reaches neither port of its host.
    machine = machine_with_lease(host)
    for to in (at, "172.23.0.1"):
        get = ["curl", "--silent", "--max-time", "2", f"http://{to}:{PORT}/{piece}"]
        assert run(machine.outside(get), check=False) == ""
    question = ["/usr/bin/python3", "-c", _ASK, "172.23.0.1", piece]
    assert run(machine.outside(question)) == "no answer\n"
    # Neither program keeps running.
    host.wait_for(
        lambda: not host.run("systemctl list-units --plain --no-legend 'buildos-pieces*.service'"),
        "no program of buildos-pieces runs",
    )

    capture = ["timeout", "5", "tcpdump", "-v", "-n", "-c", "1", "-i", "lan0"]
    capture += ["tcp", "src", "port", str(PORT)]
    listener = lan.namespace.start(capture, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert listener.stderr is not None and listener.stdout is not None
    while "listening" not in listener.stderr.readline():
        pass
    status(lan, at, piece)
    assert " ttl 1," in listener.stdout.read(), "a packet could pass a router"
    listener.wait()

    host.write("/etc/buildos/updated.conf.d/60-share.toml", "update.share = false\n")
    update(host)
    assert ask(lan, at, [piece]) == "no answer\n"
    assert status(lan, at, piece) == "000"
    assert host.run(["ls", OBJECTS]) == ""


def test_eight_hosts_take_little_more_than_one_copy_from_the_origin(
    farm: Farm, new_host: NewHost
) -> None:
    publish(farm, 7 * PIECE)
    url = farm.serve()
    # A piece takes two seconds, so the hosts fetch at the same time.
    slow = "update.rate_kib = 8192\n"
    hosts = [boot(farm, new_host(f"host{number}"), url, slow) for number in range(8)]
    for host in hosts:
        host.run(["systemctl", "start", "--no-block", "buildos-updated.service"])
    for host in hosts:
        host.wait_for(lambda host=host: ended(host), "the run ended", 300)  # type: ignore[misc]
    for host in hosts:
        state = updated(host)
        assert state["result"] == "serial 1: 1 placed", state
        assert state["bad_peers"] == []
    copy = sum(piece.stat().st_size for piece in farm.pieces())
    assert farm.sent() <= 1.3 * copy, f"the origin sent {farm.sent() / copy:.2f} copies"


def ended(host: Host) -> bool:
    path = "/run/buildos/updated/state.json"
    return host.succeeds(f"test -e {path}") and json.loads(host.read(path))["ended_usec"] > 0
