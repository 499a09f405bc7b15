"""A LAN on which a machine boots: two segments, and every server a build host needs.

lan     DHCP, DNS, TFTP, NTP, a controller, a web server, all at ADDRESS
quiet   carrier, but no server
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from ipaddress import IPv4Interface
from pathlib import Path
from typing import Any

from .lan import BRIDGE, CONTROLLER_PORT, Lan

LAN = "lan"
"""The segment with the servers."""

QUIET = "quiet"
"""A segment without servers and other hosts."""

SEGMENTS = (LAN, QUIET)

ADDRESS = IPv4Interface("192.0.2.1/24")
"""The address of all servers."""

PREFIX6 = "fd6b:7569:6c64::1/64"
DOMAIN = "lan.test"
CONTROLLER_URL = f"http://controller.{DOMAIN}:{CONTROLLER_PORT}/"
WEB_URL = f"http://web.{DOMAIN}/"
NETBOOT = "netboot"
BOOT_URL = f"http://{ADDRESS.ip}/{NETBOOT}/boot.ipxe"
"""The script with which iPXE starts."""

_SOURCES = "sources"
_HELLO = """\
#include <stdio.h>

int main(void)
{
    puts("hello from a build machine");
    return 0;
}
"""


QUERY = "?repository=math,alpha&interactive=false"
"""A query string with every character that a boot loader could take for its own."""


def agent_parameters(query: str = "") -> str:
    """Returns kernel parameters for one bbot agent that polls the LAN's controller, with
    this query string in its URL.

    They waive KVM, which a machine in QEMU does not have."""
    prefix = "buildos.agentd.bbot.default"
    return f"{prefix}.controllers={CONTROLLER_URL}{query} {prefix}.kvm=waived"


class BootLan(Lan):
    """The two segments and the running servers. Files and logs are in `directory`.

    `names` maps MAC addresses to the host names that DHCP gives with the lease.
    `published` is the directory for TFTP and HTTP (see image/netboot.py), `dhcp_boot`
    the lines of dnsmasq.conf that lead machines there."""

    def __init__(
        self,
        directory: Path,
        names: Mapping[str, str] | None = None,
        published: Path | None = None,
        dhcp_boot: Sequence[str] = (),
    ) -> None:
        prefix = str(ADDRESS.ip).rpartition(".")[0]
        super().__init__(prefix, domain=DOMAIN, directory=directory)
        self._bridges = {LAN: BRIDGE, QUIET: "quiet0"}
        self._taps = 0
        try:
            self.run(["ip", "address", "add", PREFIX6, "dev", BRIDGE, "nodad"])
            self.add_bridge(self._bridges[QUIET])
            self.run(["ip", "link", "set", self._bridges[QUIET], "up"])
            self.serve_dhcp(*dhcp_options(names or {}, published, dhcp_boot))
            self.start_controller()
            self._start_web(*self._web_files(published))
            log = f"--log={directory / 'ntp.clients'}"
            self.start_program("ntp", f"--listen={self.address}", log)
        except BaseException:
            self.close()
            raise

    def _web_files(self, published: Path | None) -> list[str]:
        sources = self.directory / _SOURCES
        sources.mkdir()
        (sources / "hello.c").write_text(_HELLO)
        files = {_SOURCES: sources}
        if published:
            files[NETBOOT] = published
        return [f"--files=/{path}/={root}" for path, root in files.items()]

    def plug(self, segment: str) -> str:
        """Makes a tap on a segment; returns its name."""
        tap = f"tap{self._taps}"
        self._taps += 1
        self.run(["ip", "tuntap", "add", tap, "mode", "tap"])
        self.run(["ip", "link", "set", tap, "master", self._bridges[segment], "up"])
        return tap

    def hand_out_tasks(self, count: int, path: str = "all", **rules: Any) -> None:
        """Sets how many tasks the controller hands out in all at a path of its URL: each
        builds hello.c. `rules` are others of its script, see controller.py."""
        source = f"{WEB_URL}{_SOURCES}/hello.c"
        self.script_controller(**{path: {"tasks": count, "source": source, **rules}})


def dhcp_options(
    names: Mapping[str, str], published: Path | None, dhcp_boot: Sequence[str]
) -> list[str]:
    """Returns dnsmasq's options besides those of every LAN, see BootLan."""
    options = [
        f"--local=/{DOMAIN}/",
        f"--dhcp-option=option:ntp-server,{ADDRESS.ip}",
        # Without router advertisements iPXE waits 16 seconds for them.
        "--enable-ra",
        f"--dhcp-range=::,constructor:{BRIDGE},ra-stateless",
    ]
    options += [f"--host-record={name}.{DOMAIN},{ADDRESS.ip}" for name in ("controller", "web")]
    options += [f"--dhcp-host={mac},{name}" for mac, name in names.items()]
    if published:
        options += ["--enable-tftp", f"--tftp-root={published}"]
        options += [f"--{line}" for line in dhcp_boot]
    return options
