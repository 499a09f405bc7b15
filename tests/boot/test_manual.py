"""The examples of the manual, as they are written there: with --all."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from simlan import agents, netboot, qemu
from simlan.network import LAN, Lan
from trial import BOOT_SECONDS

pytestmark = pytest.mark.long

QEMU_IFUP = Path(__file__).resolve().parents[2] / "image/qemu-ifup"
MAC = "de:ad:be:ef:b8:da"
NETWORK = f"-netdev tap,id=net0,script=./qemu-ifup -device e1000,netdev=net0,mac={MAC}"


def run(lan: Lan, directory: Path, arguments: str, seen: Callable[[], object]) -> None:
    """Runs `kvm -m 8G` with these arguments in `directory` until `seen`. KVM or not is
    the one thing that may differ, and nobody looks at the screen."""
    shutil.copy(QEMU_IFUP, directory / "qemu-ifup")
    accelerator = " ".join(qemu.accelerator(directory / "buildos-image"))
    command = f"{qemu.QEMU} -m 8G {NETWORK} {arguments} {accelerator} -display none"
    script = f"cd {directory} && BUILDOS_BRIDGE={LAN} exec {command}"
    log = directory / "qemu.log"
    with log.open("wb") as output:
        machine = lan.sandbox.start(
            ["sh", "-c", script], stdin=subprocess.DEVNULL, stdout=output, stderr=output
        )
    try:
        deadline = time.monotonic() + BOOT_SECONDS
        while not seen():
            lan.check()
            assert machine.poll() is None, log.read_text(errors="replace")
            assert time.monotonic() < deadline, "the host did not come up"
            time.sleep(0.5)
    finally:
        machine.kill()
        machine.wait()


def link_image(image: Path, directory: Path) -> None:
    for name in netboot.NEEDED:
        (directory / name).symlink_to(image / name)


def test_network(image: Path, tmp_path: Path) -> None:
    """PXELINUX with a configuration of the one host."""
    link_image(image, tmp_path)
    root = tmp_path / "tftpboot"
    netboot.publish(root, image, "", {MAC: agents.parameters()})
    (root / "pxelinux.cfg/default").unlink()
    with Lan(tmp_path, published=root) as lan:
        run(lan, tmp_path, "-boot n", lan.polls)
        assert "pxelinux.cfg/01-de-ad-be-ef-b8-da" in (tmp_path / "dnsmasq.log").read_text()


def test_local(image: Path, tmp_path: Path) -> None:
    link_image(image, tmp_path)
    with Lan(tmp_path) as lan:
        run(lan, tmp_path, "-kernel buildos-image -initrd buildos-initrd", lan.leases)
        (lease,) = lan.leases()
        assert lease.mac == MAC
