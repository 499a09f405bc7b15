"""Rules of others beside ours: what they drop of machines' traffic is named."""

from __future__ import annotations

import pytest
from host import Host
from lan import Lan
from machine import Machine
from nat import FOREIGN, FOREIGN_GONE, now, told, wait_for_status, wait_until_ready

# What Docker sets up for its default bridge (iptables -S), without containers.
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

# The shape of firewalld's tables, with its default of rejecting what is forwarded.
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


def _nft(host: Host, rules: str) -> None:
    host.run(f"nft -f - <<'END'\n{rules}\nEND")


def test_dockers_policy_is_found_and_named(online: Host, lan: Lan) -> None:
    machine = Machine(online)
    machine.take_lease()
    since = now(online)
    online.run(_DOCKER)
    status = wait_for_status(online, "machines are cut off")
    assert "the policy of chain FORWARD in table ip filter drops what machines send out" in status
    assert not machine.succeeds(f"ping -c 1 -W 1 {lan.address}")
    assert online.bus_property("nat1", "State") == "degraded"
    assert online.bus_property("nat1", "Ready") is False
    (drop,) = online.bus_property("nat1", "ForeignDrops")
    assert drop in status
    message = online.wait_for(lambda: told(online, FOREIGN, since), "told")[0]
    assert message["BUILDOS_TABLE"] == "ip filter"
    assert message["BUILDOS_CHAIN"] == "FORWARD"
    assert message["BUILDOS_COMMAND"] == "iptables"
    # What its manual says to do about it, and journalctl -x repeats.
    online.run(
        "iptables -I DOCKER-USER -i br1 -o br0 -j ACCEPT\n"
        "iptables -I DOCKER-USER -i br0 -o br1 -j ACCEPT"
    )
    wait_until_ready(online)
    assert machine.succeeds(f"ping -c 1 -W 5 {lan.address}")
    assert online.bus_property("nat1", "ForeignDrops") == []
    assert told(online, FOREIGN_GONE, since)


# The usual firewall: states first, then what is wanted.
_USUAL = """
iptables -P FORWARD DROP
iptables -A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
iptables -A FORWARD -m conntrack --ctstate INVALID -j DROP
iptables -A FORWARD -i eth1 -o eth0 -j ACCEPT
"""


def test_the_usual_firewall_is_understood(online: Host) -> None:
    online.run(_USUAL)
    status = wait_for_status(online, "machines are cut off")
    # The answers would be let through.
    assert status.endswith("chain FORWARD in table ip filter drops what machines send out")
    online.run("iptables -A FORWARD -i br1 -j ACCEPT")
    wait_until_ready(online)


def test_firewalld_is_found_and_named(online: Host) -> None:
    rule = "rule 6 (reject) of chain filter_FORWARD in table inet firewalld"
    _nft(online, _FIREWALLD)
    status = wait_for_status(online, "machines are cut off")
    assert status.endswith(f"{rule} drops what machines send out")
    _nft(online, 'insert rule inet firewalld filter_FORWARD iifname { "br1", "br7" } accept')
    wait_until_ready(online)
    # As at its reload.
    _nft(online, f"delete table inet firewalld\n{_FIREWALLD}")
    wait_for_status(online, "machines are cut off")
    _nft(online, "delete table inet firewalld")
    wait_until_ready(online)


@pytest.mark.parametrize(
    ("chain", "rules", "expected"),
    [
        (
            "input",
            'iifname "lo" accept\n tcp dport 22 accept',
            "machines' requests for an address and machines' questions for names",
        ),
        ("output", 'oifname "lo" accept', "what the host answers machines"),
        ("prerouting", 'iifname "eth0" accept', "what machines send out"),
    ],
)
def test_a_firewall_that_forgets_the_machines(
    online: Host, chain: str, rules: str, expected: str
) -> None:
    hook = f"type filter hook {chain} priority 0; policy drop;"
    _nft(online, f"table inet fw {{\n chain {chain} {{\n {hook}\n {rules}\n }}\n}}")
    status = wait_for_status(online, "machines are cut off")
    assert f"the policy of chain {chain} in table inet fw drops" in status
    assert expected in status


def test_a_rule_that_cannot_be_read_is_felt_by_the_probe(online: Host) -> None:
    online.run("iptables -A FORWARD -m mark ! --mark 0x1 -j DROP")
    (suspect, *_) = online.wait_for(
        lambda: online.bus_property("nat1", "ForeignSuspects"), "a suspect"
    )
    assert "rule 1 (… drop) of chain FORWARD in table ip filter may drop" in suspect
    # Suspicion is no harm. What it does is.
    status = wait_for_status(online, "no machine could work here: step outside of the probe")
    assert suspect in status
    assert online.bus_property("nat1", "ProbeStep") == "outside"
    online.run("iptables -F FORWARD")
    wait_until_ready(online)


def test_a_rule_of_the_other_iptables_is_felt_by_the_probe(online: Host) -> None:
    if not online.succeeds("iptables-legacy -P FORWARD DROP"):
        # The kernel is without the tables of old; then nothing can be in them.
        assert not online.succeeds("test -e /proc/net/ip_tables_names")
        return
    online.run("nft add table ip awake")
    wait_for_status(online, "no machine could work here: step outside of the probe")
    online.run("iptables-legacy -P FORWARD ACCEPT")
    wait_until_ready(online)


def test_what_does_not_concern_machines_is_left_alone(online: Host) -> None:
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
    online.wait_for(lambda: online.bus_property("nat1", "ForeignSuspects"), "seen")
    assert online.bus_property("nat1", "ForeignDrops") == []
    assert online.bus_property("nat1", "Ready") is True
