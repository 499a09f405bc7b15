"""The simulated LAN's own parts, without a machine."""

from __future__ import annotations

import base64
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path

import pytest
from simlan import dnsmasq, pxe, qemu, shell
from simlan.network import ADDRESS, Lan, LanError
from simlan.sandbox import Sandbox, SandboxError

QEMU_IFUP = Path(__file__).resolve().parents[2] / "image/qemu-ifup"


def test_leases() -> None:
    text = (
        "1763000000 de:ad:be:ef:b8:da 192.0.2.173 rack-7 01:de:ad:be:ef:b8:da\n"
        "1763000000 de:ad:be:ef:b8:db 192.0.2.174 * *\n"
        "duid 00:01:00:01:30:aa:bb:cc:de:ad:be:ef:b8:da\n"
        "1763000000 123 fd6b::1 rack-7 00:01\n"
    )
    assert dnsmasq.leases(text) == [
        dnsmasq.Lease("de:ad:be:ef:b8:da", IPv4Address("192.0.2.173"), "rack-7"),
        dnsmasq.Lease("de:ad:be:ef:b8:db", IPv4Address("192.0.2.174"), None),
    ]
    assert dnsmasq.leases("") == []


def test_dnsmasq_takes_its_configuration(tmp_path: Path) -> None:
    text = dnsmasq.configuration(
        "lan",
        IPv4Interface("192.0.2.1/24"),
        "lan.test",
        {"web": IPv4Address("192.0.2.1")},
        {"de:ad:be:ef:b8:da": "rack-7"},
        tmp_path / "leases",
        tmp_path,
    )
    assert "dhcp-range=192.0.2.100,192.0.2.199,1h\n" in text
    assert "dhcp-boot=pxelinux.0\n" in text
    file = tmp_path / "dnsmasq.conf"
    file.write_text(text)
    with Sandbox() as sandbox:
        sandbox.run("dnsmasq", "--test", f"--conf-file={file}")


def test_pxelinux_configuration_is_the_manuals() -> None:
    assert pxe.configuration_name("DE:AD:BE:EF:B8:DA") == "01-de-ad-be-ef-b8-da"
    lines = pxe.configuration("", timeout=50).splitlines()
    assert lines == [
        "default buildos",
        "prompt 1",
        "timeout 50",
        "label buildos",
        "menu label buildos",
        "kernel /buildos/buildos-image",
        "append initrd=/buildos/buildos-initrd",
        "ipappend 2",
    ]
    assert "append initrd=/buildos/buildos-initrd quiet" in pxe.configuration("quiet", timeout=50)


def test_nic() -> None:
    assert qemu.parse_nic("e1000", 0) == qemu.Nic("e1000", "lan", "de:ad:be:ef:b8:da")
    assert qemu.parse_nic("virtio-net-pci@quiet", 1) == qemu.Nic(
        "virtio-net-pci", "quiet", "de:ad:be:ef:b8:db"
    )
    for text in ("", "@lan", "e1000@moon"):
        with pytest.raises(qemu.NicError, match="MODEL"):
            qemu.parse_nic(text, 0)


def test_machine_arguments() -> None:
    nics = [qemu.parse_nic("e1000", 0)]
    direct = qemu.Machine(nics, image=Path("/i"), append="a b", credentials={"x": "1,2\n"})
    argv = direct.arguments(["-accel", "tcg"], ["tap0"])
    assert argv[argv.index("-kernel") + 1] == "/i/buildos-image"
    assert argv[argv.index("-append") + 1] == "a b"
    assert "e1000,netdev=net0,mac=de:ad:be:ef:b8:da" in argv
    value = base64.b64encode(b"1,2\n").decode()
    assert f"type=11,value=io.systemd.credential.binary:x={value}" in argv

    network = qemu.Machine(nics).arguments(["-accel", "tcg"], ["tap0"])
    assert "-kernel" not in network
    assert network[network.index("-boot") + 1] == "n"


def test_guest_side_of_the_shell() -> None:
    """The script that a guest runs answers as Shell expects."""

    def request(number: int, script: str) -> str:
        return f"{number} {base64.b64encode(script.encode()).decode()}\n"

    with Sandbox() as sandbox:
        answers = sandbox.run(
            "bash",
            "-c",
            shell.credentials()["buildos.shell"],
            text=request(1, "echo out; echo err >&2; cat; exit 3") + request(2, "true"),
        )
    out = base64.b64encode(b"out\nerr\n").decode()
    assert answers == f"ready\n1 3 {out}\n2 0 \n"


def test_sandbox_takes_its_processes_along() -> None:
    with Sandbox() as sandbox:
        inside = sandbox.start(["sleep", "infinity"])
    assert inside.wait(timeout=10) != 0


def test_sandbox_says_what_failed() -> None:
    with Sandbox() as sandbox, pytest.raises(SandboxError, match="no-such-link"):
        sandbox.run("ip", "link", "show", "no-such-link")


def test_servers_of_the_lan(tmp_path: Path) -> None:
    fetch = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=30).read())"
    with Lan(tmp_path) as lan:
        page = lan.sandbox.run("/usr/bin/python3", "-c", fetch, f"http://{ADDRESS.ip}/some/page")
        assert str(ADDRESS.ip) in page
        assert [visit["path"] for visit in lan.visits()] == ["/some/page"]
        lan.check()
    with pytest.raises(LanError, match="ended"):
        lan.check()


def test_qemu_ifup_plugs_into_a_bridge() -> None:
    with Sandbox() as sandbox:
        sandbox.run("ip", "tuntap", "add", "tap0", "mode", "tap")
        with pytest.raises(SandboxError, match="no bridge for tap0"):
            sandbox.run(str(QEMU_IFUP), "tap0")
        sandbox.run("ip", "link", "add", "br0", "type", "bridge")
        sandbox.run(str(QEMU_IFUP), "tap0")
        assert "master br0" in sandbox.run("ip", "link", "show", "tap0")
