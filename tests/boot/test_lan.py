"""The parts of the simulated LAN and image/serve, without a machine."""

from __future__ import annotations

import base64
import hashlib
import subprocess
from pathlib import Path

import netboot
import pytest
from simlan import boot_lan, dnsmasq, ntp, process, qemu, shell
from simlan.boot_lan import ADDRESS, BOOT_URL, NETBOOT, BootLan
from simlan.errors import CommandFailed, LanError
from simlan.namespace import Namespace

IMAGE = Path(__file__).resolve().parents[2] / "image"
QEMU_IFUP = IMAGE / "qemu-ifup"
SERVE = IMAGE / "serve"


def test_leases_skip_ipv6() -> None:
    text = (
        "1763000000 de:ad:be:ef:b8:da 192.0.2.173 rack-7 01:de:ad:be:ef:b8:da\n"
        "1763000000 de:ad:be:ef:b8:db 192.0.2.174 * *\n"
        "duid 00:01:00:01:30:aa:bb:cc:de:ad:be:ef:b8:da\n"
        "1763000000 123 fd6b::1 rack-7 00:01\n"
    )
    assert dnsmasq.leases(text) == {
        "de:ad:be:ef:b8:da": "192.0.2.173",
        "de:ad:be:ef:b8:db": "192.0.2.174",
    }
    assert dnsmasq.leases("") == {}


def test_dnsmasq_accepts_command_line_of_lan(tmp_path: Path) -> None:
    dhcp_boot = netboot.dhcp_boot("pxelinux", BOOT_URL)
    options = boot_lan.dhcp_options({"de:ad:be:ef:b8:da": "rack-7"}, tmp_path, dhcp_boot)
    leases = tmp_path / "leases"
    command = dnsmasq.command("lan0", "192.0.2", "lan.test", "1h", leases, options)
    assert "--dhcp-range=192.0.2.100,192.0.2.199,255.255.255.0,1h" in command
    assert "--dhcp-boot=pxelinux.0" in command
    with Namespace() as namespace:
        namespace.run([*command, "--test"])


def test_pxelinux_configuration_equals_the_manual() -> None:
    assert netboot.configuration_name("DE:AD:BE:EF:B8:DA") == "01-de-ad-be-ef-b8-da"
    lines = netboot.configuration("", timeout=50).splitlines()
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
    assert "append initrd=/buildos/buildos-initrd quiet" in netboot.configuration(
        "quiet", timeout=50
    )


def test_ipxe_configuration_has_the_same_parameters() -> None:
    assert netboot.ipxe_configuration("quiet").splitlines() == [
        "#!ipxe",
        "kernel ../buildos/buildos-image initrd=buildos-initrd BOOTIF=01-${netX/mac:hexhyp} quiet",
        "initrd ../buildos/buildos-initrd",
        "boot",
    ]


