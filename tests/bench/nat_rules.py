"""NAT rule sets for the benchmark: natd's tables, and those of other programs.

The latter are the output of `nft list ruleset` and `iptables-save` for a network of one
bridge, with the benchmark's bridges and addresses."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

NETWORK = "172.23.0.0/16"
MACHINE, MACHINE_MAC = "172.23.0.9", "02:00:00:00:00:09"
PORT = "machine"
"""The machine's port of br1."""
_GOLDEN = Path(__file__).resolve().parents[2] / "crates/buildos-natd/tests/golden"

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

# Docker 28.2 with one bridge network and one container (for table raw see moby/moby, pull
# request 49829).
_DOCKER = f"""
*raw
-A PREROUTING -d {MACHINE}/32 ! -i br1 -j DROP
COMMIT
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


# natd's table of a machine with a lease.
_LEASE = f"""
add element bridge buildos hardware_addresses {{ {MACHINE_MAC} timeout 1h }}
add element bridge buildos ports {{ {MACHINE_MAC} . "{PORT}" timeout 1h }}
add element bridge buildos addresses {{ {MACHINE_MAC} . {MACHINE} . "{PORT}" timeout 1h }}
"""

# Packets of established connections then bypass routing and rules (nft(8), "flowtables").
_FLOWTABLE = """
add flowtable inet buildos fast { hook ingress priority filter; devices = { br0, br1 }; }
insert rule inet buildos forward meta l4proto { tcp, udp } ct state established flow add @fast
"""


def _inet() -> str:
    return (_GOLDEN / "ruleset.nft").read_text()


def _bridge() -> str:
    """Returns table bridge buildos with a lease.

    nft(8) does not read keys with fields of DHCP messages, which natd encodes itself. They
    are left out: only DHCP messages reach them."""
    table = (_GOLDEN / "ports.nft").read_text()
    table = re.sub(r" @th,64,8 .*?(?= counter accept)", "", table)
    return table.replace("@th,288,48 . iif", "ether saddr . iif") + _LEASE


@dataclass(frozen=True)
class Rules:
    """A rule set, and the commands that read its parts."""

    name: str
    parts: tuple[tuple[tuple[str, ...], str], ...]


def _nft(name: str, *texts: str) -> Rules:
    return Rules(name, tuple((("nft", "-f", "-"), text) for text in texts))


def _iptables(name: str, text: str) -> Rules:
    return Rules(name, ((("iptables-restore", "--noflush"), text),))


def rule_sets() -> list[Rules]:
    """Returns all rule sets. The others are compared with `bare`."""
    return [
        _nft("none"),
        _nft("bare", _BARE),
        _nft("networkd", _NETWORKD),
        _nft("buildos", _inet(), _bridge()),
        _nft("inet", _inet()),
        _nft("bridge", _BARE, _bridge()),
        _iptables("docker", _DOCKER),
        _iptables("libvirt", _LIBVIRT),
        _nft("flowtable", _inet(), _bridge(), _FLOWTABLE),
    ]
