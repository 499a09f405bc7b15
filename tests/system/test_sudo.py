"""Tests which commands sudo permits to agents."""

from __future__ import annotations

import json

from agents import bslave, restart, wait_until_runs
from host import Host
from simlan.lan import Lan

PERMITTED = """
ip tuntap add tap7 mode tap user build
ip tuntap add tap7 mode tap user 999
/usr/bin/ip tuntap add dev tap7 mode tap user build
ip tuntap del tap7 mode tap
ip tuntap delete tap7 mode tap
ip link set tap7 up master br1
ip link set tap7 master br1 up
ip link set tap7 up
ip link set dev tap7 master br0
ip link delete tap7
iptables -t nat -A PREROUTING -m physdev --physdev-in tap7 -d 196.254.111.222 -p udp --dport 69 -j REDIRECT --to-ports 23400
iptables --wait 30 -t nat -A PREROUTING -m physdev --physdev-in tap7 -d 196.254.111.222 -p udp --dport 69 -j REDIRECT --to-ports 23400
iptables -w -t nat -D PREROUTING -p udp -m udp -m physdev --physdev-in tap7 -d 196.254.111.222 --dport 69 -j REDIRECT --to-ports 23400
iptables -t nat -I PREROUTING -p udp -m udp -m physdev --physdev-in tap7 -d 196.254.111.222/32 --dport 69 -j REDIRECT --to-port 23400
iptables -t nat -C PREROUTING -d 196.254.111.222 -p udp --dport 69 -m physdev --physdev-in tap7 -j REDIRECT --to-port 23400
btrfs subvolume snapshot /build/machines/default/linux_debian_12-gcc_12/linux_debian_12-gcc_12-1 /build/machines/default/x/.x-1.0-a
btrfs subvolume snapshot -r /build/machines/a /build/machines/b
btrfs -q subvolume snapshot /build/machines/a /build/machines/b
btrfs subvolume create /build/machines/a
btrfs subvolume delete /build/machines/a
btrfs subvolume delete -c /build/machines/a /build/machines/b
btrfs property set -ts /build/machines/a ro false
btrfs property set -t subvol /build/machines/a ro true
btrfs property get -ts /build/machines/a ro
/usr/sbin/ip link delete tap7
"""

REFUSED = """
ip link delete br1
ip link set br1 down
ip link set eth0 master br1
ip link set tap7 master br2
ip link set tap7 netns 1
ip link set tap7 up netns 1
ip netns exec x id
ip netns add x
ip vrf exec x id
ip -batch /etc/shadow
ip -b /etc/shadow
ip -force -batch /etc/shadow
ip -n x link set tap7 up
ip -netns x link set tap7 up
ip
ip link set tap7 up alias x
ip link set tap7 xdp object x
ip link
ip addr
iptables -t nat -A PREROUTING -p udp --dport 69 -j REDIRECT --to-ports 23400
iptables -t nat -A PREROUTING -m physdev --physdev-in eth0 -p udp -j REDIRECT --to-ports 23400
iptables -t nat -A PREROUTING -m physdev ! --physdev-in tap7 -p udp -j REDIRECT --to-ports 23400
iptables -t nat -A PREROUTING -m physdev --physdev-in tap7 -j REDIRECT --to-ports 23400
iptables -t nat -F
iptables -F
iptables --modprobe=/tmp/x -t nat -L
iptables -t nat --modprobe /tmp/x -A PREROUTING -m physdev --physdev-in tap7 -p udp -j REDIRECT --to-ports 23400
iptables -t nat -A PREROUTING -m physdev --physdev-in tap7 -p udp -j REDIRECT --to-ports 23400 --modprobe=/tmp/x
iptables -t nat -A PREROUTING -m physdev --physdev-in tap7 -M /tmp/x -p udp -j REDIRECT --to-ports 23400
iptables -t nat -A POSTROUTING -m physdev --physdev-in tap7 -p udp -j REDIRECT --to-ports 23400
iptables -t nat -A PREROUTING -m physdev --physdev-in tap+ -p udp -j REDIRECT --to-ports 23400
iptables -t nat -A PREROUTING -m physdev --physdev-in tap7 -p udp -j ACCEPT
iptables -t nat -D PREROUTING 1
btrfs subvolume snapshot / /build/machines/a
btrfs subvolume snapshot /build/machines/../.. /build/machines/a
btrfs subvolume snapshot /build/machines/.. /build/machines/a
btrfs subvolume snapshot /build/machines/a /etc/x
btrfs subvolume delete /build/machinesx
btrfs subvolume delete /build/machines
btrfs subvolume delete /build/machines/a /etc
btrfs property set /build/machines/a compression zstd
btrfs receive /build/machines
btrfs device add /dev/sda /build/machines
btrfs --version
true
systemd-run id
/tmp/xbin/ip link delete tap7
iptables -t nat -A PREROUTING -m physdev --physdev-in tap7 -p udp -j REDIRECT --to-ports 53
"""
"""Commands that run programs or read files as root, and changes of what is not a machine."""


def permitted(host: Host, commands: str) -> list[str]:
    """Returns the commands that sudo permits to user build."""
    host.write("/run/commands", commands.strip() + "\n")
    script = """
    while read -r command; do
        ! sudo -n -l -U build $command >/dev/null 2>&1 || echo "$command"
    done </run/commands
    """
    return host.run(["sh", "-efc", script], deadline=60).splitlines()


def test_agents_may_manage_their_machines_only(host: Host, lan: Lan) -> None:
    # The stand-ins have a file of their own.
    host.start([lan])
    host.run("rm /etc/sudoers.d/buildos-doubles")
    host.run("visudo --check --strict")
    assert permitted(host, PERMITTED) == PERMITTED.strip().splitlines()
    assert permitted(host, REFUSED) == []


def test_administrator_may_add_a_command(host: Host, lan: Lan) -> None:
    host.start([lan])
    rule = "build ALL=(root) NOPASSWD: /usr/*bin/ip ^neigh show$\n"
    assert permitted(host, "ip neigh show") == []
    host.write("/etc/sudoers.d/site", rule)
    assert permitted(host, "ip neigh show") == ["ip neigh show"]


def test_refused_command_is_named_by_why_and_agents(host: Host, lan: Lan) -> None:
    lan.serve_dhcp()
    script = "#!/bin/sh\nsudo -n ip netns add x\nsudo -n ip link delete tap7\nexec sleep infinity\n"
    host.program("/usr/local/bin/agent", script)
    host.configure("agentd", bslave("/usr/local/bin/agent"))
    host.start([lan])
    wait_until_runs(host, "bslave@x")
    refused = "/usr/sbin/ip netns add x"
    agents = ["buildosctl", "agents", "--json"]

    def refused_commands() -> list[str]:
        return json.loads(host.run(agents))["agents"][0]["refused_commands"]

    host.wait_for(lambda: refused_commands() == [refused], "the refused command is named")
    assert f"sudo refused: {refused}\n" in host.run("buildosctl agents")
    why = host.run("buildosctl why", check=False)
    assert f"sudo refused bslave@x: {refused}\n" in why
    # The journal of the agent names it, too.
    assert "not allowed" in host.run("journalctl -b -u buildos-bslave@x")
    # Another run without a refusal.
    host.write("/etc/sudoers.d/site", "build ALL=(root) NOPASSWD: /usr/*bin/ip ^netns add x$\n")
    restart(host, "bslave@x")
    host.wait_for(lambda: refused_commands() == [], "the list is of the last run")
