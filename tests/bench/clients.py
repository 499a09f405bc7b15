"""DHCP clients of Debian 13: command line and configuration for a list of NICs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

PACKAGES = [
    "dbus",
    "dhcpcd-base",
    "iproute2",
    "isc-dhcp-client",
    "klibc-utils",
    "libmnl0",
    "libnftnl11",
    "network-manager",
    "strace",
    "systemd",
    "udhcpc",
]
"""Packages of the clients' root, netd excepted. strace(1) is for profiling by hand."""

_BUS = ("mkdir -p /run/dbus", "dbus-daemon --system --fork")


@dataclass(frozen=True)
class Client:
    """A DHCP client on a station."""

    name: str
    interface: str | None
    """The interface with its address; `None`: the NIC with the lease."""
    command: Callable[[Sequence[str]], list[str]]
    """Returns the client's command line for these NICs."""
    files: Callable[[Sequence[str]], Mapping[str, str]] = field(default=lambda nics: {})
    """Returns the client's configuration files for these NICs."""
    prepare: tuple[str, ...] = ()
    """Shell commands to run before the client starts; no figure includes them."""
    needs_bus: bool = False
    uses_bus: bool = False
    """The client uses D-Bus if it runs. Memory and CPU time are measured with D-Bus."""
    one_shot: bool = False
    """The client ends with its first lease."""

    def preparation(self, bus: bool) -> list[str]:
        """Returns the shell commands that prepare a station for the client."""
        wanted = self.needs_bus or (bus and self.uses_bus)
        return [*(_BUS if wanted else ()), *self.prepare]


# netd runs as root here; its own policy is for the user of its unit.
_NETD_POLICY = """\
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-BUS Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <policy user="root"><allow own="org.build2.buildos.network1"/></policy>
</busconfig>
"""


def _netd(nics: Sequence[str]) -> Mapping[str, str]:
    names = ", ".join(f'"{nic}"' for nic in nics)
    return {
        "/etc/buildos/netd.conf.d/10-nics.toml": f"include = [{names}]\n",
        "/etc/dbus-1/system.d/bench.conf": _NETD_POLICY,
    }


def _networkd(nics: Sequence[str]) -> Mapping[str, str]:
    return {
        "/etc/systemd/network/10-nics.network": (
            f"[Match]\nName={' '.join(nics)}\n[Network]\nDHCP=ipv4\n"
        )
    }


def _networkd_bridge(nics: Sequence[str]) -> Mapping[str, str]:
    return {
        "/etc/systemd/network/10-br0.netdev": "[NetDev]\nName=br0\nKind=bridge\n",
        "/etc/systemd/network/10-nics.network": (
            f"[Match]\nName={' '.join(nics)}\n[Network]\nBridge=br0\n"
        ),
        "/etc/systemd/network/20-br0.network": "[Match]\nName=br0\n[Network]\nDHCP=ipv4\n",
    }


_MANAGER = """\
[main]
plugins=keyfile
auth-polkit=false
dns=none
rc-manager=unmanaged
[connectivity]
enabled=false
[keyfile]
unmanaged-devices=none
"""


def _connection(name: str, kind: str, *lines: str) -> str:
    head = f"[connection]\nid={name}\ntype={kind}\ninterface-name={name}\nautoconnect=true\n"
    return head + "\n".join(lines) + "\n"


def _manager(nics: Sequence[str]) -> Mapping[str, str]:
    files = {"/etc/NetworkManager/NetworkManager.conf": _MANAGER}
    for nic in nics:
        path = f"/etc/NetworkManager/system-connections/{nic}.nmconnection"
        files[path] = _connection(nic, "ethernet", "[ipv4]", "method=auto")
    return files


def _manager_bridge(nics: Sequence[str]) -> Mapping[str, str]:
    files = {"/etc/NetworkManager/NetworkManager.conf": _MANAGER}
    connections = "/etc/NetworkManager/system-connections"
    bridge = _connection("br0", "bridge", "[bridge]", "stp=false", "[ipv4]", "method=auto")
    files[f"{connections}/br0.nmconnection"] = bridge
    for nic in nics:
        port = _connection(nic, "ethernet")
        port = port.replace("autoconnect", "master=br0\nslave-type=bridge\nautoconnect")
        files[f"{connections}/{nic}.nmconnection"] = port
    return files


def _each(command: str) -> Callable[[Sequence[str]], list[str]]:
    """Makes a command line with one process per NIC, for programs that use one NIC."""

    def line(nics: Sequence[str]) -> list[str]:
        if len(nics) == 1:
            program, *arguments = command.format(nic=nics[0]).split()
            return [program, *arguments]
        started = " ".join(f"{command.format(nic=nic)} &" for nic in nics)
        return ["/bin/sh", "-c", f"{started} wait"]

    return line


# Directories that systemd makes for its unit.
_NETWORKD_RUN = (
    "for d in /run/systemd/netif /run/systemd/netif/leases /run/systemd/netif/links"
    " /run/systemd/netif/lldp; do install -d -o systemd-network -g systemd-network $d; done",
)

CLIENTS = [
    Client(
        "netd",
        "br0",
        lambda nics: ["/usr/sbin/buildos-netd"],
        _netd,
        ("mkdir -p /run/buildos/netd",),
        uses_bus=True,
    ),
    Client(
        "networkd",
        None,
        lambda nics: ["/usr/lib/systemd/systemd-networkd"],
        _networkd,
        _NETWORKD_RUN,
        uses_bus=True,
    ),
    Client(
        "networkd-br0",
        "br0",
        lambda nics: ["/usr/lib/systemd/systemd-networkd"],
        _networkd_bridge,
        _NETWORKD_RUN,
        uses_bus=True,
    ),
    Client(
        "nm",
        None,
        lambda nics: ["/usr/sbin/NetworkManager", "--no-daemon"],
        _manager,
        needs_bus=True,
    ),
    Client(
        "nm-br0",
        "br0",
        lambda nics: ["/usr/sbin/NetworkManager", "--no-daemon"],
        _manager_bridge,
        needs_bus=True,
    ),
    Client("udhcpc", None, _each("/usr/sbin/udhcpc -f -i {nic}")),
    Client("dhcpcd", None, lambda nics: ["/usr/sbin/dhcpcd", "-B", "-4", "--nodev", *nics]),
    Client(
        "dhcpcd-noarp",
        None,
        lambda nics: ["/usr/sbin/dhcpcd", "-B", "-4", "--nodev", "--noarp", *nics],
    ),
    Client("dhclient", None, lambda nics: ["/usr/sbin/dhclient", "-d", *nics]),
    Client(
        "ipconfig",
        None,
        lambda nics: ["/usr/lib/klibc/bin/ipconfig", "-t", "60", "-c", "dhcp", *nics],
        # ipconfig loses its first DISCOVER, and a second, on a NIC that it sets up itself.
        prepare=("for nic in /sys/class/net/eth*; do ip link set ${nic##*/} up; done",),
        one_shot=True,
    ),
]
"""In the order of the tables: netd, other services, small programs."""
