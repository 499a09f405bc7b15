"""dnsmasq as the DHCP, DNS and TFTP server of a LAN: command line and leases."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

STARTED = "DHCP, IP range"
"""Text that dnsmasq logs once it serves."""


RELAY_STARTED = "DHCP relay from"
"""The same, as relay agent."""

RA_STARTED = "IPv6 router advertisement enabled"
"""The same, as sender of router advertisements."""

_COMMON = (
    "dnsmasq",
    "--keep-in-foreground",
    "--conf-file=/dev/null",
    "--no-hosts",
    "--no-resolv",
    "--log-facility=-",
    "--log-dhcp",
    # A change of credentials would clear the signal of its parent's death.
    "--user=root",
    "--group=root",
    "--pid-file=",
)


def relay_command(address: str, server: str) -> list[str]:
    """Returns the command line of a relay agent with `address` in the clients' network."""
    return [*_COMMON, "--port=0", f"--dhcp-relay={address},{server}"]


def advertisement_command(interface: str, prefix: str) -> list[str]:
    """Returns the command line of a router that only advertises PREFIX/64 on `interface`."""
    return [
        *_COMMON,
        "--port=0",
        f"--interface={interface}",
        "--bind-dynamic",
        "--leasefile-ro",
        "--enable-ra",
        f"--dhcp-range={prefix},ra-only",
    ]


def command(
    interface: str,
    prefix: str,
    domain: str,
    lease: str,
    lease_file: Path,
    options: Sequence[str],
    *,
    authoritative: bool = True,
) -> list[str]:
    """Returns dnsmasq's command line for the network PREFIX.0/24 on `interface`.

    `lease` is the lease time as in dnsmasq(8); `options` come last. An authoritative
    server answers requests for leases that it does not know: a client keeps its address
    after a restart of dnsmasq. The DNS server knows the LAN's own address, PREFIX.1, as
    `gateway.DOMAIN`."""
    return [
        *_COMMON,
        f"--interface={interface}",
        # Without waiting for duplicate address detection of the link-local address.
        "--bind-dynamic",
        # No ICMP echo before an offer: it costs three seconds.
        "--no-ping",
        f"--domain={domain}",
        f"--host-record=gateway.{domain},{prefix}.1",
        f"--dhcp-leasefile={lease_file}",
        f"--dhcp-range={prefix}.100,{prefix}.199,255.255.255.0,{lease}",
        *(["--dhcp-authoritative"] if authoritative else []),
        *options,
    ]


def leases(text: str) -> dict[str, str]:
    """Returns the IPv4 addresses of a lease file by MAC address.

    A line is `expiry mac address name client-id`. IPv6 leases follow a line `duid …`."""
    found = {}
    for line in text.splitlines():
        fields = line.split()
        if fields[:1] == ["duid"]:
            break
        if len(fields) >= 4:
            found[fields[1]] = fields[2]
    return found
