"""A network that build hosts are plugged into: a namespace with a bridge, and
on it what a LAN has: a DHCP and DNS server, a web server, a controller."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from dhcp_double import DhcpDouble
from dhcp_server import Behaviour
from kea import kea_command
from namespace import end, run, start
from wait import wait_for

_DOUBLES = Path(__file__).resolve().parent.parent / "doubles"
BRIDGE = "lan0"
MAC = "02:bd:ff:00:00:01"
"""The LAN's own hardware address."""

_INDEXES = itertools.count(1000)


@dataclass
class Nic:
    """A NIC of a host, by the LAN's end of its cable."""

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


class Lan:
    """A LAN with the network `PREFIX.0/24` and the address `PREFIX.1` of its own.

    Nothing is served on it until a `serve_…` or `start_…` method is called. A bridge
    port forwards up to some milliseconds after its carrier, like a switch's; `direct`
    makes a LAN without a bridge, for one cable, that must be there before servers."""

    def __init__(self, prefix: str = "198.51.100", name: str = "lan", direct: bool = False):
        self.prefix = prefix
        self.name = name
        self.address = f"{prefix}.1"
        self.directory = Path(tempfile.mkdtemp(prefix=f"buildos-{name}-"))
        self._processes: list[subprocess.Popen[str]] = []
        self._dhcp: subprocess.Popen[str] | None = None
        self._cables = 0
        self._doubles = 0
        self._holder = start(
            ["unshare", "--net", "sh", "-c", "echo ready; exec cat"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "ready\n"
        self._direct = direct
        self.run(["ip", "link", "set", "lo", "up"])
        if direct:
            return
        for command in (
            # Its address does not change when cables come.
            f"link add {BRIDGE} address {MAC} type bridge stp_state 0 forward_delay 0",
            # Its carrier does not depend on hosts: Kea serves no interface without.
            "link add anchor type veth peer name chain",
            "link set chain up",
            f"link set anchor master {BRIDGE} up",
        ):
            self.run(["ip", *command.split()])
        self._set_up()

    def _set_up(self) -> None:
        self.run(["ip", "link", "set", BRIDGE, "up"])
        self.run(["ip", "address", "add", f"{self.address}/24", "dev", BRIDGE])

    def __enter__(self) -> Lan:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the LAN and its servers; nothing happens the second time."""
        for process in [*self._processes, self._holder]:
            end(process)
        self._processes.clear()
        shutil.rmtree(self.directory, ignore_errors=True)

    def command(self, command: Sequence[str]) -> list[str]:
        """The command line that runs `command` in the LAN."""
        return ["nsenter", f"--net=/proc/{self._holder.pid}/ns/net", "--", *command]

    def run(self, command: Sequence[str]) -> str:
        return run(self.command(command))

    def start(self, command: Sequence[str], log: str, **options: Any) -> subprocess.Popen[str]:
        """Starts a program in the LAN; its output goes to the file `log`."""
        with (self.directory / log).open("a") as output:
            process = start(
                self.command(command), stdout=output, stderr=subprocess.STDOUT, **options
            )
        self._processes.append(process)
        return process

    def log(self, name: str) -> str:
        path = self.directory / name
        return path.read_text(errors="replace") if path.exists() else ""

    # Cables

    def connect(self, name: str, mac: str, pid: int, plugged: bool) -> Nic:
        """Puts the NIC `name` into the network namespace of the process `pid`
        and its cable into the LAN."""
        self._cables += 1
        nic = Nic(self, name, mac, BRIDGE if self._direct else f"cable{self._cables}")
        # Were the numbers of both ends the same, the kernel would announce carrier up to
        # a second late, which it does not do for the first carrier of a real NIC.
        peer = f"peer name {name} index {next(_INDEXES)} address {mac} netns {pid}"
        self.run(["ip", "link", "add", nic.cable, "type", "veth", *peer.split()])
        if self._direct:
            self._set_up()
            return nic
        self.run(["ip", "link", "set", nic.cable, "master", BRIDGE])
        if plugged:
            nic.plug()
        return nic

    @contextmanager
    def ping(self, address: str) -> Iterator[Echoes]:
        """Asks `address` for an echo fifty times a second while the context lasts,
        and until ten more have come."""
        echoes = Echoes(self, address)
        wait_for(lambda: len(echoes.answered()) > 10, f"{address} answers")
        yield echoes
        until = len(echoes.answered()) + 10
        wait_for(lambda: len(echoes.answered()) > until, f"{address} still answers")
        echoes.stop()

    def answers_for(self, address: str) -> list[str]:
        """The hardware addresses that answer an ARP request for `address`."""
        # More answers than questions are an error to it.
        arping = self.command(["arping", "-b", "-c", "2", "-I", BRIDGE, address])
        asked = run(arping, check=False)
        return sorted({mac.lower() for mac in re.findall(r"\[([0-9A-Fa-f:]{17})\]", asked)})

    def announcements(self, address: str) -> int:
        """How often somebody else has announced `address` by ARP, from the first call
        or :meth:`watch_arp` on."""
        self.watch_arp()
        said = rf"Request who-has {re.escape(address)} .*tell {re.escape(address)},"
        return len(re.findall(said, self.log("arp.log")))

    def watch_arp(self) -> None:
        """Begins to write down the ARP requests of others on the LAN."""
        if not (self.directory / "arp.log").exists():
            command = ["tcpdump", "-l", "-n", "-Q", "in", "-i", BRIDGE, "arp"]
            self.start(command, "arp.log")
            wait_for(lambda: "listening on" in self.log("arp.log"), "tcpdump listens")

    # Servers

    def serve_dhcp(self, *options: str, lease: str = "1h") -> None:
        """Starts dnsmasq as DHCP and DNS server; `options` are options of its
        command line. It knows the LAN by the name `gateway.lan.example`."""
        assert self._dhcp is None, "the LAN has a DHCP server already"

        def starts() -> int:
            return self.log("dnsmasq.log").count("DHCP, IP range")

        before = starts()
        self._dhcp = self.start(
            [
                "dnsmasq",
                "--keep-in-foreground",
                "--conf-file=/dev/null",
                "--no-hosts",
                "--no-resolv",
                "--log-facility=-",
                "--log-dhcp",
                # Its death with the tests depends on not changing these.
                "--user=root",
                "--group=root",
                "--pid-file=",
                f"--interface={BRIDGE}",
                "--bind-interfaces",
                # It would wait three seconds for an answer before each offer.
                "--no-ping",
                "--domain=lan.example",
                f"--host-record=gateway.lan.example,{self.address}",
                f"--dhcp-leasefile={self.directory}/leases",
                f"--dhcp-range={self.prefix}.100,{self.prefix}.199,255.255.255.0,{lease}",
                # One host, one address, whatever happened before.
                "--dhcp-authoritative",
                *options,
            ],
            "dnsmasq.log",
        )
        wait_for(lambda: starts() > before, "dnsmasq serves")

    def serve_kea(
        self,
        lease: int = 3600,
        t1: int | None = None,
        t2: int | None = None,
        options: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        """Starts Kea as DHCP server; times are seconds, `options` is Kea's
        `option-data` besides the router."""
        assert self._dhcp is None, "the LAN has a DHCP server already"
        times = {"valid-lifetime": lease}
        times |= {"renew-timer": t1} if t1 is not None else {}
        times |= {"rebind-timer": t2} if t2 is not None else {}
        pool = f"{self.prefix}.100 - {self.prefix}.199"
        router = {"name": "routers", "data": self.address}
        configuration = {
            "Dhcp4": {
                "interfaces-config": {"interfaces": [BRIDGE], "dhcp-socket-type": "raw"},
                "lease-database": {
                    "type": "memfile",
                    "persist": True,
                    "name": "/var/lib/kea/leases.csv",
                    "lfc-interval": 0,
                },
                "authoritative": True,
                **times,
                "subnet4": [
                    {
                        "id": 1,
                        "subnet": f"{self.prefix}.0/24",
                        "pools": [{"pool": pool}],
                        "option-data": [router, *options],
                    }
                ],
                "loggers": [
                    {
                        "name": "kea-dhcp4",
                        "severity": "INFO",
                        "output_options": [{"output": "stdout"}],
                    }
                ],
            }
        }
        directory = self.directory / "kea"
        directory.mkdir(exist_ok=True)
        (directory / "kea-dhcp4.conf").write_text(json.dumps(configuration, indent=2))
        seen = self.log("kea.log").count("DHCP4_STARTED")
        self._dhcp = self.start(kea_command(directory), "kea.log")
        wait_for(lambda: self.log("kea.log").count("DHCP4_STARTED") > seen, "Kea serves")

    def start_dhcp_double(self, *servers: Behaviour) -> DhcpDouble:
        """Starts DHCP servers that do what the test tells them, see dhcp_server.py.
        They may be there besides a real one."""
        self._doubles += 1
        name = f"dhcp-double{self._doubles}"
        program = str(_DOUBLES / "dhcp_server.py")
        log = self.directory / f"{name}.jsonl"
        process = self.start(
            ["/usr/bin/python3", program, "--interface", BRIDGE, "--log", str(log)],
            f"{name}.log",
            stdin=subprocess.PIPE,
        )
        double = DhcpDouble(process, log, self.own_address)
        double.serve(*servers)
        return double

    def own_address(self, address: str) -> None:
        """Has the LAN answer ARP for one more address."""
        shown = self.run(["ip", "-brief", "-4", "address", "show", "dev", BRIDGE]).split()
        if not any(owned.split("/")[0] == address for owned in shown[2:]):
            self.run(["ip", "address", "add", f"{address}/32", "dev", BRIDGE])

    def serves_dhcp(self) -> bool:
        """Whether a real DHCP server runs."""
        return self._dhcp is not None

    def stop_dhcp(self) -> None:
        """Ends the DHCP server; its leases stay known."""
        assert self._dhcp is not None
        end(self._dhcp)
        self._processes.remove(self._dhcp)
        self._dhcp = None

    def leases(self) -> dict[str, str]:
        """The addresses in use, by MAC address."""
        lines = [line.split() for line in self.log("leases").splitlines()]
        return {fields[1]: fields[2] for fields in lines if len(fields) >= 4}

    def serve_web(self, page: str, **files: str) -> str:
        """Starts a web server; the URL of `page`'s text. It has `files` beside it."""
        root = self.directory / "web"
        root.mkdir()
        for name, text in {"page": page, **files}.items():
            (root / name).write_text(text)
        server = ["python3", "-u", "-m", "http.server", "--directory", str(root)]
        self.start([*server, "--bind", self.address, "80"], "web.log")
        wait_for(lambda: "Serving HTTP" in self.log("web.log"), "the web server serves")
        return f"http://{self.address}/page"

    def web_clients(self) -> list[str]:
        """The addresses that fetched something, in order."""
        return re.findall(r'^([0-9.]+) - - \[.*\] "GET', self.log("web.log"), re.MULTILINE)

    def start_controller(self) -> str:
        """Starts the controller double; its URL."""
        program = str(_DOUBLES / "controller.py")
        command = ["python3", "-u", program, "--listen", f"{self.address}:8080"]
        command += ["--script", str(self.directory / "controller.json")]
        self.start([*command, "--log", str(self.directory / "controller.jsonl")], "controller.log")
        wait_for(lambda: "listening" in self.log("controller.log"), "the controller listens")
        return f"http://{self.address}:8080/"

    def script_controller(self, **paths: dict[str, Any]) -> None:
        """Says what the controller does, by path; `all` stands for the others."""
        script = {"*" if path == "all" else f"/{path}": what for path, what in paths.items()}
        beside = self.directory / "controller.new"
        beside.write_text(json.dumps(script))
        beside.rename(self.directory / "controller.json")

    def _controller_log(self) -> list[dict[str, Any]]:
        lines = self.log("controller.jsonl").splitlines(keepends=True)
        # One without its end is still being written.
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def task_requests(self) -> list[dict[str, Any]]:
        """What the controller was asked, see controller.py."""
        return [entry for entry in self._controller_log() if not entry["result"]]

    def results(self) -> list[dict[str, Any]]:
        """The results that the controller got."""
        return [entry for entry in self._controller_log() if entry["result"]]


class Echoes:
    """A ping that runs on a LAN."""

    def __init__(self, lan: Lan, address: str):
        self._lan = lan
        self._log = f"ping-{address}.log"
        self._process = lan.start(["ping", "-n", "-i", "0.02", address], self._log)

    def stop(self) -> None:
        self._process.send_signal(signal.SIGINT)
        self._process.wait(10)

    def answered(self) -> list[int]:
        """Numbers of the requests that were answered, in the order of the answers."""
        return [
            int(number) for number in re.findall(r"icmp_seq=(\d+) ttl", self._lan.log(self._log))
        ]

    def lost(self) -> list[int]:
        """Numbers of the requests before the last answered one that were not."""
        answered = self.answered()
        return sorted(set(range(1, max(answered) + 1)) - set(answered))
