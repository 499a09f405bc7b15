"""Agents in the image: a task is built in a machine on br1, and the LAN reaches a
container on br0 and, through an open port, a machine on br1.

These machines are containers, too: QEMU inside of QEMU takes minutes without hardware
virtualization. tests/system/test_tasks.py builds in a machine in QEMU."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from agents import bbot, instance
from booted_host import BOOT_SECONDS, Boot, BootedHost
from container import PORT as CONTAINER_PORT
from container import container, manual_example
from simlan.boot_lan import CONTROLLER_URL, agent_parameters
from simlan.errors import CommandFailed

PORT = 7000
SLAVE = "buildos.agentd.bslave.default.arguments"
PRIVATE = ipaddress.ip_network("172.23.0.0/16")

# Run on the LAN: prints the line that a machine sends, and answers.
ASK = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 30) as connection:
    print(connection.makefile().readline(), end="")
    connection.sendall(b"continue\\n")
"""


@pytest.fixture(scope="module")
def host(boot: Boot) -> BootedHost:
    """A machine with both kinds of agent, after the first task request."""
    parameters = f"{agent_parameters()} {SLAVE}=--bridge,br0,--port,{PORT}"
    host = boot("e1000@lan", append=f"console=ttyS0 {parameters}")
    host.wait_for_poll()
    return host


def test_task_is_built_on_br1_through_nat(host: BootedHost, figure: Callable[[str], None]) -> None:
    host.lan.hand_out_tasks(1)
    (entry,) = host.guest.wait_for(host.lan.results, "the result", BOOT_SECONDS)
    result = entry["result"]
    assert result["status"] == "success", result
    assert result["test-log"] == "hello from a build machine"
    handed = next(poll["time"] for poll in host.lan.task_requests() if poll["session"])
    figure(f"a task from controller to controller: {entry['time'] - handed:.1f} s")
    # The machine had a lease of br1, and reached the web server by name through NAT.
    leased = host.shell.output("cat /run/buildos/dnsmasq/leases").split()[2]
    assert ipaddress.ip_address(leased) in PRIVATE
    (visit,) = (visit for visit in host.lan.visits() if visit["path"] == "/sources/hello.c")
    address = host.shell.output("ip -4 -brief address show dev br0").split()[2]
    assert visit["client"] == address.split("/")[0]
    # Machine and redirection are gone.
    host.guest.wait_for(lambda: not machines(host), "no machine", BOOT_SECONDS)
    assert "196.254.111.222" not in host.shell.output("iptables-save -t nat")


def machines(host: BootedHost) -> str:
    """Returns the ports of br1."""
    return host.shell.output("ip -brief link show master br1")


def ask(host: BootedHost, address: str, port: int) -> str:
    """Connects from the LAN; returns the answer, or nothing without one."""
    try:
        return host.lan.run(["python3", "-c", ASK, address, str(port)]).strip()
    except CommandFailed:
        return ""


def test_container_on_br0_has_a_lease_and_answers(host: BootedHost) -> None:
    def leased() -> list[str]:
        leases = host.lan.leases()
        return [address for mac, address in leases.items() if mac != host.nics[0].mac]

    (address,) = host.guest.wait_for(leased, "the container's lease", BOOT_SECONDS)

    name = host.guest.wait_for(
        lambda: ask(host, address, PORT), "the container's answer", BOOT_SECONDS
    )
    assert name in host.shell.output("ip -brief link show master br0")


FILE = "/etc/buildos/agentd.conf.d/60-test.toml"


@contextmanager
def configured(host: BootedHost, toml: str) -> Iterator[None]:
    """Adds to the configuration of agentd while the context lasts."""
    reload(host, toml)
    try:
        yield
    finally:
        host.shell.output(f"rm {FILE} && systemctl reload buildos-agentd")


def reload(host: BootedHost, toml: str) -> None:
    """Replaces the test's configuration of agentd and reloads agentd."""
    write = f"mkdir -p $(dirname {FILE})\ncat >{FILE} <<'END'\n{toml}END\n"
    host.shell.output(f"{write}systemctl reload buildos-agentd")


def machines_of(host: BootedHost, agent: str) -> list[dict[str, Any]]:
    """Returns the machines of an agent, in the order of their starts."""
    shown = json.loads(host.shell.output("buildosctl machines --json"))
    found = [machine for machine in shown["machines"] if machine["agent"] == agent]
    return sorted(found, key=lambda machine: int(machine["since_usec"]))


