"""Tests that natd names nftables chains of other programs that drop packets of machines."""

from __future__ import annotations

import pytest
from host import Host
from machine import Machine
from nat import FOREIGN, FOREIGN_GONE, messages, now, wait_for_status, wait_until_ready
from simlan.lan import Lan

# Rules of Docker for its default bridge (iptables -S), without containers.
_DOCKER = """
iptables -P FORWARD DROP
for chain in DOCKER DOCKER-USER DOCKER-FORWARD DOCKER-CT DOCKER-BRIDGE DOCKER-INTERNAL; do
    iptables -N $chain
done
iptables -A FORWARD -j DOCKER-USER
iptables -A FORWARD -j DOCKER-FORWARD
iptables -A DOCKER-FORWARD -j DOCKER-CT
iptables -A DOCKER-FORWARD -j DOCKER-INTERNAL
iptables -A DOCKER-FORWARD -j DOCKER-BRIDGE
iptables -A DOCKER-FORWARD -i docker0 -j ACCEPT
iptables -A DOCKER-CT -o docker0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
iptables -A DOCKER-BRIDGE -o docker0 -j DOCKER
iptables -A DOCKER ! -i docker0 -o docker0 -j DROP
iptables -t nat -N DOCKER
iptables -t nat -A PREROUTING -m addrtype --dst-type LOCAL -j DOCKER
iptables -t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE
"""

# Tables in the shape of firewalld's, which rejects forwarded packets by default.
_FIREWALLD = """
table inet firewalld {
    chain filter_FORWARD {
        type filter hook forward priority filter + 10; policy accept;
        ct state { established, related } accept
        ct status dnat accept
        iifname "lo" accept
        ct state invalid drop
        jump filter_FORWARD_POLICIES
        reject with icmpx admin-prohibited
    }
    chain filter_FORWARD_POLICIES {
        iifname "virbr0" oifname "eth0" accept
    }
}
"""

_POLICY_DROPS = "chain FORWARD in table ip filter (hook forward, policy drop) drops"


def _nft(host: Host, rules: str) -> None:
    host.run(f"nft -f - <<'END'\n{rules}\nEND")


def _probed_since(host: Host, since: str) -> bool:
    finished: int = host.bus_property("nat1", "ProbeUSec")
    return finished > float(since) * 1_000_000


def test_docker_forward_policy_is_named_until_docker_user_accepts(online: Host, lan: Lan) -> None:
    machine = Machine(online)
    machine.take_lease()
    since = now(online)
    online.run(_DOCKER)
    status = wait_for_status(online, "machines are cut off")
    assert f"{_POLICY_DROPS} packets from machines to the outside" in status
    assert not machine.succeeds(f"ping -c 1 -W 1 {lan.address}")
    assert online.bus_property("nat1", "State") == "degraded"
    assert online.bus_property("nat1", "Ready") is False
    (drop,) = online.bus_property("nat1", "ForeignDrops")
    assert drop in status
    message = online.wait_for(lambda: messages(online, FOREIGN, since), "natd logs the finding")[0]
    assert message["BUILDOS_TABLE"] == "ip filter"
    assert message["BUILDOS_CHAIN"] == "FORWARD"
    assert message["BUILDOS_COMMAND"] == "iptables"
    # The fix in Docker's manual and in journalctl -x.
    online.run(
        "iptables -I DOCKER-USER -i br1 -o br0 -j ACCEPT\n"
        "iptables -I DOCKER-USER -i br0 -o br1 -j ACCEPT"
    )
    wait_until_ready(online)
    assert machine.succeeds(f"ping -c 1 -W 5 {lan.address}")
    assert online.bus_property("nat1", "ForeignDrops") == []
    assert messages(online, FOREIGN_GONE, since)


# A usual firewall: states first, then the accepted interfaces.
_USUAL = """
iptables -P FORWARD DROP
iptables -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
iptables -A FORWARD -m conntrack --ctstate INVALID -j DROP
iptables -A FORWARD -i eth1 -o eth0 -j ACCEPT
"""