def serve(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [str(SERVE), *(str(argument) for argument in arguments)]
    return subprocess.run(command, text=True, capture_output=True, check=False)


def make_image(directory: Path) -> Path:
    """Makes the files of an image that image/serve reads."""
    directory.mkdir()
    return change_image(directory, "kernel", "initrd")


def change_image(directory: Path, kernel: str, initrd: str) -> Path:
    """Replaces the two files of an image."""
    (directory / "buildos-image").write_text(kernel)
    (directory / "buildos-initrd").write_text(initrd)
    (directory / "buildos.cmdline").write_text("quiet\n")
    sums = subprocess.check_output(["sha256sum", *netboot.NEEDED], cwd=directory, text=True)
    (directory / "SHA256SUMS").write_text(sums)
    return directory


def running(*contents: str) -> str:
    digests = [hashlib.sha256(content.encode()).hexdigest() for content in contents]
    return f"buildos.running={':'.join(digests)}"


def test_serve_fills_and_updates_a_directory(tmp_path: Path) -> None:
    image, root = make_image(tmp_path / "image"), tmp_path / "netboot"
    done = serve(root, "--image", image, "--host", "DE:AD:BE:EF:B8:DA=debug", "--url", "http://x/y")
    assert done.returncode == 0, done.stderr
    assert "dhcp-boot=tag:ipxe,http://x/y/boot.ipxe" in done.stdout
    names = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    assert names == {
        *("pxelinux.0", "ldlinux.c32", "undionly.kpxe", "snponly.efi", "boot.ipxe"),
        *("pxelinux.cfg/default", "pxelinux.cfg/01-de-ad-be-ef-b8-da"),
        *("ipxe.cfg/default", "ipxe.cfg/01-de-ad-be-ef-b8-da", "grub/grub.cfg"),
        *("buildos/buildos-image", "buildos/buildos-initrd", "buildos/SHA256SUMS"),
        "buildos/builds",
        *(f"objects/{hashlib.sha256(text).hexdigest()}" for text in (b"kernel", b"initrd")),
    }
    known = running("kernel", "initrd")
    grub = (root / "grub/grub.cfg").read_text()
    assert f"    linux /buildos/buildos-image quiet {known} panic=60\n" in grub
    common = f"append initrd=/buildos/buildos-initrd quiet {known} panic=60"
    assert f"{common}\n" in (root / "pxelinux.cfg/default").read_text()
    assert f"{common} debug\n" in (root / "pxelinux.cfg/01-de-ad-be-ef-b8-da").read_text()
    # A second run replaces the files.
    assert serve(root, "--image", image, "--append", "panic=5").returncode == 0
    assert f"quiet {known} panic=5\n" in (root / "pxelinux.cfg/default").read_text()


def test_serve_keeps_three_builds_and_files_of_channels(tmp_path: Path) -> None:
    image, root = make_image(tmp_path / "image"), tmp_path / "netboot"
    (root / "channel").mkdir(parents=True)
    (root / "channel/stable").write_text(running("kernel", "1"))
    (root / "objects").mkdir()
    (root / "objects/piece").write_text("of a machine")

    def objects() -> set[str]:
        return {path.read_text() for path in (root / "objects").iterdir()} - {"of a machine"}

    for number in range(5):
        change_image(image, "kernel", str(number))
        assert serve(root, "--image", image, "--source", "http://x/y").returncode == 0
    # The channel names build 1.
    assert objects() == {"kernel", "1", "2", "3", "4"}
    assert (root / "objects/piece").exists()
    (root / "channel/stable").write_text("")
    # An old build becomes the newest again; the same one twice counts once.
    for number in (3, 3, 5):
        change_image(image, "kernel", str(number))
        assert serve(root, "--image", image, "--source", "http://x/y").returncode == 0
    assert objects() == {"kernel", "3", "4", "5"}
    text = (root / "ipxe.cfg/default").read_text()
    assert f"quiet {running('kernel', '5')} buildos.updated.update.source=http://x/y panic" in text
    assert len((root / "buildos/builds").read_text().splitlines()) == 3


def test_serve_keeps_kernel_of_a_channel_with_another_initrd(tmp_path: Path) -> None:
    image, root = make_image(tmp_path / "image"), tmp_path / "netboot"
    # image/serve reads only files as channels.
    (root / "channel/old").mkdir(parents=True)
    (root / "channel/stable").write_text(running("kernel 0", "of another host"))
    for number in range(5):
        change_image(image, f"kernel {number}", str(number))
        done = serve(root, "--image", image)
        assert done.returncode == 0, done.stderr
    objects = {path.read_text() for path in (root / "objects").iterdir()}
    assert objects == {"kernel 0", *(f"kernel {n}" for n in (2, 3, 4)), "2", "3", "4"}


def test_serve_has_objects_of_a_build_before_hosts_boot_it(tmp_path: Path) -> None:
    image, root = make_image(tmp_path / "image"), tmp_path / "netboot"
    # A file in place of a directory ends the run.
    root.mkdir()
    (root / "objects").write_text("")
    assert serve(root, "--image", image).returncode == 1
    assert not (root / "pxelinux.cfg").exists()


def test_serve_refuses_files_with_wrong_checksums(tmp_path: Path) -> None:
    image, root = make_image(tmp_path / "image"), tmp_path / "netboot"
    assert "is not a MAC address" in serve(root, "--image", image, "--host", "rack-7=x").stderr
    (image / "buildos-initrd").write_text("initr")
    done = serve(root, "--image", image)
    assert done.returncode == 1
    assert "buildos-initrd does not match SHA256SUMS" in done.stderr
    assert not root.exists()
    (image / "buildos-image").unlink()
    assert "buildos-image is missing" in serve(root, "--image", image).stderr


def test_ntp_answers_clients_only() -> None:
    request = bytes([0x23, 0, 6, 0, *range(44)])
    reply = ntp.answer(request, 1.5, 2.25)
    assert reply and len(reply) == 48
    assert (reply[0] & 7, reply[0] >> 3 & 7, reply[1]) == (4, 4, 1)
    assert reply[24:32] == request[40:48]
    assert reply[40:48] == (2_208_988_802).to_bytes(4) + (1 << 30).to_bytes(4)
    assert ntp.answer(reply, 1, 2) is None
    assert ntp.answer(request[:47], 1, 2) is None


def test_nic_parses_model_and_segment() -> None:
    assert qemu.parse_nic("e1000", 0) == qemu.Nic("e1000", "lan", "de:ad:be:ef:b8:da")
    assert qemu.parse_nic("virtio-net-pci@quiet", 1) == qemu.Nic(
        "virtio-net-pci", "quiet", "de:ad:be:ef:b8:db"
    )
    for text in ("", "@lan", "e1000@moon"):
        with pytest.raises(qemu.NicError, match="MODEL"):
            qemu.parse_nic(text, 0)


def test_machine_arguments_follow_the_way_to_boot() -> None:
    nics = [qemu.parse_nic("e1000", 0)]
    direct = qemu.Machine(nics, image=Path("/i"), append="a b", credentials={"x": "1,2\n"})
    argv = direct.arguments(["-accel", "tcg"], ["tap0"])
    assert argv[argv.index("-kernel") + 1] == "/i/buildos-image"
    assert argv[argv.index("-append") + 1] == "a b"
    assert "e1000,netdev=net0,mac=de:ad:be:ef:b8:da" in argv
    value = base64.b64encode(b"1,2\n").decode()
    assert f"type=11,value=io.systemd.credential.binary:x={value}" in argv

    uefi = qemu.Machine(nics, uefi=Path("/v"), extra=["-x"]).arguments(["-accel", "tcg"], ["tap0"])
    assert "e1000,netdev=net0,mac=de:ad:be:ef:b8:da,romfile=" in uefi
    assert "if=pflash,format=raw,file=/v" in uefi
    assert uefi[-1] == "-x"

    network = qemu.Machine(nics).arguments(["-accel", "tcg"], ["tap0"])
    assert "-kernel" not in network
    assert network[network.index("-boot") + 1] == "n"


def test_shell_script_answers_with_status_and_output() -> None:

    def request(number: int, script: str) -> str:
        return f"{number} {base64.b64encode(script.encode()).decode()}\n"

    script = shell.credentials()["buildos.shell"]
    requests = request(1, "echo out; echo err >&2; cat; exit 3") + request(2, "true")
    answers = process.run(["bash", "-c", script], stdin=requests)
    out = base64.b64encode(b"out\nerr\n").decode()
    assert answers == f"ready\n1 3 {out}\n2 0 \n"


def test_namespace_close_ends_processes() -> None:
    with Namespace() as namespace:
        inside = namespace.start(["sleep", "infinity"])
    assert inside.wait(timeout=10) != 0


def test_namespace_failed_command_is_in_the_error() -> None:
    with Namespace() as namespace, pytest.raises(CommandFailed, match="no-such-link"):
        namespace.run(["ip", "link", "show", "no-such-link"])


def test_lan_servers_answer_and_ended_server_is_an_error(tmp_path: Path) -> None:
    fetch = "import sys, urllib.request as u; print(u.urlopen(sys.argv[1], timeout=30).read())"
    with BootLan(tmp_path) as lan:
        page = lan.run(["/usr/bin/python3", "-c", fetch, f"http://{ADDRESS.ip}/some/page"])
        assert str(ADDRESS.ip) in page
        assert [visit["path"] for visit in lan.visits()] == ["/some/page"]
        lan.check()
    with pytest.raises(LanError, match="ended"):
        lan.check()


def test_web_server_serves_published_files_only(tmp_path: Path) -> None:
    root = tmp_path / "netboot"
    netboot.publish(root, make_image(tmp_path / "image"), "", {})
    fetch = (
        "import sys, urllib.error as e, urllib.request as u\n"
        "for url in sys.argv[1:]:\n"
        "    try: print(u.urlopen(url, timeout=30).read().decode()[:6])\n"
        "    except e.HTTPError as error: print(error.code)"
    )
    base = BOOT_URL.removesuffix("boot.ipxe")
    names = ("buildos/buildos-initrd", "nothing", "../image/SHA256SUMS")
    urls = [BOOT_URL, *(f"{base}{name}" for name in names)]
    dhcp_boot = netboot.dhcp_boot("ipxe", BOOT_URL)
    assert f"--dhcp-boot={BOOT_URL}" in boot_lan.dhcp_options({}, root, dhcp_boot)
    with BootLan(tmp_path, published=root, dhcp_boot=dhcp_boot) as lan:
        pages = lan.run(["/usr/bin/python3", "-c", fetch, *urls]).splitlines()
    assert pages == ["#!ipxe", "initrd", "404", "404"]
    assert f"/{NETBOOT}/" in BOOT_URL


def test_qemu_ifup_adds_the_tap_to_a_bridge() -> None:
    with Namespace() as namespace:
        namespace.run(["ip", "tuntap", "add", "tap0", "mode", "tap"])
        with pytest.raises(CommandFailed, match="no bridge for tap0"):
            namespace.run([str(QEMU_IFUP), "tap0"])
        namespace.run(["ip", "link", "add", "br0", "type", "bridge"])
        namespace.run([str(QEMU_IFUP), "tap0"])
        assert "master br0" in namespace.run(["ip", "link", "show", "tap0"])
