"""The LAN itself: segments, the servers on them, taps for machines."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Mapping, Sequence
from ipaddress import IPv4Interface
from pathlib import Path
from types import TracebackType
from typing import Any

from . import dnsmasq, netboot
from .sandbox import Sandbox

LAN = "lan"
"""The segment with the servers."""

QUIET = "quiet"
"""A segment with carrier and nobody on it."""

SEGMENTS = (LAN, QUIET)

ADDRESS = IPv4Interface("192.0.2.1/24")
"""Of the one host on LAN that is every server."""

PREFIX6 = "fd6b:7569:6c64::1/64"
DOMAIN = "lan.test"
DNS_PORT = 53
WEB_PORT = 80
CONTROLLER_PORT = 8080
CONTROLLER_URL = f"http://controller.{DOMAIN}:{CONTROLLER_PORT}/"
WEB_URL = f"http://web.{DOMAIN}/"
NETBOOT = "netboot"
BOOT_URL = f"http://{ADDRESS.ip}/{NETBOOT}/boot.ipxe"
"""Where iPXE begins."""

_HERE = Path(__file__).parent
_SCRIPT = "controller.json"
_CONTROLLER = _HERE.parents[1] / "tests/doubles/controller.py"


SERVERS_SECONDS = 60
"""For the servers to begin to listen. They take one."""


class LanError(Exception):
    """A server of the LAN ended or does not listen."""


class Lan:
    """Two segments in a sandbox of their own, and the servers of LAN.

    The files of the servers lie in `directory`, their output in NAME.log there.
    """

    def __init__(
        self,
        directory: Path,
        hosts: Mapping[str, str] | None = None,
        published: Path | None = None,
        way: str = "pxelinux",
    ) -> None:
        """`hosts` maps MACs to the names that DHCP gives them; `published` is the
        directory for network boot (see netboot.py), if there shall be one, `way`
        how machines boot from it."""
        self._directory = directory
        self._lease_file = directory / "dnsmasq.leases"
        self._servers: dict[str, subprocess.Popen[bytes]] = {}
        self._taps = 0
        self.sandbox = Sandbox()
        try:
            self._make_segments()
            self._start_servers(hosts or {}, published, way)
        except BaseException:
            self.close()
            raise

    def _make_segments(self) -> None:
        batch = ["link set lo up"]
        for segment in SEGMENTS:
            batch += [f"link add {segment} type bridge mcast_snooping 0"]
        batch += [
            f"address add {ADDRESS} dev {LAN}",
            f"address add {PREFIX6} dev {LAN} nodad",
            *(f"link set {segment} up" for segment in SEGMENTS),
        ]
        self.sandbox.run("ip", "-batch", "-", text="\n".join(batch) + "\n")

    def _start_servers(
        self, hosts: Mapping[str, str], published: Path | None, way: str
    ) -> None:
        names = {"controller": ADDRESS.ip, "web": ADDRESS.ip}
        configuration = self._directory / "dnsmasq.conf"
        configuration.write_text(
            dnsmasq.configuration(
                LAN,
                ADDRESS,
                DOMAIN,
                names,
                hosts,
                self._lease_file,
                published,
                netboot.dhcp_boot(way, BOOT_URL),
            )
        )
        self._start("dnsmasq", ["dnsmasq", "--keep-in-foreground", f"--conf-file={configuration}"])
        script = f"--script={self._directory / _SCRIPT}"
        for name, program, port, options in (
            ("controller", _CONTROLLER, CONTROLLER_PORT, [script]),
            ("web", _HERE / "web.py", WEB_PORT, [f"--publish={published}"] if published else []),
        ):
            listen = f"--listen={ADDRESS.ip}:{port}"
            log = f"--log={self._directory}/{name}.jsonl"
            self._start(name, ["/usr/bin/python3", str(program), listen, log, *options])
        ntp_log = self._directory / "ntp.clients"
        ntp = [str(_HERE / "ntp.py"), f"--listen={ADDRESS.ip}", f"--log={ntp_log}"]
        self._start("ntp", ["/usr/bin/python3", *ntp])
        self._wait_for_ports({DNS_PORT, WEB_PORT, CONTROLLER_PORT})

    def _wait_for_ports(self, wanted: set[int]) -> None:
        deadline = time.monotonic() + SERVERS_SECONDS
        while missing := wanted - self._listening():
            self.check()
            if time.monotonic() > deadline:
                raise LanError(f"nobody on the LAN listens on TCP port {missing}")
            time.sleep(0.1)

    def _listening(self) -> set[int]:
        """TCP ports on which somebody listens at ADDRESS."""
        table = self.sandbox.run("ss", "-H", "--listening", "--tcp", "--numeric")
        local = [line.split()[3] for line in table.splitlines()]
        return {int(end.rpartition(":")[2]) for end in local if end.startswith(f"{ADDRESS.ip}:")}

    def _start(self, name: str, argv: Sequence[str]) -> None:
        with (self._directory / f"{name}.log").open("wb") as log:
            self._servers[name] = self.sandbox.start(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # ^C on the terminal is for the machine on it.
                process_group=0,
            )

    def plug(self, segment: str) -> str:
        """Makes a tap on a segment; returns its name."""
        tap = f"tap{self._taps}"
        self._taps += 1
        self.sandbox.run("ip", "tuntap", "add", tap, "mode", "tap")
        self.sandbox.run("ip", "link", "set", tap, "master", segment, "up")
        return tap

    def check(self) -> None:
        """Raises LanError, with what it printed, when a server has ended."""
        for name, server in self._servers.items():
            if server.poll() is not None:
                text = (self._directory / f"{name}.log").read_text(errors="replace")
                raise LanError(f"the LAN's {name} ended ({server.returncode}):\n{text}")

    def leases(self) -> list[dnsmasq.Lease]:
        """What the DHCP server has given out."""
        try:
            return dnsmasq.leases(self._lease_file.read_text())
        except FileNotFoundError:
            return []

    def hand_out_tasks(self, count: int) -> None:
        """Has the controller hand out this many tasks in all: to build /hello.c."""
        script = {"*": {"tasks": count, "source": f"{WEB_URL}hello.c"}}
        beside = self._directory / f"{_SCRIPT}.new"
        beside.write_text(json.dumps(script))
        beside.rename(self._directory / _SCRIPT)

    def polls(self) -> list[dict[str, Any]]:
        """The task requests that the controller got (see tests/doubles/controller.py)."""
        return [entry for entry in self._entries("controller") if not entry["result"]]

    def results(self) -> list[dict[str, Any]]:
        """The results that the controller got."""
        return [entry for entry in self._entries("controller") if entry["result"]]

    def visits(self) -> list[dict[str, Any]]:
        """The requests that the web server got (see web.py)."""
        return self._entries("web")

    def _entries(self, name: str) -> list[dict[str, Any]]:
        try:
            text = (self._directory / f"{name}.jsonl").read_text()
        except FileNotFoundError:
            return []
        # A line without its end is still being written.
        return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]

    def close(self) -> None:
        """Ends the servers and takes the segments away."""
        self.sandbox.close()
        for server in self._servers.values():
            server.wait()

    def __enter__(self) -> Lan:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