def test_usual_firewall_is_named_for_new_connections_only(online: Host) -> None:
    online.run(_USUAL)
    status = wait_for_status(online, "machines are cut off")
    # The firewall accepts the answers.
    assert status.endswith(f"{_POLICY_DROPS} packets from machines to the outside")
    online.run("iptables -A FORWARD -i br1 -j ACCEPT")
    wait_until_ready(online)


def test_firewalld_is_named_when_the_probe_fails(online: Host) -> None:
    chain = "chain filter_FORWARD in table inet firewalld (hook forward, policy accept)"
    failed = "no machine could work here: step outside of the probe"
    _nft(online, _FIREWALLD)
    # natd does not read sets, so "ct state { … } accept" can match.
    status = wait_for_status(online, failed)
    assert f"{chain} can drop packets from machines to the outside" in status
    assert online.bus_property("nat1", "ForeignDrops") == []
    _nft(online, 'insert rule inet firewalld filter_FORWARD iifname { "br1", "br7" } accept')
    wait_until_ready(online)
    assert online.bus_property("nat1", "ForeignSuspects") == []
    # firewalld replaces its table at a reload.
    _nft(online, f"delete table inet firewalld\n{_FIREWALLD}")
    wait_for_status(online, failed)
    _nft(online, "delete table inet firewalld")
    wait_until_ready(online)


@pytest.mark.parametrize(
    ("chain", "rules", "expected"),
    [
        (
            "input",
            'iifname "lo" accept\n tcp dport 22 accept',
            "machines' requests for DHCP and DNS",
        ),
        ("output", 'oifname "lo" accept', "the host's answers to machines"),
        ("prerouting", 'iifname "eth0" accept', "packets from machines to the outside"),
    ],
)
def test_host_firewall_without_rule_for_machines_is_named(
    online: Host, chain: str, rules: str, expected: str
) -> None:
    hook = f"type filter hook {chain} priority 0; policy drop;"
    _nft(online, f"table inet fw {{\n chain {chain} {{\n {hook}\n {rules}\n }}\n}}")
    status = wait_for_status(online, "machines are cut off")
    assert f"chain {chain} in table inet fw (hook {chain}, policy drop) drops" in status
    assert expected in status


def test_conditional_drop_is_named_when_the_probe_fails(online: Host) -> None:
    online.run("iptables -A FORWARD -m mark ! --mark 0x1 -j DROP")
    (suspect, *_) = online.wait_for(
        lambda: online.bus_property("nat1", "ForeignSuspects"), "natd suspects a chain"
    )
    chain = "chain FORWARD in table ip filter (hook forward, policy accept)"
    assert suspect.startswith(f"{chain} can drop")
    status = wait_for_status(online, "no machine could work here: step outside of the probe")
    assert suspect in status
    assert online.bus_property("nat1", "ProbeStep") == "outside"
    online.run("iptables -F FORWARD")
    wait_until_ready(online)


def test_drop_of_iptables_legacy_fails_the_probe(online: Host) -> None:
    if not online.succeeds("iptables-legacy -P FORWARD DROP"):
        # The kernel has no tables of iptables-legacy.
        assert not online.succeeds("test -e /proc/net/ip_tables_names")
        return
    online.run("nft add table ip awake")
    wait_for_status(online, "no machine could work here: step outside of the probe")
    online.run("iptables-legacy -P FORWARD ACCEPT")
    wait_until_ready(online)


def test_firewall_that_accepts_machines_is_no_finding(online: Host) -> None:
    since = now(online)
    _nft(
        online,
        """
        table inet fw {
            chain forward {
                type filter hook forward priority 0; policy drop;
                ct state vmap { established : accept, related : accept, invalid : drop }
                iifname { "br1", "br7" } oifname "br0" accept
                iifname "docker0" drop
            }
            chain input {
                type filter hook input priority 0; policy drop;
                iifname "br*" accept
            }
        }
        """,
    )
    # natd starts a probe at once after each change of the ruleset.
    changed = now(online)
    online.wait_for(lambda: _probed_since(online, changed), "a probe")
    assert online.bus_property("nat1", "Probe") == "passed"
    assert online.bus_property("nat1", "ForeignDrops") == []
    assert online.bus_property("nat1", "ForeignSuspects") == []
    assert online.bus_property("nat1", "Ready") is True
    assert not messages(online, FOREIGN, since)
