"""A LAN: a bridge in a network namespace, cables to hosts, servers on demand."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import dnsmasq, kea, ping
from .closing import Closing
from .errors import LanError
from .namespace import Namespace
from .process import end
from .wait import DEADLINE, wait_for

BRIDGE = "lan0"
MAC = "02:bd:ff:00:00:01"
"""The LAN's own hardware address."""

CONTROLLER_PORT = 8080

_PROGRAMS = Path(__file__).parent
_INDEXES = itertools.count(1000)


@dataclass
class Nic:
    """A NIC of a host; `cable` is the other end of its veth pair, in the LAN."""

    lan: Lan
    name: str
    mac: str
    cable: str

    def plug(self) -> None:
        """Gives the NIC carrier."""
        self.lan.run(["ip", "link", "set", self.cable, "up"])

    def unplug(self) -> None:
        """Takes the NIC's carrier away."""
        self.lan.run(["ip", "link", "set", self.cable, "down"])


class Lan(Closing):
    """A LAN with the network `PREFIX.0/24` and the address `PREFIX.1` of its own.

    `directory` has the files and logs of its servers (NAME.log); without it they are
    in a temporary directory, removed at the end. The LAN serves nothing until a
    `serve_…` or `start_…` method is called. Like a switch's port, a bridge port forwards
    some milliseconds after its carrier; `direct` makes a LAN without a bridge, for one
    cable, which must be there before servers."""

    def __init__(
        self,
        prefix: str = "198.51.100",
        name: str = "lan",
        direct: bool = False,
        *,
        domain: str = "lan.example",
        directory: Path | None = None,
    ):
        self.prefix = prefix
        self.name = name
        self.domain = domain
        self.address = f"{prefix}.1"
        self._temporary = directory is None
        self.directory = directory or Path(tempfile.mkdtemp(prefix=f"buildos-{name}-"))
        self.namespace = Namespace()
        self._servers: dict[str, subprocess.Popen[str]] = {}
        self._cables = 0
        self._direct = direct
        if direct:
            return
        self.add_bridge(BRIDGE, "address", MAC)
        # Kea serves no interface without carrier; this pair gives the bridge its own.
        self._ip("link add anchor type veth peer name chain")
        # Without ARP: else the kernel answers for the LAN's address with the pair's MAC address,
        # too, and servers ignore packets that arrive at it.
        self._ip("link set chain arp off up")
        self._ip(f"link set anchor master {BRIDGE} up")
        self._set_up()

    def add_bridge(self, name: str, *options: str) -> None:
        """Adds a bridge that forwards without delay."""
        bridge = "type bridge stp_state 0 forward_delay 0 mcast_snooping 0"
        self._ip(f"link add {name} {' '.join(options)} {bridge}")

    def _set_up(self) -> None:
        self._ip(f"link set {BRIDGE} up")
        self._ip(f"address add {self.address}/24 dev {BRIDGE}")

    def _ip(self, arguments: str) -> None:
        self.run(["ip", *arguments.split()])

    def close(self) -> None:
        """Ends the LAN and its servers; a second call does nothing."""
        self.namespace.close()
        if self._temporary:
            shutil.rmtree(self.directory, ignore_errors=True)

    def command(self, command: Sequence[str]) -> list[str]:
        """Returns the command line that runs `command` in the LAN."""
        return self.namespace.command(command)

    def run(self, command: Sequence[str], **options: Any) -> str:
        """Runs a program in the LAN, see `process.run`."""
        return self.namespace.run(command, **options)

    def start(self, command: Sequence[str], log: str, **options: Any) -> subprocess.Popen[str]:
        """Starts a program in the LAN; its output goes to the file `log`."""
        with (self.directory / log).open("a") as output:
            return self.namespace.start(command, stdout=output, stderr=subprocess.STDOUT, **options)

    def log(self, name: str) -> str:
        """Returns a file of `directory`; the empty text if there is no such file."""
        path = self.directory / name
        return path.read_text(errors="replace") if path.exists() else ""

    def json_log(self, name: str) -> list[dict[str, Any]]:
        """Returns the entries of a log with a JSON object a line."""
        lines = self.log(name).splitlines(keepends=True)
        # A line without its end is still being written.
        return [json.loads(line) for line in lines if line.endswith("\n")]

    # Cables

    def connect(self, name: str, mac: str, pid: int, plugged: bool) -> Nic:
        """Puts the NIC `name` into the network namespace of the process `pid`
        and its cable into the LAN."""
        self._cables += 1
        nic = Nic(self, name, mac, BRIDGE if self._direct else f"cable{self._cables}")
        # If both ends have equal indexes, the kernel announces carrier up to a second
        # late. It announces the first carrier of a real NIC at once.
        peer = f"peer name {name} index {next(_INDEXES)} address {mac} netns {pid}"
        self._ip(f"link add {nic.cable} type veth {peer}")
        if self._direct:
            self._set_up()
            return nic
        self._ip(f"link set {nic.cable} master {BRIDGE}")
        if plugged:
            nic.plug()
        return nic

    def move(self, nic: Nic, other: Lan) -> None:
        """Moves the cable of a NIC to another LAN. The NIC loses its carrier meanwhile."""
        self._ip(f"link set {nic.cable} netns {other.namespace.pid}")
        cable = f"moved-{nic.cable}"
        other.run(["ip", "link", "set", nic.cable, "name", cable, "master", BRIDGE])
        nic.lan, nic.cable = other, cable
        nic.plug()

    def own_address(self, address: str) -> None:
        """Adds an address for which the LAN answers ARP."""
        shown = self.run(["ip", "-brief", "-4", "address", "show", "dev", BRIDGE]).split()
        if not any(owned.split("/")[0] == address for owned in shown[2:]):
            self._ip(f"address add {address}/32 dev {BRIDGE}")

    # Traffic

    @contextlib.contextmanager
    def ping(self, address: str) -> Iterator[ping.Echoes]:
        """Pings `address` while the context lasts, and until ten more answers."""
        log = self.directory / f"ping-{address}.log"
        echoes = ping.Echoes(self.start(ping.command(address), log.name), log)
        wait_for(lambda: len(echoes.answered()) > 10, f"{address} answers")
        yield echoes
        until = len(echoes.answered()) + 10
        wait_for(lambda: len(echoes.answered()) > until, f"{address} still answers")
        echoes.stop()

    def answers_for(self, address: str) -> list[str]:
        """Returns the hardware addresses that answer an ARP request for `address`."""
        # arping fails if there are more answers than requests.
        arping = ["arping", "-b", "-c", "2", "-I", BRIDGE, address]
        output = self.run(arping, check=False)
        return sorted({mac.lower() for mac in re.findall(r"\[([0-9A-Fa-f:]{17})\]", output)})

    def announcements(self, address: str, mac: str = "") -> int:
        """Returns the number of ARP announcements of `address` by hosts, or by the one with
        that hardware address, since the first call of this method or of `watch_arp`."""
        self.watch_arp()
        request = rf"{mac} > .* Request who-has {re.escape(address)} .* {re.escape(address)},"
        return len(re.findall(request, self.log("arp.log")))

    def watch_arp(self) -> None:
        """Starts to log the ARP requests of hosts on the LAN."""
        if not (self.directory / "arp.log").exists():
            command = ["tcpdump", "-e", "-l", "-n", "-Q", "in", "-i", BRIDGE, "arp"]
            self.start(command, "arp.log")
            wait_for(lambda: "listening on" in self.log("arp.log"), "tcpdump listens")

    # Servers

    def start_server(
        self, name: str, command: Sequence[str], started: str, deadline: float = DEADLINE
    ) -> None:
        """Starts a server and waits until it has logged `started` to NAME.log."""
        log = f"{name}.log"
        seen = self.log(log).count(started)
        self._servers[name] = self.start(command, log, stdin=subprocess.DEVNULL)

        def serves() -> bool:
            self.check()
            return self.log(log).count(started) > seen

        wait_for(serves, f"{name} serves", deadline)

    def start_program(self, name: str, *arguments: str, deadline: float = DEADLINE) -> None:
        """Starts a server that is a program of this package."""
        program = str(_PROGRAMS / f"{name}.py")
        self.start_server(
            name, ["/usr/bin/python3", "-u", program, *arguments], "listening", deadline
        )

    def check(self) -> None:
        """Raises LanError with the log of a server that has ended."""
        for name, server in self._servers.items():
            if server.poll() is not None:
                log = self.log(f"{name}.log")
                raise LanError(f"the LAN's {name} ended ({server.returncode}):\n{log}")

    def serve_dhcp(self, *options: str, lease: str = "1h", authoritative: bool = True) -> None:
        """Starts dnsmasq as DHCP and DNS server; `options` are those of its command
        line. By default, dnsmasq, ISC's server and Kea are not authoritative."""
        self._require_no_dhcp()
        leases = self.directory / "leases"
        command = dnsmasq.command(
            BRIDGE,
            self.prefix,
            self.domain,
            lease,
            leases,
            options,
            authoritative=authoritative,
        )
        self.start_server("dnsmasq", command, dnsmasq.STARTED)

    def advertise_ipv6(self, prefix: str) -> None:
        """Gives the LAN the address 1 of the IPv6 network PREFIX/64, and advertises it."""
        self._ip(f"address add {prefix}1/64 dev {BRIDGE} nodad")
        command = dnsmasq.advertisement_command(BRIDGE, prefix)
        self.start_server("advertisements", command, dnsmasq.RA_STARTED)

    def relay_dhcp(self, remote: Lan) -> None:
        """Connects the LAN with `remote` by a router, which relays DHCP to the server of
        `remote`."""
        remote.connect("relay0", "02:bd:ff:00:00:02", self.namespace.pid, plugged=True)
        self._ip(f"address add {remote.prefix}.2/24 dev relay0")
        self._ip("link set relay0 up")
        self.run(["sysctl", "--quiet", "net.ipv4.ip_forward=1"])
        remote.run(["ip", "route", "add", f"{self.prefix}.0/24", "via", f"{remote.prefix}.2"])
        command = dnsmasq.relay_command(self.address, remote.address)
        self.start_server("relay", command, dnsmasq.RELAY_STARTED)

    def stop_relay(self) -> None:
        """Ends the relay agent and its connection."""
        end(self._servers.pop("relay"))
        self._ip("link delete relay0")

    def serve_kea(
        self,
        root: Path,
        lease: int = 3600,
        t1: int | None = None,
        t2: int | None = None,
        options: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Starts Kea, in the Debian root `root`, as DHCP server, see
        `kea.configuration`."""
        self._require_no_dhcp()
        directory = self.directory / "kea"
        directory.mkdir(exist_ok=True)
        text = kea.configuration(BRIDGE, self.prefix, lease, t1, t2, options)
        (directory / "kea-dhcp4.conf").write_text(text)
        self.start_server("kea", kea.command(root, directory), kea.STARTED)

    def _require_no_dhcp(self) -> None:
        assert not self.serves_dhcp(), "the LAN has a DHCP server already"

    def serves_dhcp(self) -> bool:
        """Returns true while dnsmasq or Kea runs."""
        return bool({"dnsmasq", "kea"} & self._servers.keys())

    def stop_dhcp(self) -> None:
        """Ends the DHCP server; it finds its leases again when it is started."""
        (name,) = {"dnsmasq", "kea"} & self._servers.keys()
        end(self._servers.pop(name))

    def lose_leases(self, *, authoritative: bool) -> None:
        """Starts dnsmasq again without the leases that it granted."""
        self.stop_dhcp()
        (self.directory / "leases").unlink()
        self.serve_dhcp(authoritative=authoritative)

    def leases(self) -> dict[str, str]:
        """Returns the addresses that dnsmasq has leased, by MAC address."""
        return dnsmasq.leases(self.log("leases"))

    def serve_web(self, page: str, **files: str) -> str:
        """Starts a web server with `files` and `page`; returns the URL of `page`."""
        root = self.directory / "web"
        root.mkdir()
        for name, text in {"page": page, **files}.items():
            (root / name).write_text(text)
        self._start_web(f"--files=/={root}")
        return f"http://{self.address}/page"

    def _start_web(self, *files: str) -> None:
        log = self.directory / "web.jsonl"
        self.start_program("web", f"--listen={self.address}:80", f"--log={log}", *files)

    def visits(self) -> list[dict[str, Any]]:
        """Returns the requests that the web server got, see web.py."""
        return self.json_log("web.jsonl")

    def web_clients(self) -> list[str]:
        """Returns the client addresses of the requests, in order."""
        return [visit["client"] for visit in self.visits()]

    def start_controller(self, keys: Path | None = None) -> str:
        """Starts the double of a controller; returns its URL. With `keys`, a directory of
        public keys, it authenticates agents."""
        listen = f"--listen={self.address}:{CONTROLLER_PORT}"
        script = f"--script={self.directory / 'controller.json'}"
        log = f"--log={self.directory / 'controller.jsonl'}"
        options = [f"--keys={keys}"] if keys else []
        self.start_program("controller", listen, script, log, *options)
        return f"http://{self.address}:{CONTROLLER_PORT}/"

    def script_controller(self, **paths: dict[str, Any]) -> None:
        """Sets the controller's script, by path; `all` is for the other paths."""
        script = {"*" if path == "all" else f"/{path}": what for path, what in paths.items()}
        beside = self.directory / "controller.new"
        beside.write_text(json.dumps(script))
        beside.rename(self.directory / "controller.json")

    def task_requests(self) -> list[dict[str, Any]]:
        """Returns the task requests that the controller got, see controller.py."""
        return [entry for entry in self.json_log("controller.jsonl") if not entry["result"]]

    def results(self) -> list[dict[str, Any]]:
        """Returns the results that the controller got."""
        return [entry for entry in self.json_log("controller.jsonl") if entry["result"]]
