"""The commands of the manual's examples; only with --all."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import netboot
import pytest
from booted_host import BOOT_SECONDS
from simlan import qemu
from simlan.boot_lan import BOOT_URL, BootLan, agent_parameters
from simlan.guest import GuestError
from simlan.lan import BRIDGE
from simlan.wait import wait_for

pytestmark = pytest.mark.long

QEMU_IFUP = Path(__file__).resolve().parents[2] / "image/qemu-ifup"
MAC = "de:ad:be:ef:b8:da"
NETWORK = f"-netdev tap,id=net0,script=./qemu-ifup -device e1000,netdev=net0,mac={MAC}"


def run(lan: BootLan, directory: Path, arguments: str, seen: Callable[[], object]) -> None:
    """Runs `kvm -m 8G` with these arguments in `directory` until `seen`.

    Only the accelerator and the display differ from the manual."""
    shutil.copy(QEMU_IFUP, directory / "qemu-ifup")
    accelerator = " ".join(qemu.accelerator(directory / "buildos-image"))
    command = f"{qemu.QEMU} -m 8G {NETWORK} {arguments} {accelerator} -display none"
    script = f"cd {directory} && BUILDOS_BRIDGE={BRIDGE} exec {command}"
    log = directory / "qemu.log"
    with log.open("wb") as output:
        machine = lan.namespace.start(
            ["sh", "-c", script], stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:

        def up() -> object:
            lan.check()
            if machine.poll() is not None:
                raise GuestError(log.read_text(errors="replace"))
            return seen()

        wait_for(up, "the host is up", BOOT_SECONDS, interval=0.5)
    finally:
        machine.kill()
        machine.wait()


def link_image(image: Path, directory: Path) -> None:
    for name in netboot.NEEDED:
        (directory / name).symlink_to(image / name)


def test_pxelinux_boots_the_configuration_of_one_host(image: Path, tmp_path: Path) -> None:
    link_image(image, tmp_path)
    root = tmp_path / "tftpboot"
    netboot.publish(root, image, "", {MAC: agent_parameters()})
    (root / "pxelinux.cfg/default").unlink()
    dhcp_boot = netboot.dhcp_boot("pxelinux", BOOT_URL)
    with BootLan(tmp_path, published=root, dhcp_boot=dhcp_boot) as lan:
        run(lan, tmp_path, "-boot n", lan.task_requests)
        assert "pxelinux.cfg/01-de-ad-be-ef-b8-da" in (tmp_path / "dnsmasq.log").read_text()


def test_local_kernel_and_initrd_boot(image: Path, tmp_path: Path) -> None:
    link_image(image, tmp_path)
    with BootLan(tmp_path) as lan:
        run(lan, tmp_path, "-kernel buildos-image -initrd buildos-initrd", lan.leases)
        assert list(lan.leases()) == [MAC]
