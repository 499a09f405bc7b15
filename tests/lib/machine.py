"""A build machine as a network namespace on a bridge of a host."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

from host import Host

HOSTILE_MACHINE = [sys.executable, str(Path(__file__).resolve().parents[1] / "hostile-machine")]
"""The command line of an attack, without its name."""

# The script of udhcpc(8). `ip netns exec` mounts a resolv.conf for each machine.
_DHCP_SCRIPT = """#!/bin/sh
case $1 in bound|renew)
    ip address replace "$ip/$mask" dev "$interface"
    [ -z "$router" ] || ip route replace default via "$router"
    {
        echo "search ${search:-$domain}"
        for server in $dns; do echo "nameserver $server"; done
    } >/etc/resolv.conf
esac
"""
_SCRIPT = "/run/buildos-test-dhcp"

_NUMBERS = itertools.count(1)


class Machine:
    """A machine on a bridge of a running host. Its NIC eth0 is up."""

    def __init__(self, host: Host, bridge: str = "br1"):
        self.host = host
        self.address = ""
        """The address of the last lease."""
        number = next(_NUMBERS)
        self.name = f"machine{number}"
        self.mac = f"02:bd:01:00:{number // 256:02x}:{number % 256:02x}"
        host.run(
            f"""
            mkdir -p /etc/netns/{self.name}
            : >/etc/netns/{self.name}/resolv.conf
            ip netns add {self.name}
            ip link add {self.name} type veth peer eth0 address {self.mac} netns {self.name}
            ip link set {self.name} master {bridge} up
            """
        )
        self.run("ip link set lo up; ip link set eth0 up")

    def command(self, command: str | Sequence[str]) -> list[str]:
        """Returns the command line for the host that runs `command` on the machine."""
        arguments = ["sh", "-ec", command] if isinstance(command, str) else list(command)
        return ["ip", "netns", "exec", self.name, *arguments]

    def run(self, command: str | Sequence[str], *, check: bool = True) -> str:
        """Runs `command` on the machine; returns its standard output."""
        return self.host.run(self.command(command), check=check)

    def succeeds(self, command: str | Sequence[str]) -> bool:
        return self.host.succeeds(self.command(command))

    def outside(self, command: Sequence[str]) -> list[str]:
        """Returns the command line for the outside that runs a program of the outside in
        the machine's network namespace."""
        return [*self.host.network(f"/run/netns/{self.name}"), *command]

    def take_lease(self, client_id: str = "") -> str:
        """Configures eth0 by DHCP; returns its address. The client identifier is
        hexadecimal (RFC 2132, section 9.14)."""
        self.host.run(
            ["sh", "-ec", f"cat >{_SCRIPT} <<'END'\n{_DHCP_SCRIPT}END\nchmod +x {_SCRIPT}"]
        )
        command = ["udhcpc", "-i", "eth0", "-s", _SCRIPT, "-n", "-q", "-f", "-t", "40", "-T", "1"]
        command += ["-O", "search"]
        if client_id:
            command += ["-C", "-x", f"0x3d:{client_id}"]
        self.run(command)
        shown = self.run("ip -4 -brief address show dev eth0")
        self.address = shown.split()[2].partition("/")[0]
        return self.address


def machine_with_lease(host: Host) -> Machine:
    """Returns a new machine on br1 with an address."""
    machine = Machine(host)
    machine.take_lease()
    return machine
