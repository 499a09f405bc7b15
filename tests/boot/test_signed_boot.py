"""iPXE of the site starts what the site has signed, and nothing else.

The commands that make the keys are those of docs/booting.md."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import netboot
import pytest
from booted_host import BOOT_SECONDS, Boot, BootedHost
from cpio_archive import archive
from simlan.boot_lan import BOOT_URL, QUERY, agent_parameters
from test_loaders import CONSOLE, FOREIGN, MARK, small_image

__all__ = ["small_image"]

TOP = Path(__file__).resolve().parents[2]
KEPT = TOP / "build/signed-boot"
"""A CA and iPXE that trusts it: iPXE takes some minutes to build."""

SOURCE = "BUILDOS_IPXE_SOURCE"
"""Directory of iPXE's source, in place of Debian's package."""


def documented(*, of_ca: bool) -> list[str]:
    """Returns the commands of docs/booting.md that make the CA, or the key that signs."""
    text = (TOP / "docs/booting.md").read_text().partition("## Signed boot")[2]
    block = re.search(r"(?:^    .*\n)+", text, re.MULTILINE)
    assert block
    commands = re.sub(r"\\\n\s*", "", block[0]).strip().splitlines()
    made = [command.strip() for command in commands if command.strip().startswith("openssl req")]
    assert len(made) == 2
    return made[:1] if of_ca else made[1:]


def run(commands: list[str], directory: Path) -> None:
    for command in commands:
        command = command.replace("openssl req", "openssl req -nodes")
        subprocess.run(command, shell=True, check=True, cwd=directory, capture_output=True)


class Site(NamedTuple):
    ipxe: Path
    signer: netboot.Signer
    other: netboot.Signer


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Site:
    """iPXE of the site, its signer, and that of a stranger."""
    if not all((KEPT / name).exists() for name in netboot.SITE_IPXE):
        KEPT.mkdir(parents=True, exist_ok=True)
        run(documented(of_ca=True), KEPT)
        command = [str(TOP / "image/ipxe"), str(KEPT), "--ca", str(KEPT / "ca.pem")]
        if source := os.environ.get(SOURCE):
            command += ["--source", source]
        subprocess.run(command, check=True)
    signers = []
    for name in ("site", "other"):
        directory = tmp_path_factory.mktemp(name)
        if name == "site":
            for file in ("ca.pem", "ca.key"):
                shutil.copy(KEPT / file, directory)
        else:
            run(documented(of_ca=True), directory)
        run(documented(of_ca=False), directory)
        signers.append(netboot.Signer(directory / "boot.key", directory / "boot.pem"))
    return Site(KEPT, *signers)


def publish(site: Site, image: Path, root: Path, append: str = CONSOLE) -> Path:
    netboot.publish(root, image, append, {}, signer=site.signer, ipxe=site.ipxe)
    return root


def start(boot: Boot, published: Path, firmware: str, memory: int = 1024) -> BootedHost:
    # The ROM of the NIC is iPXE, too, and cannot verify: it loads that of the site.
    nic = "e1000@lan" if firmware == "ipxe" else "virtio-net-pci@lan"
    dhcp_boot = netboot.dhcp_boot_any(BOOT_URL, "undionly.kpxe")
    host: BootedHost = boot(
        nic, way=firmware, published=published, dhcp_boot=dhcp_boot, memory=memory
    )
    return host


@pytest.mark.long
@pytest.mark.parametrize("firmware", ["ipxe", "uefi"])
def test_signed_image_boots_to_the_first_poll(
    boot_once: Boot, image: Path, site: Site, tmp_path: Path, firmware: str
) -> None:
    append = f"{CONSOLE} {agent_parameters(QUERY)}"
    host = start(boot_once, publish(site, image, tmp_path / "www", append), firmware, 2048)
    host.wait_for_poll()


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _append(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b" ")


KERNEL, INITRD = "buildos/buildos-image", "buildos/buildos-initrd"

TAMPERS: dict[str, tuple[Callable[[Path, Site], object], str]] = {
    "altered kernel": (lambda root, _: _flip(root / KERNEL), "buildos-image is refused"),
    "altered initrd": (lambda root, _: _flip(root / INITRD), "buildos-initrd is refused"),
    "longer initrd": (lambda root, _: _append(root / INITRD), "buildos-initrd is refused"),
    "no signature": (
        lambda root, _: (root / f"{INITRD}.sig").unlink(),
        "buildos-initrd is refused",
    ),
    "signature of a stranger": (
        lambda root, site: (root / f"{INITRD}.sig").write_bytes(site.other.sign(root / INITRD)),
        "buildos-initrd is refused",
    ),
    "signature of the kernel for the initrd": (
        lambda root, _: shutil.copy(root / f"{KERNEL}.sig", root / f"{INITRD}.sig"),
        "buildos-initrd is refused",
    ),
    "other kernel parameters": (
        lambda root, _: _append(root / "ipxe.cfg/default"),
        "ipxe.cfg/default is refused",
    ),
    "a script that verifies nothing": (
        lambda root, _: (root / "boot.ipxe").write_text(netboot.BOOT_IPXE),
        "boot.ipxe is refused",
    ),
}


@pytest.mark.long
@pytest.mark.parametrize("firmware", ["ipxe", "uefi"])
def test_altered_file_is_refused_with_its_name(
    boot_once: Boot, small_image: Path, site: Site, tmp_path: Path, firmware: str
) -> None:
    for name, (alter, sentence) in TAMPERS.items():
        if firmware == "ipxe" and name == "a script that verifies nothing":
            # The ROM of QEMU's NIC would run it.
            continue
        root = publish(site, small_image, tmp_path / name.replace(" ", "-"))
        alter(root, site)
        guest = start(boot_once, root, firmware).guest
        guest.wait_for(
            lambda guest=guest: "nothing was started" in guest.console(),  # type: ignore[misc]
            f"the refusal of {name}",
            BOOT_SECONDS,
        )
        console = guest.console()
        assert sentence in console, (name, console[-3000:])
        assert MARK not in console and "Linux version" not in console, name
        guest.close()


@pytest.mark.long
@pytest.mark.parametrize("firmware", ["ipxe", "uefi"])
def test_file_that_ipxe_loads_by_itself_is_no_part_of_the_system(
    boot_once: Boot, small_image: Path, site: Site, tmp_path: Path, firmware: str
) -> None:
    """iPXE of UEFI looks for autoexec.ipxe, and gives a kernel all images that it has."""
    root = publish(site, small_image, tmp_path / "www")
    (root / "autoexec.ipxe").write_bytes(archive(FOREIGN, b"x"))
    guest = start(boot_once, root, firmware).guest
    assert guest.wait_for_end(BOOT_SECONDS) == 0
    console = guest.console()
    assert MARK in console
    assert f"the initrd has a file {FOREIGN}" not in console
    assert ("autoexec.ipxe... ok" in console) == (firmware == "uefi"), console[-4000:]


def openssl(*arguments: str | Path) -> int:
    return subprocess.run(["openssl", *map(str, arguments)], capture_output=True).returncode


def test_signatures_are_those_of_the_files(tmp_path: Path) -> None:
    """As iPXE verifies them, without a machine."""
    run(documented(of_ca=True) + documented(of_ca=False), tmp_path)
    signer = netboot.Signer(tmp_path / "boot.key", tmp_path / "boot.pem")
    image, ipxe = tmp_path / "image", tmp_path / "ipxe"
    for directory, names in [(image, netboot.NEEDED), (ipxe, netboot.SITE_IPXE)]:
        directory.mkdir()
        for name in names:
            (directory / name).write_bytes(name.encode() * 100)
    root = tmp_path / "www"
    hosts = {"de:ad:be:ef:b8:da": "quiet"}
    netboot.publish(root, image, "", hosts, signer=signer, ipxe=ipxe)
    host = "ipxe.cfg/01-de-ad-be-ef-b8-da"
    signed = {str(path.relative_to(root))[:-4] for path in root.rglob("*.sig")}
    assert signed == {"boot.ipxe", "ipxe.cfg/default", host, KERNEL, INITRD}
    # Nothing that starts the files without verifying them.
    assert not (root / "pxelinux.cfg").exists() and not (root / "grub").exists()
    for name in signed:
        file = root / name
        verify = ["cms", "-verify", "-binary", "-purpose", "any", "-inform", "DER"]
        verify += ["-in", f"{file}.sig", "-content", str(file), "-CAfile", str(tmp_path / "ca.pem")]
        assert openssl(*verify) == 0, name
        _flip(file)
        assert openssl(*verify) != 0, name


def test_key_with_a_passphrase_signs(tmp_path: Path) -> None:
    run(documented(of_ca=True) + documented(of_ca=False), tmp_path)
    encrypt = ["pkcs8", "-topk8", "-in", str(tmp_path / "boot.key"), "-passout", "pass:secret"]
    assert openssl(*encrypt, "-out", str(tmp_path / "locked.key")) == 0
    signer = netboot.Signer(tmp_path / "locked.key", tmp_path / "boot.pem")
    assert signer.needs_passphrase
    with pytest.raises(netboot.NetbootError, match="openssl cannot use"):
        signer.sign(tmp_path / "boot.pem")
    signer = netboot.Signer(signer.key, signer.certificate, "secret")
    assert signer.sign(tmp_path / "boot.pem")


def test_keys_that_ipxe_would_refuse_are_refused_with_a_remedy(tmp_path: Path) -> None:
    run(documented(of_ca=True) + documented(of_ca=False), tmp_path)
    key, certificate = tmp_path / "boot.key", tmp_path / "boot.pem"
    netboot.Signer(key, certificate).check()
    with pytest.raises(netboot.NetbootError, match="codeSigning: docs/booting.md"):
        netboot.Signer(tmp_path / "ca.key", tmp_path / "ca.pem").check()
    with pytest.raises(netboot.NetbootError, match="openssl cannot use .*boot.pem"):
        netboot.Signer(tmp_path / "ca.key", certificate).sign(certificate)
    with pytest.raises(netboot.NetbootError, match="needs --ipxe"):
        netboot.publish(tmp_path / "www", tmp_path, "", {}, signer=netboot.Signer(key, certificate))