def result_of(host: BootedHost, path: str) -> dict[str, str]:
    """Waits for the only result of the tasks of a path of the controller."""

    def results() -> list[dict[str, Any]]:
        return [r for r in host.lan.results() if r["session"].startswith(f"{path}/")]

    (entry,) = host.guest.wait_for(results, f"the result of {path}", BOOT_SECONDS)
    return dict(entry["result"])


MANIFEST = "/etc/machines.manifest"

# A build machine and an auxiliary machine.
MACHINES = """\
: 1
id: linux_debian_13-gcc-1
name: linux_debian_13-gcc
summary: Build machine
:
id: x86_64-linux_debian_13-database-1
name: x86_64-linux_debian_13-database
summary: Database
role: auxiliary
ram-minimum: 131072
"""

POLL_OFTEN = "BBOT_DOUBLE_INTERVAL_MS=1000"
LOGIN_PORT = 7022
"""Port on which the build machine of an interactive task waits for a person."""


def test_person_on_lan_ends_interactive_task_with_auxiliary_machine(host: BootedHost) -> None:
    shell = host.shell
    shell.output(f"cat >{MANIFEST} <<'END'\n{MACHINES}END")
    people = [
        'interactive = "both"',
        "auxiliary_ram_mib = 128",
        f'arguments = ["--fake-machine", "{MANIFEST}"]',
        f'environment = ["{POLL_OFTEN}"]',
    ]
    host.lan.hand_out_tasks(1, "people", auxiliary=["linux_debian_13-database"], interactive=True)
    with configured(host, bbot(f"{CONTROLLER_URL}people", *people, name="people")):
        host.guest.wait_for(lambda: machines(host).count("tap") == 2, "two machines", BOOT_SECONDS)
        (build,) = host.guest.wait_for(
            lambda: machines_of(host, "bbot@people")[1:], "two processes", BOOT_SECONDS
        )
        tap = build["port"]
        forward = f"buildosctl machine forward {tap} {LOGIN_PORT} || true"
        opened = host.guest.wait_for(
            lambda: re.match(r"port (\d+) of (\S+) leads to ", shell.output(forward)),
            "the port is open",
            BOOT_SECONDS,
        )
        port, address = int(opened[1]), opened[2]
        auxiliary, build = machines_of(host, "bbot@people")
        assert auxiliary["bridge"] == build["bridge"] == "br1"
        assert auxiliary["address"] and build["address"]
        assert [entry[:2] for entry in build["open_ports"]] == [[LOGIN_PORT, port]]
        greeting = host.guest.wait_for(
            lambda: ask(host, address, port), "the machine greets the person", BOOT_SECONDS
        )
        assert greeting == "stopped at test"
        result = result_of(host, "people")
        assert result["status"] == "success", result
        assert result["configure-log"] == "x86_64-linux_debian_13-database serves"
        assert result["test-log"] == "hello from a build machine\nlogin: continue"
        # The port is closed with its machine.
        table = "nft list table inet buildos"
        host.guest.wait_for(
            lambda: "dnat ip to" not in shell.output(table), "the port is closed", BOOT_SECONDS
        )
        host.guest.wait_for(lambda: "tap" not in machines(host), "no machine", BOOT_SECONDS)


def test_drain_waits_for_suspended_machine_only_if_configured(host: BootedHost) -> None:
    agent = "bbot@suspends"
    variables = f'environment = ["{POLL_OFTEN}", "BBOT_DOUBLE_MISCHIEF=suspend"]'
    suspends = bbot(f"{CONTROLLER_URL}suspends", variables, name="suspends")
    suspends = f"suspended_after_s = 5\n{suspends}"
    host.lan.hand_out_tasks(1, "suspends")

    def paused() -> list[list[Any]]:
        return [machine for machine in instance(host, "Machines", agent) if machine[3] > 0]

    with configured(host, f'suspended = "wait"\n{suspends}'):
        host.guest.wait_for(lambda: "tap" in machines(host), "a machine", BOOT_SECONDS)
        (machine,) = host.guest.wait_for(lambda: machines_of(host, agent), "QEMU", BOOT_SECONDS)
        monitor = f"echo info status | buildosctl machine attach {machine['port']}"
        host.guest.wait_for(
            lambda: "VM status: paused" in host.shell.run(monitor).output,
            "QEMU is paused",
            BOOT_SECONDS,
        )
        host.guest.wait_for(paused, "the machine is suspended", BOOT_SECONDS)
        assert " suspended for " in host.shell.output("buildosctl machines")
        host.shell.output(f"buildosctl drain {agent}")
        waits = f"waits for suspended {machine['port']} (process {machine['process']})"
        host.guest.wait_for(
            lambda: waits in instance(host, "Reason", agent), "the drain waits", BOOT_SECONDS
        )
        reload(host, f'suspended = "leave"\n{suspends}')
        host.shell.output(f"buildosctl drain --wait {agent}")
        assert result_of(host, "suspends")["status"] == "interrupt"
        assert "tap" not in machines(host)


