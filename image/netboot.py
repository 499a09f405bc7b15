"""What boot loaders fetch: a directory for TFTP and HTTP, and the DHCP options that
lead to it. image/serve makes the same directory for real networks.

    pxelinux.0 ldlinux.c32         PXELINUX (BIOS), over TFTP
    undionly.kpxe snponly.efi      iPXE for NICs whose ROM it is not (BIOS, UEFI)
    boot.ipxe                      where iPXE begins
    pxelinux.cfg/, ipxe.cfg/       what to boot: 01-MAC of one host, `default` of all
    grub/grub.cfg                  the same of all hosts, for a GRUB that is put there
    buildos/                       the two files, and what is said about them
"""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Mapping
from pathlib import Path

PXELINUX = Path("/usr/lib/PXELINUX/pxelinux.0")
SYSLINUX_MODULES = Path("/usr/lib/syslinux/modules/bios")
IPXE = Path("/usr/lib/ipxe")

LOADERS = (
    PXELINUX,
    SYSLINUX_MODULES / "ldlinux.c32",
    IPXE / "undionly.kpxe",
    IPXE / "snponly.efi",
)

WAYS = ("direct", "pxelinux", "ipxe", "uefi")
"""Kernel and initrd by QEMU; the NIC's ROM and PXELINUX over TFTP; the NIC's ROM,
which is iPXE in QEMU, over HTTP; UEFI's own PXE, then iPXE over HTTP."""

NEEDED = ("buildos-image", "buildos-initrd")
ABOUT = ("buildos.manifest", "buildos.spdx.json", "SHA256SUMS")

PANIC = "panic=60"
"""Boot again a minute after a panic of the kernel. The image says so itself, but
only once its initrd has been unpacked."""

BOOT_IPXE = """\
#!ipxe
# The configuration of the NIC that iPXE came up on, else the one of all hosts.
chain --autofree ipxe.cfg/01-${netX/mac:hexhyp} || chain --autofree ipxe.cfg/default || goto failed
:failed
echo buildos: the files could not be fetched; trying again in a minute
sleep 60
reboot
"""


class NetbootError(Exception):
    """A directory cannot be published as it is."""


def configuration(append: str, timeout: int) -> str:
    """A file of `pxelinux.cfg/`: `append` goes to the kernel, `timeout` is in
    tenths of a second."""
    return f"""\
default buildos
prompt 1
timeout {timeout}
label buildos
menu label buildos
kernel /buildos/buildos-image
append initrd=/buildos/buildos-initrd{" " if append else ""}{append}
ipappend 2
"""


def ipxe_configuration(append: str) -> str:
    """The same as a script for iPXE. BOOTIF= is what PXELINUX makes of `ipappend 2`;
    initrd= tells a kernel that UEFI starts which of iPXE's files it is."""
    bootif = "BOOTIF=01-${netX/mac:hexhyp}"
    return f"""\
#!ipxe
kernel ../buildos/buildos-image initrd=buildos-initrd {bootif}{" " if append else ""}{append}
initrd ../buildos/buildos-initrd
boot
"""


def grub_configuration(append: str, timeout: int) -> str:
    """The same for GRUB, as Debian's signed one for networks looks for it."""
    return f"""\
set timeout={timeout // 10}
menuentry buildos {{
    linux /buildos/buildos-image{" " if append else ""}{append}
    initrd /buildos/buildos-initrd
}}
"""


def configuration_name(mac: str) -> str:
    """The file that is looked for first for this NIC."""
    return "01-" + mac.lower().replace(":", "-")


def mac_address(text: str) -> str:
    """`text` if it is a MAC address; raises NetbootError."""
    if not re.fullmatch(r"[0-9A-Fa-f]{2}([:-][0-9A-Fa-f]{2}){5}", text):
        raise NetbootError(f"{text!r} is no MAC address; de:ad:be:ef:b8:da would be one")
    return text.replace("-", ":").lower()


def check_sums(image: Path) -> None:
    """Raises NetbootError unless the files of `image` are those of its SHA256SUMS."""
    for name in NEEDED:
        if not (image / name).is_file():
            raise NetbootError(f"{image / name} is missing: image/build makes it")
    try:
        lines = (image / "SHA256SUMS").read_text().splitlines()
    except FileNotFoundError as error:
        raise NetbootError(f"{image} has no SHA256SUMS: image/build makes it") from error
    sums = {name: digest for digest, name in (line.split() for line in lines)}
    for name in NEEDED:
        with (image / name).open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if sums.get(name) != found:
            raise NetbootError(f"{image / name} is not the file of SHA256SUMS: build or copy again")


def extra_parameters(image: Path) -> str:
    """The parameters that image/build --append gave to the image."""
    file = image / "buildos.cmdline"
    return file.read_text().strip() if file.exists() else ""


def publish(
    root: Path, image: Path, append: str, hosts: Mapping[str, str], timeout: int = 50
) -> None:
    """Fills the directory `root`, or brings it up to date. `append` are parameters
    for every host, `hosts` for the NIC with that MAC in their place. Each file is
    replaced as a whole."""
    for loader in LOADERS:
        if not loader.exists():
            raise NetbootError(f"{loader} is missing: image/host-packages lists what is needed")
        _install(loader, root / loader.name)
    _write(root / "boot.ipxe", BOOT_IPXE)
    for name in (*NEEDED, *ABOUT):
        if (image / name).exists():
            _install(image / name, root / "buildos" / name)
    _write(root / "grub/grub.cfg", grub_configuration(append, timeout))
    names = {"default": append, **{configuration_name(mac): text for mac, text in hosts.items()}}
    for name, text in names.items():
        _write(root / "pxelinux.cfg" / name, configuration(text, timeout))
        _write(root / "ipxe.cfg" / name, ipxe_configuration(text))


def _install(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.new")
    shutil.copyfile(source, beside)
    beside.chmod(0o644)
    beside.rename(target)


def _write(target: Path, text: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.new")
    beside.write_text(text)
    beside.chmod(0o644)
    beside.rename(target)


def dhcp_boot(way: str, url: str) -> list[str]:
    """What dnsmasq tells a machine that boots this way; `url` is boot.ipxe's."""
    if way == "pxelinux":
        return ["dhcp-boot=pxelinux.0"]
    if way == "ipxe":
        return [f"dhcp-boot={url}"]
    return dhcp_boot_any(url) if way == "uefi" else []


def dhcp_boot_any(url: str) -> list[str]:
    """dnsmasq's lines for a network with machines of all kinds: iPXE goes to `url`,
    BIOS to PXELINUX, UEFI to iPXE."""
    return [
        # Option 175 is iPXE's own; client-arch 7 and 9 are UEFI on 64-bit PCs (RFC 4578).
        "dhcp-match=set:ipxe,175",
        "dhcp-match=set:efi,option:client-arch,7",
        "dhcp-match=set:efi,option:client-arch,9",
        f"dhcp-boot=tag:ipxe,{url}",
        "dhcp-boot=tag:!ipxe,tag:efi,snponly.efi",
        "dhcp-boot=tag:!ipxe,tag:!efi,pxelinux.0",
    ]
