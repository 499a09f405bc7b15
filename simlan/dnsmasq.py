"""The LAN's DHCP, DNS and TFTP server: configuration and leases of dnsmasq."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path


@dataclass(frozen=True)
class Lease:
    """A line of dnsmasq's lease file."""

    mac: str
    address: IPv4Address
    name: str | None


def leases(text: str) -> list[Lease]:
    """The IPv4 leases of a lease file: `expiry mac address name client-id` a
    line, `*` for no name; IPv6 leases follow a line `duid …`."""
    found = []
    for line in text.splitlines():
        fields = line.split()
        if not fields or fields[0] == "duid":
            break
        _, mac, address, name, *_ = fields
        found.append(Lease(mac, IPv4Address(address), None if name == "*" else name))
    return found


def configuration(
    interface: str,
    address: IPv4Interface,
    domain: str,
    records: Mapping[str, IPv4Address],
    hosts: Mapping[str, str],
    lease_file: Path,
    tftp: Path | None,
    boot: Sequence[str] = ("dhcp-boot=pxelinux.0",),
) -> str:
    """A dnsmasq.conf for `interface`, whose address is `address`.

    `records` are names in `domain` to answer for, `hosts` maps MACs to the
    names given to them with their lease, `tftp` is the directory to publish
    or None for no network boot, `boot` the lines that say what to fetch there.
    The address is a time server's, too.
    """
    network = address.network
    lines = [
        f"interface={interface}",
        "except-interface=lo",
        "bind-dynamic",
        "user=root",
        "no-resolv",
        "no-hosts",
        f"domain={domain}",
        f"local=/{domain}/",
        f"dhcp-range={network[100]},{network[199]},1h",
        "dhcp-authoritative",
        # Nobody else is on this LAN: without this dnsmasq asks for three seconds
        # whether somebody has the address, before it offers one.
        "no-ping",
        f"dhcp-option=option:ntp-server,{address.ip}",
        f"dhcp-leasefile={lease_file}",
        "log-dhcp",
        "log-facility=-",
        # Router advertisements: without them iPXE waits for some, 16 seconds.
        "enable-ra",
        f"dhcp-range=::,constructor:{interface},ra-stateless",
    ]
    lines += [f"host-record={name}.{domain},{target}" for name, target in records.items()]
    lines += [f"dhcp-host={mac},{name}" for mac, name in hosts.items()]
    if tftp:
        lines += ["enable-tftp", f"tftp-root={tftp}", *boot]
    return "".join(f"{line}\n" for line in lines)
