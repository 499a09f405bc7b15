"""NAT rule sets for the benchmark: natd's table, and those of other programs.

The latter are the output of `nft list ruleset` and `iptables-save` for a network of one
bridge, with the benchmark's bridges and addresses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

NETWORK = "172.23.0.0/16"
_GOLDEN = Path(__file__).resolve().parents[2] / "crates/buildos-natd/tests/golden/ruleset.nft"

_BARE = """
table ip nat {
    chain postrouting {
        type nat hook postrouting priority srcnat; policy accept;
        oifname "br0" masquerade
    }
}
"""

# systemd-networkd with IPMasquerade=ipv4 (systemd's src/shared/firewall-util-nft.c).
_NETWORKD = f"""
table ip io.systemd.nat {{
    set masq_saddr {{
        type ipv4_addr
        flags interval
        elements = {{ {NETWORK} }}
    }}
    map map_port_ipport {{
        type inet_proto . inet_service : ipv4_addr . inet_service
    }}
    chain prerouting {{
        type nat hook prerouting priority dstnat + 1; policy accept;
        fib daddr type local dnat ip to meta l4proto . th dport map @map_port_ipport
    }}
    chain output {{
        type nat hook output priority -99; policy accept;
        ip daddr != 127.0.0.0/8 oif "lo" dnat ip to meta l4proto . th dport map @map_port_ipport
    }}
    chain postrouting {{
        type nat hook postrouting priority srcnat + 1; policy accept;
        ip saddr @masq_saddr masquerade
    }}
}}
"""

# libvirt's network "default" with its iptables driver.
_LIBVIRT = f"""
*mangle
:LIBVIRT_PRT -
-A POSTROUTING -j LIBVIRT_PRT
-A LIBVIRT_PRT -o br1 -p udp -m udp --dport 68 -j CHECKSUM --checksum-fill
COMMIT
*nat
:LIBVIRT_PRT -
-A POSTROUTING -j LIBVIRT_PRT
-A LIBVIRT_PRT -s {NETWORK} -d 224.0.0.0/24 -j RETURN
-A LIBVIRT_PRT -s {NETWORK} -d 255.255.255.255/32 -j RETURN
-A LIBVIRT_PRT -s {NETWORK} ! -d {NETWORK} -p tcp -j MASQUERADE --to-ports 1024-65535
-A LIBVIRT_PRT -s {NETWORK} ! -d {NETWORK} -p udp -j MASQUERADE --to-ports 1024-65535
-A LIBVIRT_PRT -s {NETWORK} ! -d {NETWORK} -j MASQUERADE
COMMIT
*filter
:LIBVIRT_INP -
:LIBVIRT_OUT -
:LIBVIRT_FWO -
:LIBVIRT_FWI -
:LIBVIRT_FWX -
-A INPUT -j LIBVIRT_INP
-A FORWARD -j LIBVIRT_FWX
-A FORWARD -j LIBVIRT_FWI
-A FORWARD -j LIBVIRT_FWO
-A OUTPUT -j LIBVIRT_OUT
-A LIBVIRT_INP -i br1 -p udp -m udp --dport 53 -j ACCEPT
-A LIBVIRT_INP -i br1 -p tcp -m tcp --dport 53 -j ACCEPT
-A LIBVIRT_INP -i br1 -p udp -m udp --dport 67 -j ACCEPT
-A LIBVIRT_INP -i br1 -p tcp -m tcp --dport 67 -j ACCEPT
-A LIBVIRT_OUT -o br1 -p udp -m udp --dport 53 -j ACCEPT
-A LIBVIRT_OUT -o br1 -p tcp -m tcp --dport 53 -j ACCEPT
-A LIBVIRT_OUT -o br1 -p udp -m udp --dport 68 -j ACCEPT
-A LIBVIRT_OUT -o br1 -p tcp -m tcp --dport 68 -j ACCEPT
-A LIBVIRT_FWO -s {NETWORK} -i br1 -j ACCEPT
-A LIBVIRT_FWO -i br1 -j REJECT --reject-with icmp-port-unreachable
-A LIBVIRT_FWI -d {NETWORK} -o br1 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A LIBVIRT_FWI -o br1 -j REJECT --reject-with icmp-port-unreachable
-A LIBVIRT_FWX -i br1 -o br1 -j ACCEPT
COMMIT
"""

# Docker 28 with one bridge network.
_DOCKER = f"""
*nat
:DOCKER -
-A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
-A OUTPUT ! -d 127.0.0.0/8 -m addrtype --dst-type LOCAL -j DOCKER
-A POSTROUTING -s {NETWORK} ! -o br1 -j MASQUERADE
-A DOCKER -i br1 -j RETURN
COMMIT
*filter
:FORWARD DROP
:DOCKER -
:DOCKER-BRIDGE -
:DOCKER-CT -
:DOCKER-FORWARD -
:DOCKER-ISOLATION-STAGE-1 -
:DOCKER-ISOLATION-STAGE-2 -
:DOCKER-USER -
-A FORWARD -j DOCKER-USER
-A FORWARD -j DOCKER-FORWARD
-A DOCKER ! -i br1 -o br1 -j DROP
-A DOCKER-BRIDGE -o br1 -j DOCKER
-A DOCKER-CT -o br1 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A DOCKER-FORWARD -j DOCKER-CT
-A DOCKER-FORWARD -j DOCKER-ISOLATION-STAGE-1
-A DOCKER-FORWARD -j DOCKER-BRIDGE
-A DOCKER-FORWARD -i br1 -j ACCEPT
-A DOCKER-ISOLATION-STAGE-1 -i br1 ! -o br1 -j DOCKER-ISOLATION-STAGE-2
-A DOCKER-ISOLATION-STAGE-2 -o br1 -j DROP
-A DOCKER-USER -j RETURN
COMMIT
"""


def _flowtable(table: str) -> str:
    """Adds a flowtable to natd's table: packets of established connections then bypass
    routing and rules (nft(8), "flowtables")."""
    first = "\tchain prerouting {"
    fast = "\tflowtable fast { hook ingress priority filter; devices = { br0, br1 }; }\n"
    rule = '\t\tiifname "br1" oifname "br0" ip daddr !='
    add = "\t\tmeta l4proto { tcp, udp } ct state established flow add @fast\n"
    assert first in table and rule in table
    return table.replace(first, fast + first, 1).replace(rule, add + rule, 1)


@dataclass(frozen=True)
class Rules:
    """A rule set, and the command that reads it."""

    name: str
    command: tuple[str, ...]
    text: str
    full: bool
    """True if the rules also filter; false for NAT alone."""


def rule_sets(flowtable: bool) -> list[Rules]:
    """Returns all rule sets. The others are compared with `bare`."""
    nft, iptables = ("nft", "-f", "-"), ("iptables-restore", "--noflush")
    fast = [Rules("flowtable", nft, _flowtable(_GOLDEN.read_text()), True)] if flowtable else []
    return [
        *fast,
        Rules("none", nft, "", False),
        Rules("bare", nft, _BARE, False),
        Rules("buildos", nft, _GOLDEN.read_text(), True),
        Rules("networkd", nft, _NETWORKD, False),
        Rules("libvirt", iptables, _LIBVIRT, True),
        Rules("docker", iptables, _DOCKER, True),
    ]
