"""A host on a LAN with the DHCP double, for many short cases in one boot."""

from __future__ import annotations

import json
from typing import Any

from buildroot import Root
from dhcp_double import DhcpDouble
from dhcp_server import Behaviour
from host import Host
from simlan.lan import Lan
from simlan.wait import DEADLINE

NETD = "buildos-netd.service"
GOOD = "198.51.100.1"
"""The LAN's own address, for correct servers."""
ROGUE = "198.51.100.66"
"""The address of wrong servers."""

_MONITOR = "/run/test-addresses"


class Site:
    """A booted host with one NIC, its LAN and the double."""

    def __init__(self, root: Root):
        self.lan = Lan()
        self.host = Host(root, "site")
        self._monitors = 0
        try:
            self.double = DhcpDouble(self.lan)
            self.host.start([self.lan])
            self.host.wait_for_boot()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Stops the host and ends the LAN."""
        self.host.stop()
        self.lan.close()

    def begin(self, *servers: Behaviour) -> None:
        """Starts netd without any state of a former lease, and these servers."""
        self.host.run(
            f"systemctl stop {NETD}\n"
            "rm -f /run/buildos/netd/*.json\n"
            "ip -4 address flush dev br0\n"
            f"systemctl reset-failed {NETD} || true\n"
        )
        self.double.serve(*servers)
        self.host.systemctl("start", "--no-block", NETD)

    def wait_online(self, deadline: float = DEADLINE) -> str:
        """Waits for a lease; returns the address of br0."""
        addresses = self.host.wait_for(lambda: self.host.addresses("br0"), "a lease", deadline)
        assert len(addresses) == 1, addresses
        return addresses[0].split("/")[0]

    def lifetime(self) -> int:
        """Returns the lifetime of br0's address in the kernel, in seconds; 0 without address."""
        shown = json.loads(self.host.run(["ip", "-json", "-4", "address", "show", "dev", "br0"]))
        infos = [info for link in shown for info in link.get("addr_info", [])]
        return int(infos[0]["valid_life_time"]) if infos else 0

    def routes(self) -> list[dict[str, Any]]:
        """Returns the IPv4 routes through br0."""
        shown: list[dict[str, Any]] = json.loads(
            self.host.run(["ip", "-json", "-4", "route", "show", "dev", "br0"])
        )
        return shown

    def default_gateways(self) -> list[str]:
        return [r["gateway"] for r in self.routes() if r["dst"] == "default"]

    def watch_addresses(self) -> None:
        """Starts to log added and removed addresses."""
        self._monitors += 1
        log = f"{_MONITOR}{self._monitors}"
        self.host.run(f"ip -4 -o monitor address </dev/null >{log} 2>&1 &")

    def addresses_removed(self) -> bool:
        """Returns true if an address was removed since `watch_addresses`."""
        return "Deleted" in self.host.read(f"{_MONITOR}{self._monitors}")
