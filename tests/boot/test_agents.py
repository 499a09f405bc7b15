"""Agents in the image: a task is built in a machine on br1, and the LAN reaches a
container on br0.

The machine is a container, too: QEMU inside of QEMU takes minutes without hardware
virtualization. tests/system/test_tasks.py builds in a machine in QEMU."""

from __future__ import annotations

import ipaddress
import itertools
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from booted_host import BOOT_SECONDS, Boot, BootedHost
from simlan.boot_lan import agent_parameters
from simlan.errors import CommandFailed

TOP = Path(__file__).resolve().parents[2]
PORT = 7000
SLAVE = "buildos.agentd.bslave.default.arguments"
PRIVATE = ipaddress.ip_network("172.23.0.0/16")

# Run on the LAN.
ASK = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), 30) as connection:
    print(connection.makefile().readline(), end="")
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


def test_container_on_br0_has_a_lease_and_answers(host: BootedHost) -> None:
    def leased() -> list[str]:
        leases = host.lan.leases()
        return [address for mac, address in leases.items() if mac != host.nics[0].mac]

    (address,) = host.guest.wait_for(leased, "the container's lease", BOOT_SECONDS)

    def answer() -> str:
        try:
            return host.lan.run(["python3", "-c", ASK, address, str(PORT)]).strip()
        except CommandFailed:
            return ""

    name = host.guest.wait_for(answer, "the container's answer", BOOT_SECONDS)
    assert name in host.shell.output("ip -brief link show master br0")


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


def test_no_unit_failed(host: BootedHost) -> None:
    host.wait_for_systemd()
    assert host.shell.output("systemctl --failed --quiet --no-legend --plain") == ""


# A container that serves a page, made of the image's busybox.
CONTAINER = f"""
root=/var/lib/machines/debian
mkdir -p $root/usr/bin $root/usr/sbin $root/etc $root/proc $root/sys $root/dev $root/run \\
    $root/tmp $root/srv
ln -s usr/bin $root/bin
ln -s usr/sbin $root/sbin
cp /usr/bin/busybox $root/usr/bin
chroot $root /bin/busybox --install -s /usr/bin
echo ID=container >$root/etc/os-release
echo first >$root/srv/page
cat >$root/etc/lease <<'END'
#!/bin/sh
[ "$1" != bound ] || ip address replace $ip/$mask dev $interface
END
cat >$root/sbin/init <<'END'
#!/bin/sh
# As systemd: halts with SIGRTMIN+3, powers off with SIGRTMIN+4.
trap 'exit 0' 37 38
ip link set host0 up
udhcpc -b -i host0 -s /etc/lease
httpd -f -p {PORT} -h /srv &
wait
END
chmod +x $root/etc/lease $root/sbin/init
"""


def manual_example(first: str) -> str:
    """Returns the example of the manual that begins with the line `first`."""
    lines = iter((TOP / "docs/manual.md").read_text().splitlines())
    example = [next(line for line in lines if line.strip() == first)]
    margin = len(example[0]) - len(first)
    example += itertools.takewhile(lambda line: line.startswith(" " * margin), lines)
    return "".join(f"{line[margin:]}\n" for line in example)


@pytest.mark.long
def test_container_of_manual_keeps_its_files_and_stops(host: BootedHost) -> None:
    shell = host.shell
    slave = manual_example("[bslave.debian]")
    directory = "/etc/buildos/agentd.conf.d"
    before = set(host.lan.leases())
    shell.output(CONTAINER)
    shell.output(f"mkdir -p {directory}; cat >{directory}/50-debian.toml <<'END'\n{slave}END")
    shell.output("systemctl reload buildos-agentd")

    def page() -> str:
        addresses = [a for mac, a in host.lan.leases().items() if mac not in before]
        url = [f"http://{address}:{PORT}/page" for address in addresses]
        curl = ["curl", "--silent", "--fail", "--max-time", "10", *url]
        return host.lan.run(curl, check=False).strip() if url else ""

    host.guest.wait_for(lambda: page() == "first", "the container's page", BOOT_SECONDS)
    assert "debian" in shell.output("machinectl list --no-legend")
    # An update by hand outlives the container's processes, which agentd starts again.
    shell.output("echo second >/tmp/page; machinectl copy-to --force debian /tmp/page /srv/page")
    shell.output("machinectl poweroff debian")
    host.guest.wait_for(lambda: page() == "second", "the changed page", BOOT_SECONDS)
    shell.output("systemctl stop buildos-bslave@debian")
    assert "vb-debian" not in shell.output("ip -brief link show master br0")
    # systemd-machined sees the end of the container a little later.
    listed = "machinectl list --no-legend"
    host.guest.wait_for(lambda: not shell.output(listed), "no container", BOOT_SECONDS)
    shell.output(f"rm {directory}/50-debian.toml; systemctl reload buildos-agentd")


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
    configuration = f"""
memory_reserve_mib = {memory - 200}
[bslave.hog]
program = "/usr/bin/bash"
arguments = ["-c", "{HOG}"]
"""
    directory = "/etc/buildos/agentd.conf.d"
    shell.output(f"mkdir -p {directory}; cat >{directory}/60-hog.toml <<'END'\n{configuration}END")
    shell.output("systemctl reload buildos-agentd")
    killed = "journalctl --boot --dmesg --output=cat --grep='out of memory: Killed process' || true"
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
    shell.output(f"rm {directory}/60-hog.toml; systemctl reload buildos-agentd")
    assert shell.output("systemctl --failed --quiet --no-legend --plain") == ""
