"""The attacks that tests/bench/strangers measures, and the state that each of them aims at."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from host import Host
from machine import HOSTILE_MACHINE, Machine, machine_with_lease
from nat import public_address, usage
from simlan.lan import BRIDGE, Lan
from simlan.process import end, start

HOST = "172.23.0.1"
ZONE = "good.example"
"""A zone in which every name exists."""
_SILENT = "silent.example"
_SILENT_PORT = 5300
ACCEPTING = 7000
"""A port of the LAN that accepts connections."""
_RECEIVING = 7001
_CONNECTIONS = 100_000


@dataclass
class Scene:
    """A host with three machines: one is hostile, and the others work."""

    host: Host
    lan: Lan
    attacker: Machine
    worker: Machine
    second: Machine


Check = Callable[[Scene], bool]
"""Returns true if what the attack aims at is as before."""


@dataclass(frozen=True)
class Attack:
    key: str
    title: str
    run: Callable[[Scene, float], AbstractContextManager[None]]
    """Attacks for some seconds while the context lasts."""
    is_normal: Check


def serve(lan: Lan) -> None:
    """Starts the servers of the LAN."""
    lan.serve_dhcp(
        f"--address=/{ZONE}/203.0.113.7",
        f"--server=/{_SILENT}/{lan.address}#{_SILENT_PORT}",
        "--dns-forward-max=60000",
    )
    silent = [*HOSTILE_MACHINE, "receive", lan.address, str(_SILENT_PORT)]
    lan.start_server("silent", silent, "listening")
    accept = [*HOSTILE_MACHINE, "accept", lan.address, str(ACCEPTING)]
    lan.start_server("accept", accept, "listening")
    receive = [*HOSTILE_MACHINE, "receive", lan.address, "68", str(_RECEIVING)]
    lan.start_server("receive", receive, "listening")


@contextmanager
def _until_end(command: Sequence[str]) -> Iterator[None]:
    process = start(command, stdout=subprocess.DEVNULL)
    try:
        yield
        assert process.poll() in (None, 0), f"{command} failed"
    finally:
        end(process)


def _by_machine(
    *arguments: str, timed: bool = True
) -> Callable[[Scene, float], AbstractContextManager[None]]:
    """Returns an attack of the hostile machine. `{scene.…}` is replaced."""

    def run(scene: Scene, seconds: float) -> AbstractContextManager[None]:
        given = [argument.format(scene=scene) for argument in arguments]
        duration = ["--seconds", str(seconds)] if timed else []
        return _until_end(scene.attacker.outside([*HOSTILE_MACHINE, *given, *duration]))

    return run


@contextmanager
def _connections(scene: Scene, seconds: float) -> Iterator[None]:
    """Opens connections. The attack ends as a virtual machine does: with its port."""
    command = ["connections", scene.lan.address, str(ACCEPTING), str(_CONNECTIONS)]
    with _until_end(scene.attacker.outside([*HOSTILE_MACHINE, *command])):
        yield
    scene.host.run(f"ip link delete {scene.attacker.name}")


@contextmanager
def _flows(scene: Scene, seconds: float) -> Iterator[None]:
    command = ["flows", scene.lan.address, "9", str(_CONNECTIONS)]
    with _until_end(scene.attacker.outside([*HOSTILE_MACHINE, *command])):
        yield
    scene.host.run(f"ip link delete {scene.attacker.name}")


@contextmanager
def _renewals(scene: Scene, seconds: float) -> Iterator[None]:
    """Renews the leases of eight hardware addresses, as often as a port may."""
    renew = shlex.join([*HOSTILE_MACHINE, "leases", "172.23", "8"])
    loop = ["sh", "-c", f"while {renew}; do sleep 0.2; done"]
    with _until_end(scene.attacker.outside(loop)):
        yield


@contextmanager
def _fifo(scene: Scene, seconds: float) -> Iterator[None]:
    """Puts a FIFO in the place of a file that natd reads."""
    leases = "/run/buildos/dnsmasq/leases"
    scene.host.run(f"mv {leases} {leases}.kept; mkfifo {leases}")
    try:
        yield
    finally:
        scene.host.run(f"mv {leases}.kept {leases}")


@contextmanager
def _claims(scene: Scene, seconds: float) -> Iterator[None]:
    command = ["claims", public_address(scene.host), "--interface", BRIDGE]
    command += ["--seconds", str(seconds)]
    with _until_end(scene.lan.command([*HOSTILE_MACHINE, *command])):
        yield


@contextmanager
def _claims_of_container(scene: Scene, seconds: float) -> Iterator[None]:
    container = Machine(scene.host, "br0")
    command = ["claims", public_address(scene.host), "--seconds", str(seconds)]
    with _until_end(container.outside([*HOSTILE_MACHINE, *command])):
        yield
    scene.host.run(f"ip link delete {container.name}")


# --- what the attacks aim at


def _neighbour(machine: Machine, address: str) -> str:
    found = re.search(r"lladdr (\S+)", machine.run(f"ip neigh show {address} dev eth0"))
    return found[1] if found else ""


def _knows_host(scene: Scene) -> bool:
    scene.worker.run(f"ping -c 1 -W 1 {HOST}", check=False)
    return _neighbour(scene.worker, HOST) == scene.host.link("br1")["address"]


def _knows_machine(scene: Scene) -> bool:
    scene.second.run(f"ping -c 1 -W 1 {scene.worker.address}", check=False)
    return _neighbour(scene.second, scene.worker.address) == scene.worker.mac


def _is_ready(scene: Scene) -> bool:
    return bool(scene.host.bus_property("nat1", "Ready"))


def _new_machine_has_lease(scene: Scene) -> bool:
    machine = machine_with_lease(scene.host)
    route = machine.run("ip route show default")
    scene.host.run(f"ip link delete {machine.name}")
    return f"via {HOST} " in route and _is_ready(scene)


def _has_no_foreign_prefix(scene: Scene) -> bool:
    return "2001:db8:bad" not in scene.worker.run("ip -6 address; ip -6 route")


def _nothing_arrived(scene: Scene) -> bool:
    return scene.lan.log("receive.log") == "listening\n"


def _tracks_few(scene: Scene) -> bool:
    return bool(usage(scene.host, "TrackedConnections")[0] < 1000)


def _bridge_learned_few(scene: Scene) -> bool:
    return scene.host.run("bridge fdb show br br1").count("\n") < 60


def _has_few_neighbours(scene: Scene) -> bool:
    return scene.host.run("ip neigh show").count("\n") < 40


def _resolves(scene: Scene) -> bool:
    ask = ["resolve", HOST, ZONE, "--seconds", "0.5"]
    output = subprocess.run(
        scene.worker.outside([*HOSTILE_MACHINE, *ask]), stdout=subprocess.PIPE, text=True
    ).stdout
    _, asked, _, answered = output.split()
    return asked == answered


def _lists_machines(scene: Scene) -> bool:
    return len(usage(scene.host, "Machines")) >= 2


def _is_online(scene: Scene) -> bool:
    declined = "DHCPDECLINE" in scene.lan.log("dnsmasq.log")
    return bool(scene.host.bus_property("network1", "Online")) and not declined


ATTACKS = [
    Attack(
        "arp-host",
        "ARP for the host, 50/s",
        _by_machine("arp", HOST, "--rate", "50"),
        _knows_host,
    ),
    Attack(
        "arp-machine",
        "ARP for a machine, 50/s",
        _by_machine("arp", "{scene.worker.address}", "--rate", "50"),
        _knows_machine,
    ),
    Attack(
        "dhcp-server",
        "DHCP server",
        _by_machine("dhcp-server", "{scene.attacker.address}"),
        _new_machine_has_lease,
    ),
    Attack(
        "router",
        "router advertisements, 40/s",
        _by_machine("router-advertisements"),
        _has_no_foreign_prefix,
    ),
    Attack(
        "forge",
        "datagrams from a machine's address, at full rate",
        _by_machine(
            "forge",
            "{scene.worker.address}",
            "{scene.lan.address}",
            str(_RECEIVING),
            "1000000",
            timed=False,
        ),
        _nothing_arrived,
    ),
    Attack("connections", "connections to the LAN, kept", _connections, _tracks_few),
    Attack("flows", "datagrams from 100,000 ports", _flows, _tracks_few),
    Attack(
        "hardware-addresses",
        "300,000 hardware addresses",
        _by_machine("hardware-addresses", "300000", timed=False),
        _bridge_learned_few,
    ),
    Attack(
        "neighbours",
        "ARP from the addresses of a /16, at full rate",
        _by_machine("neighbours", "172.23", "300000", timed=False),
        _has_few_neighbours,
    ),
    Attack(
        "past-bridge",
        "datagrams and ARP past the bridge, at full rate",
        _by_machine("past-bridge", HOST, "{scene.attacker.address}", "9", "300000", timed=False),
        _has_few_neighbours,
    ),
    Attack(
        "leases",
        "DHCP requests, at full rate",
        _by_machine("leases", "172.23", "300000", timed=False),
        _new_machine_has_lease,
    ),
    Attack("renewals", "renewals of eight leases, 20/s", _renewals, _new_machine_has_lease),
    Attack(
        "refused-dhcp",
        "DHCP messages that are refused, 20/s",
        _by_machine("refused-dhcp", HOST, "{scene.attacker.address}", "--rate", "20"),
        _new_machine_has_lease,
    ),
    Attack(
        "slow-names",
        "names of a silent server, 40/s",
        _by_machine("names", HOST, _SILENT, "--rate", "40"),
        _resolves,
    ),
    Attack(
        "many-names",
        "names of a silent server, 3,000/s",
        _by_machine("names", HOST, _SILENT, "--rate", "3000"),
        _resolves,
    ),
    Attack(
        "dhcp-of-lan",
        "DHCP to the LAN, 10/s",
        _by_machine("datagram", "67", "{scene.lan.address}", "68", "--count", "600", timed=False),
        _nothing_arrived,
    ),
    Attack("fifo", "FIFO in the place of the leases", _fifo, _lists_machines),
    Attack("flap", "port that flaps 200 times a second", _by_machine("flap"), _is_ready),
    Attack("claims", "claims of br0's address by the LAN, 2/s", _claims, _is_online),
    Attack(
        "claims-container",
        "claims of br0's address by a container, 2/s",
        _claims_of_container,
        _is_online,
    ),
]