# A machine that asks for the host from many addresses that it does not have.
NEIGHBOURS = """
ip netns add neighbours
ip link add neighbours0 type veth peer eth0 netns neighbours
ip link set neighbours0 master br1 up
ip netns exec neighbours sh -ec '
    ip link set eth0 up
    for n in $(seq 60); do
        ip address add 172.23.77.$n/16 dev eth0
        busybox arping -c 1 -w 1 -I eth0 -s 172.23.77.$n 172.23.0.1 >/dev/null &
    done
    wait'
ip netns del neighbours
"""


def test_rules_for_ports_have_the_name_of_the_bridge(host: BootedHost) -> None:
    # The kernel of the image has NFT_BRIDGE_META, that of the system lane has not.
    table = host.shell.output("nft list table bridge buildos")
    assert 'ibrname != "br1"' in table
    assert 'obrname "br1"' in table
    assert "other_ports" not in table


def test_machine_does_not_fill_the_table_of_neighbours(host: BootedHost) -> None:
    host.shell.output(NEIGHBOURS)
    assert "172.23.77." not in host.shell.output("ip neigh show dev br1")
    counted = 'grep -c "172.23.77" || true'
    assert host.shell.output(f"nft list set bridge buildos addresses | {counted}").strip() == "0"


# A machine whose frames for the host have an address that bridges do not forward. The kernel
# sends ARP requests to the broadcast address of a link.
PAST_BRIDGE = """
ip netns add past
ip link add past0 type veth peer eth0 netns past
ip link set past0 master br1 up
ip netns exec past sh -ec '
    ip link set eth0 broadcast 01:80:c2:00:00:0e
    ip link set eth0 up
    ip address add 172.23.77.100/16 dev eth0
    busybox ping -c 1 -W 1 172.23.0.1 || true
    ip neigh replace 172.23.0.1 lladdr 01:80:c2:00:00:0e dev eth0
    busybox ping -c 1 -W 1 172.23.0.1 || true'
ip neigh show to 172.23.77.100
nft list table inet buildos | grep "past a bridge"
nft list table arp buildos | grep "past a bridge"
ip netns del past
"""


def test_machine_does_not_reach_host_past_the_bridge(host: BootedHost) -> None:
    output = host.shell.output(PAST_BRIDGE)
    assert "lladdr" not in output
    packets = [int(count) for count in re.findall(r"counter packets (\d+)", output)]
    assert len(packets) == 2 and min(packets) > 0, output


# Sends DISCOVERs (RFC 2131) and other frames from random MAC addresses without a pause.
FLOOD = r"""
open my $file, '<', "/sys/class/net/eth0/ifindex" or die;
my $index = <$file>;
socket my $socket, 17, 3, 0x0300 or die "socket: $!";
bind $socket, pack('S n i x12', 17, 3, $index) or die "bind: $!";
while (1) {
    my $mac = pack 'C6', 2, map { int rand 256 } 1 .. 5;
    my $bootp = pack('C4 N n2 x16 a6 x202', 1, 1, 6, 0, rand 2**32, 0, 0x8000, $mac)
        . pack('N C4', 0x63825363, 53, 1, 1, 255);
    my $udp = pack('n4', 68, 67, 8 + length $bootp, 0) . $bootp;
    my $ip = pack 'C2 n3 C2 n N2', 0x45, 0, 20 + length $udp, 0, 0, 64, 17, 0, 0, 0xffffffff;
    my $sum = unpack '%32n*', $ip;
    $sum = ($sum & 0xffff) + ($sum >> 16) while $sum >> 16;
    substr $ip, 10, 2, pack 'n', ~$sum & 0xffff;
    my $ethernet = "\xff" x 6 . $mac;
    send $socket, "$ethernet\x08\x00$ip$udp", 0;
    send $socket, "$ethernet\x88\xb5" . "\0" x 50, 0;
}
"""

