"""A host whose network is a VLAN, on Debian's kernel: a guest with namespaces as host, switch and
DHCP servers (vlan_rack.sh)."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from booted_host import BOOT_SECONDS, Boot
from cpio_archive import archive
from simlan.qemu import QEMU

TOP = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).with_name("vlan_rack.sh")
DEADLINE = 900
"""Seconds. The guest needs half a minute on an idle core."""

SYSTEMD = "exec switch_root /root /usr/lib/systemd/systemd"
RACK = "cp /vlan_rack.sh /root/\nexec switch_root /root /bin/sh /vlan_rack.sh\n"

Facts = dict[str, str]


@pytest.fixture(scope="module")
def facts(image: Path, tmp_path_factory: pytest.TempPathFactory) -> Facts:
    """Facts that the guest printed."""
    initrd = tmp_path_factory.mktemp("vlan") / "initrd"
    shutil.copyfile(image / "buildos-initrd", initrd)
    init = (TOP / "image/initrd/init").read_text()
    assert SYSTEMD in init
    with initrd.open("ab") as file:
        file.write(bytes(-initrd.stat().st_size % 4))
        file.write(archive("vlan_rack.sh", SCRIPT.read_bytes()))
        file.write(archive("init", init.replace(SYSTEMD, RACK + SYSTEMD).encode()))
    output = run_guest(image / "buildos-image", initrd)
    lines = [line.split(maxsplit=2) for line in output.splitlines() if line.startswith("fact ")]
    found = {line[1]: line[2] if len(line) > 2 else "" for line in lines}
    assert "end" in found, output[-8000:]
    return found


def run_guest(kernel: Path, initrd: Path) -> str:
    """Runs the guest to its end; returns its console.

    Its clock counts instructions, two nanoseconds each: times do not depend on the load."""
    argv = [QEMU, "-accel", "tcg,thread=single", "-icount", "shift=1,sleep=off", "-cpu", "max"]
    argv += ["-smp", "1", "-m", "2048", "-display", "none", "-nic", "none", "-no-reboot"]
    argv += ["-serial", "stdio", "-monitor", "none", "-kernel", str(kernel)]
    argv += ["-initrd", str(initrd), "-append", "console=ttyS0 quiet panic=-1 mitigations=off"]
    result = subprocess.run(
        argv,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    return result.stdout.replace("\r", "") + result.stderr


def test_host_gets_lease_of_tagged_vlan(facts: Facts) -> None:
    """netd makes the VLAN, which loads the kernel's module, and asks only with the tag."""
    assert facts["loaded_before"] == "no"
    assert facts["tagged_address"].startswith("198.51.42.")
    assert facts["tagged_ports"] == "eth0.42"
    assert facts["nic_ipv6"] == "1 1"
    # Three offers to the hosts without a section.
    assert facts["served_by_office"] == "3"


def test_host_without_section_makes_no_vlan(facts: Facts) -> None:
    assert facts["untagged_ports"] == "eth0"
    assert facts["untagged_links"] == "0"


def test_tagged_lease_is_as_fast_as_untagged(facts: Facts, figure: Callable[[str], None]) -> None:
    def times(kind: str) -> list[int]:
        return [int(facts[f"{kind}_{number}"]) for number in (1, 2, 3)]

    untagged, tagged = times("untagged"), times("tagged")
    figure(f"milliseconds from netd's start to the lease: untagged {untagged}, tagged {tagged}")
    assert min(tagged) <= min(untagged) + 20


def test_container_on_br0_is_in_vlan(facts: Facts) -> None:
    assert facts["container_to_lab"] == "yes"
    assert facts["container_to_office"] == "no"


def test_restart_and_carrier_keep_vlan(facts: Facts) -> None:
    assert facts["kept"] == "yes"
    assert facts["carrier_lost"] == "yes"
    assert facts["carrier_back"] == facts["tagged_address"]


def test_vlan_goes_with_its_section(facts: Facts) -> None:
    """The VLAN of an administrator stays, and is not used."""
    assert facts["untagged_again"] == "eth0"
    assert facts["vlans_left"] == "eth0.9"
    assert facts["other_vlan"] == "reported"
    assert facts["vlans_at_end"] == "eth0.9"


@pytest.mark.long
def test_unit_may_make_vlans(boot_once: Boot) -> None:
    """The sandbox of the unit lets netd make the VLAN, for which the kernel loads its module."""
    host = boot_once("e1000@lan")
    host.wait_for_poll()
    host.shell.wait(BOOT_SECONDS)
    nic = host.run("ls -d /sys/class/net/*/device | cut -d/ -f5").strip()
    assert host.run("ls /sys/module | grep -c 8021q || true").strip() == "0"
    section = '[uplink.lan]\nlinks = ["*"]\nvlan = 42\n'
    host.run("mkdir -p /etc/buildos/netd.conf.d")
    host.run(f"printf '{section}' >/etc/buildos/netd.conf.d/10-vlan.toml")
    host.run("systemctl reload buildos-netd")
    made = host.run("ip -d -o link show type vlan")
    assert f"{nic}.42@{nic}" in made and "vlan protocol 802.1Q id 42" in made, made
    assert "UP" in made, made
    status = host.run("buildosctl links")
    assert "carries VLAN 42 by [uplink.lan]" in status, status
    host.run("rm /etc/buildos/netd.conf.d/10-vlan.toml && systemctl reload buildos-netd")
    assert host.run("ip -o link show type vlan") == ""
    host.guest.wait_for(lambda: nic in host.run("ip -o link show master br0"), "the NIC in br0", 60)