# Attaches a hostile machine, and then machines whose first packet follows the DHCPACK at once:
# they need no ARP.
FIRST_PACKETS = f"""
cat >/run/flood.pl <<'END'
{FLOOD}
END
cat >/run/first <<'END'
#!/bin/sh
[ "$1" = bound ] || exit 0
ip address replace $ip/$mask dev $interface
ip neigh replace 172.23.0.1 lladdr $HOST dev $interface
busybox ping -q -c 1 -W 5 172.23.0.1 | grep 'packets received'
END
chmod +x /run/first
ip netns add hostile
ip link add hostile0 type veth peer eth0 netns hostile
ip link set hostile0 master br1 up
ip netns exec hostile ip link set eth0 up
ip netns exec hostile perl /run/flood.pl &
flood=$!
until nft list chain bridge buildos dhcp | grep -q 'packets [1-9].*too many DHCP requests'; do
    sleep 0.1
done
export HOST=$(cat /sys/class/net/br1/address)
for number in 1 2 3 4 5; do
    ip netns add first
    ip link add first0 type veth peer eth0 netns first
    ip link set first0 master br1 up
    ip netns exec first ip link set eth0 up
    ip netns exec first busybox udhcpc -i eth0 -s /run/first -n -q -t 30 -T 1 2>/dev/null
    ip netns del first
done
kill $flood
ip netns del hostile
"""


def test_first_packet_after_a_lease_passes_while_a_port_floods(host: BootedHost) -> None:
    output = host.shell.output(FIRST_PACKETS, BOOT_SECONDS)
    received = [line for line in output.splitlines() if "packets received" in line]
    assert len(received) == 5, output
    assert all("1 packets received" in line for line in received), output
    learned = host.shell.output("bridge fdb show br br1 dynamic | wc -l")
    assert int(learned) < 64


# A machine with a lease, and another owner of both tables that close the host.
CLOSE = """
cat >/run/lease <<'END'
#!/bin/sh
[ "$1" != bound ] || ip address replace $ip/$mask dev $interface
END
chmod +x /run/lease
ip netns add closed
ip link add closed0 type veth peer eth0 netns closed
ip link set closed0 master br1 up
ip netns exec closed ip link set eth0 up
ip netns exec closed busybox udhcpc -i eth0 -s /run/lease -n -q -t 10 >/dev/null 2>&1
ip netns exec closed busybox ping -c 1 -W 10 172.23.0.1 >/dev/null
systemd-run --quiet --unit=owner sh -c '(echo "delete table inet buildos;
add table inet buildos { flags owner; };
add table inet buildos_closed { flags owner; }"; sleep infinity) | nft -i'
"""


def test_bridge_passes_no_frame_if_kernel_refuses_each_table(host: BootedHost) -> None:
    ping = "ip netns exec closed busybox ping -c 1 -W 2 172.23.0.1"
    host.shell.output(CLOSE)

    def status() -> str:
        return host.shell.output("systemctl show --value --property=StatusText buildos-natd")

    host.guest.wait_for(lambda: "br1 passes no frame" in status(), "natd closes br1", 60)
    assert host.shell.run(ping).status != 0
    # A port that comes later, and its machine.
    host.shell.output("""
        ip link add late0 type veth peer eth1 netns closed
        ip link set late0 master br1 up""")
    assert "late0" not in host.shell.output("bridge vlan show dev late0 | grep PVID || true")
    host.shell.output("systemctl stop owner")
    host.guest.wait_for(lambda: host.shell.run(ping).status == 0, "br1 passes frames again", 60)
    host.guest.wait_for(lambda: "passes no frame" not in status(), "natd's status", 60)
    assert "buildos_closed" not in host.shell.output("nft list tables; ip netns del closed")


def test_slices_limit_cpu_ram_and_processes_of_agents(host: BootedHost) -> None:
    def setting(group: str, name: str) -> str:
        return host.shell.output(f"cat /sys/fs/cgroup/{group}/{name}").strip()

    slice = "buildos.slice/buildos-agents.slice"
    assert (setting("buildos.slice", "cpu.weight"), setting("system.slice", "cpu.weight")) == (
        "20",
        "100",
    )
    # udev runs outside of the services' slice.
    assert setting("background.slice", "cpu.idle") == "1"
    assert "systemd-udevd.service" in host.shell.output("ls /sys/fs/cgroup/background.slice")
    total = int(host.shell.output("grep MemTotal /proc/meminfo").split()[1]) // 1024
    assert int(setting(slice, "memory.max")) == (total - max(512, total // 16)) << 20
    assert setting(slice, "pids.max").isdigit()
    group = setting("", "cgroup.controllers").split()
    assert {"cpu", "io", "memory", "pids"} <= set(group)


def test_notes_of_kernel_are_in_the_journal_and_not_on_the_console(host: BootedHost) -> None:
    note = "entered forwarding state"
    assert note in host.shell.output("journalctl --boot --dmesg --output=cat")
    assert note not in host.guest.console()


def test_no_unit_failed(host: BootedHost) -> None:
    host.wait_for_systemd()
    assert host.shell.output("systemctl --failed --quiet --no-legend --plain") == ""


def test_container_of_manual_keeps_its_files_and_stops(host: BootedHost) -> None:
    shell = host.shell
    before = set(host.lan.leases())
    shell.output(container("/var/lib/machines/debian"))

    def page() -> str:
        addresses = [a for mac, a in host.lan.leases().items() if mac not in before]
        url = [f"http://{address}:{CONTAINER_PORT}/page" for address in addresses]
        curl = ["curl", "--silent", "--fail", "--max-time", "10", *url]
        return host.lan.run(curl, check=False).strip() if url else ""

    with configured(host, manual_example("[bslave.debian]")):
        host.guest.wait_for(lambda: page() == "first", "the container's page", BOOT_SECONDS)
        assert "debian" in shell.output("machinectl list --no-legend")
        # An update by hand outlives the container's processes, which agentd starts again.
        shell.output(
            "echo second >/tmp/page; machinectl copy-to --force debian /tmp/page /srv/page"
        )
        shell.output("machinectl poweroff debian")
        host.guest.wait_for(lambda: page() == "second", "the changed page", BOOT_SECONDS)
        shell.output("systemctl stop buildos-bslave@debian")
        assert "vb-debian" not in shell.output("ip -brief link show master br0")
        # systemd-machined sees the end of the container a little later.
        listed = "machinectl list --no-legend"
        host.guest.wait_for(lambda: not shell.output(listed), "no container", BOOT_SECONDS)


# Allocates more RAM than agents may have, repeatedly, and keeps a CPU busy.
HOG = "while :; do head --bytes=400M /dev/zero | tail >/dev/null; done & while :; do :; done"


def test_build_exhausting_ram_is_killed_and_services_survive(host: BootedHost) -> None:
    shell = host.shell
    services = ("netd", "hostnamed", "natd", "agentd")
    pids = "systemctl show --property=MainPID --value " + " ".join(
        f"buildos-{name}" for name in services
    )
    before = shell.output(pids)
    memory = int(shell.output("grep MemTotal /proc/meminfo").split()[1]) // 1024
    hog = f"""
memory_reserve_mib = {memory - 200}
[bslave.hog]
program = "/usr/bin/bash"
arguments = ["-c", "{HOG}"]
"""
    killed = "journalctl --boot --dmesg --output=cat --grep='out of memory: Killed process' || true"
    with configured(host, hog):
        host.guest.wait_for(
            lambda: "(tail)" in shell.output(killed), "the end of the build", BOOT_SECONDS
        )
        # The agent that ran it and all daemons still run.
        assert shell.output("systemctl is-active buildos-bslave@hog").strip() == "active"
        assert "online" in shell.output("buildosctl status")
        assert shell.output(pids) == before
        assert "Killed process" in shell.output(killed)
        names = {line.split("(")[1].split(")")[0] for line in shell.output(killed).splitlines()}
        assert names == {"tail"}
    assert shell.output("systemctl --failed --quiet --no-legend --plain") == ""
