"""Fills a directory that boot loaders fetch over TFTP and HTTP, and makes the lines of
dnsmasq.conf that lead machines to it.

    pxelinux.0 ldlinux.c32         PXELINUX (BIOS), over TFTP
    undionly.kpxe snponly.efi      iPXE for NICs without it in their ROM (BIOS, UEFI)
    boot.ipxe                      the script with which iPXE starts
    pxelinux.cfg/, ipxe.cfg/       configurations: 01-MAC for one host, `default` for all
    grub/grub.cfg                  configuration for all hosts, for a GRUB added there
    buildos/                       the two files, manifest, SPDX document, checksums
    *.sig                          signatures of these files for iPXE (image/serve --sign)
    objects/                       the two files of the last builds, by digest
    buildos/builds                 digests of the last builds, the newest first

`image/serve` makes it for real networks, `image/boot` for the simulated LAN.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
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

SITE_IPXE = ("undionly.kpxe", "snponly.efi")
"""Files of image/ipxe, which verify signatures."""

WAYS = ("direct", "pxelinux", "ipxe", "uefi")
"""How a machine boots in QEMU:

    direct     QEMU loads kernel and initrd
    pxelinux   the NIC's ROM, then PXELINUX over TFTP
    ipxe       the NIC's ROM, which is iPXE in QEMU, over HTTP
    uefi       UEFI's PXE client, then iPXE over HTTP
"""

NEEDED = ("buildos-image", "buildos-initrd")
ABOUT = ("buildos.manifest", "buildos.spdx.json", "SHA256SUMS")

BUILDS = 3
"""Builds of which the files stay: a host that was started with one of them can return to it."""

PANIC = "panic=60"
"""Makes a panicking kernel reboot after a minute. The initrd sets the same, but only
after the kernel has unpacked it."""

BOOT_IPXE = """\
#!ipxe
# The configuration for the NIC that iPXE booted from, else the configuration for all hosts.
chain --autofree ipxe.cfg/01-${netX/mac:hexhyp} || chain --autofree ipxe.cfg/default || goto failed
:failed
echo buildos: the files could not be fetched; trying again in a minute
sleep 60
reboot
"""


SIGNED_BOOT_IPXE = """\
#!ipxe
# Starts nothing that the site has not signed. iPXE of image/ipxe has verified this file, too.
imgtrust --permanent || goto replace
set name ipxe.cfg/01-${netX/mac:hexhyp}
imgfetch --name configuration ${name} && goto verify ||
set name ipxe.cfg/default
imgfetch --name configuration ${name} || goto failed
:verify
imgverify configuration ${name}.sig || goto refused
imgexec configuration || goto failed
:refused
echo buildos: ${name} is refused: altered, or not signed by the site
echo buildos: run image/serve --sign on the boot server
:failed
echo buildos: nothing was started; trying again in a minute
sleep 60
reboot
:replace
echo buildos: this iPXE cannot verify signatures; loading the one of the site
iseq ${platform} efi && chain snponly.efi ||
iseq ${platform} pcbios && chain undionly.kpxe ||
goto failed
"""


class NetbootError(Exception):
    """A directory cannot be published, or an argument is invalid."""


def configuration(append: str, timeout: int) -> str:
    """Returns a file of `pxelinux.cfg/`. `append` are kernel parameters, `timeout` is in
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


_PASSPHRASE = "BUILDOS_PASSPHRASE"


@dataclass(frozen=True)
class Signer:
    """Signs files for iPXE's imgverify: a key, and its certificate by the CA of image/ipxe."""

    key: Path
    certificate: Path
    passphrase: str = ""

    @property
    def needs_passphrase(self) -> bool:
        """True if the key is encrypted."""
        return b"ENCRYPTED" in self.key.read_bytes()

    def check(self) -> None:
        """Raises NetbootError if iPXE would refuse every signature."""
        shown = self._openssl("x509", "-in", self.certificate, "-noout", "-ext", "extendedKeyUsage")
        if b"Code Signing" not in shown:
            raise NetbootError(
                f"{self.certificate} has no extendedKeyUsage codeSigning: docs/booting.md says "
                "how to make one"
            )
        dates = ("x509", "-in", self.certificate, "-noout", "-checkend", "0")
        if subprocess.run(["openssl", *map(str, dates)], capture_output=True).returncode != 0:
            raise NetbootError(f"{self.certificate} has expired: make a new one with the same CA")

    def sign(self, file: Path) -> bytes:
        """Returns the detached signature of a file."""
        # Without a question on the terminal for each file.
        secret = ("-passin", f"env:{_PASSPHRASE}")
        sign = ("cms", "-sign", "-binary", "-noattr", "-in", file, "-outform", "DER")
        return self._openssl(*sign, "-signer", self.certificate, "-inkey", self.key, *secret)

    def _openssl(self, *arguments: str | Path) -> bytes:
        environment = {**os.environ, _PASSPHRASE: self.passphrase}
        command = ["openssl", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, env=environment)
        if done.returncode != 0:
            reason = done.stderr.decode(errors="replace").strip().partition("\n")[0]
            raise NetbootError(
                f"openssl cannot use {self.certificate} with {self.key}: {reason or 'no reason'}"
            )
        return done.stdout


def ipxe_configuration(append: str, signed: bool = False) -> str:
    """Returns a file of `ipxe.cfg/`. BOOTIF= equals the effect of PXELINUX's `ipappend 2`;
    with initrd= a kernel started by UEFI finds its initrd among iPXE's files.

    A signed one lets iPXE verify both files: the kernel's signature says nothing about the
    initrd, which has the system."""
    bootif = "BOOTIF=01-${netX/mac:hexhyp}"
    if signed:
        return f"""\
#!ipxe
kernel ../buildos/buildos-image initrd=buildos-initrd {bootif}{" " if append else ""}{append}
initrd ../buildos/buildos-initrd
set name buildos-image
imgverify buildos-image ../buildos/buildos-image.sig || goto refused
set name buildos-initrd
imgverify buildos-initrd ../buildos/buildos-initrd.sig || goto refused
boot
:refused
echo buildos: ${{name}} is refused: altered, or not signed by the site
echo buildos: run image/serve --sign on the boot server
exit 1
"""
    return f"""\
#!ipxe
kernel ../buildos/buildos-image initrd=buildos-initrd {bootif}{" " if append else ""}{append}
initrd ../buildos/buildos-initrd
boot
"""


def grub_configuration(append: str, timeout: int) -> str:
    """Returns grub.cfg, for the place where Debian's signed network GRUB looks for it."""
    append = " ".join(map(_grub_quoted, re.findall(r'(?:[^\s"]|"[^"]*")+', append)))
    return f"""\
set timeout={timeout // 10}
menuentry buildos {{
    linux /buildos/buildos-image{" " if append else ""}{append}
    initrd /buildos/buildos-initrd
}}
"""


def _grub_quoted(parameter: str) -> str:
    """Quotes a parameter for GRUB, which otherwise ends the command at & or ;. GRUB itself
    puts double quotes around a parameter with a space."""
    bare = parameter.replace('"', "")
    if re.fullmatch(r"[\w.,:/=+@%?-]*", bare):
        return bare
    return "'" + bare.replace("'", "'\\\\''") + "'"


def configuration_name(mac: str) -> str:
    """Returns the name of the file that boot loaders try first for this NIC."""
    return "01-" + mac.lower().replace(":", "-")


def mac_address(text: str) -> str:
    """Parses a MAC address; raises NetbootError."""
    if not re.fullmatch(r"[0-9A-Fa-f]{2}([:-][0-9A-Fa-f]{2}){5}", text):
        raise NetbootError(f"{text!r} is not a MAC address; an example is de:ad:be:ef:b8:da")
    return text.replace("-", ":").lower()


def check_sums(image: Path) -> list[str]:
    """Returns the digests of NEEDED. Raises NetbootError unless the files of `image` match its
    SHA256SUMS."""
    for name in NEEDED:
        if not (image / name).is_file():
            raise NetbootError(f"{image / name} is missing: image/build makes it")
    try:
        text = (image / "SHA256SUMS").read_text()
    except FileNotFoundError as error:
        raise NetbootError(f"{image} has no SHA256SUMS: image/build makes it") from error
    except UnicodeDecodeError as error:
        raise NetbootError(f"{image / 'SHA256SUMS'} is not text: copy it again") from error
    lines = re.findall(r"(?m)^([0-9a-f]{64})  (\S+)$", text)
    sums = {name: digest for digest, name in lines}
    for name in NEEDED:
        if sums.get(name) != _digest(image / name):
            raise NetbootError(f"{image / name} does not match SHA256SUMS: copy it again")
    return [sums[name] for name in NEEDED]


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def extra_parameters(image: Path) -> str:
    """Returns the kernel parameters of `image/build --append`."""
    file = image / "buildos.cmdline"
    return file.read_text().strip() if file.exists() else ""


def publish(
    root: Path,
    image: Path,
    append: str,
    hosts: Mapping[str, str],
    timeout: int = 50,
    signer: Signer | None = None,
    ipxe: Path | None = None,
) -> None:
    """Fills the directory `root`, or updates it; replaces each file as a whole.

    `append` are the parameters for every host. `hosts` has the parameters for hosts that
    boot from the NIC with that MAC address, in place of `append`.

    With a signer only iPXE gets files, as PXELINUX and GRUB verify no initrd. `ipxe` is the
    directory of image/ipxe."""
    loaders = LOADERS
    if signer:
        if ipxe is None:
            raise NetbootError("--sign needs --ipxe DIR: image/ipxe makes the files")
        signer.check()
        loaders = tuple(ipxe / name for name in SITE_IPXE)
    for loader in loaders:
        if not loader.exists():
            how = "image/ipxe makes it" if signer else "image/host-packages lists its package"
            raise NetbootError(f"{loader} is missing: {how}")
        _install(loader, root / loader.name)
    if signer:
        _publish_signed(root, image, append, hosts, signer)
        return
    _write(root / "boot.ipxe", BOOT_IPXE)
    for name in (*NEEDED, *ABOUT):
        if (image / name).exists():
            _install(image / name, root / "buildos" / name)
    _write(root / "grub/grub.cfg", grub_configuration(append, timeout))
    names = {"default": append, **{configuration_name(mac): text for mac, text in hosts.items()}}
    for name, text in names.items():
        _write(root / "pxelinux.cfg" / name, configuration(text, timeout))
        _write(root / "ipxe.cfg" / name, ipxe_configuration(text))


def _publish_signed(
    root: Path, image: Path, append: str, hosts: Mapping[str, str], signer: Signer
) -> None:
    for name in ABOUT:
        if (image / name).exists():
            _install(image / name, root / "buildos" / name)
    # Both signatures first: a host that boots meanwhile meets a difference for a moment only.
    signatures = {name: signer.sign(image / name) for name in NEEDED}
    for name, signature in signatures.items():
        _install(image / name, root / "buildos" / name)
        _write(root / "buildos" / f"{name}.sig", signature)
    names = {"default": append, **{configuration_name(mac): text for mac, text in hosts.items()}}
    texts = {f"ipxe.cfg/{name}": ipxe_configuration(text, True) for name, text in names.items()}
    for name, text in {**texts, "boot.ipxe": SIGNED_BOOT_IPXE}.items():
        _write(root / name, text)
        _write(root / f"{name}.sig", signer.sign(root / name))


def running_parameter(digests: list[str]) -> str:
    """Returns the kernel parameter from which a host knows its two files, to return to them
    after an update. `digests` come from `check_sums`."""
    return f"buildos.running={':'.join(digests)}"


def keep_build(root: Path, image: Path, digests: list[str]) -> None:
    """Keeps the files of a build by their digests, and removes those of old builds. Call it before
    `publish`: a host that boots a new build finds its files.

    `digests` come from `check_sums`. A file stays that a channel in the same directory names."""
    for name, digest in zip(NEEDED, digests, strict=True):
        # Also in the place of a damaged one.
        kept = root / "objects" / digest
        if not kept.exists() or _digest(kept) != digest:
            _install(image / name, kept)
    record = root / "buildos/builds"
    former = record.read_text().splitlines() if record.exists() else []
    build = ":".join(digests)
    builds = [build, *(line for line in former if line != build)]
    files = (file for file in (root / "channel").glob("*") if file.is_file())
    channels = " ".join(file.read_text("latin-1") for file in files)
    old = builds[BUILDS:]
    named = [line for line in old if all(digest in channels for digest in line.split(":"))]
    kept = [*builds[:BUILDS], *named]
    _write(record, "".join(f"{line}\n" for line in kept))
    needed = {digest for line in kept for digest in line.split(":")}
    for digest in {digest for line in old for digest in line.split(":")} - needed:
        # A build that image/serve does not know can have the same kernel.
        if digest not in channels:
            (root / "objects" / digest).unlink(missing_ok=True)


def _install(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.new")
    shutil.copyfile(source, beside)
    beside.chmod(0o644)
    beside.rename(target)


def _write(target: Path, text: str | bytes) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.new")
    beside.write_bytes(text.encode() if isinstance(text, str) else text)
    beside.chmod(0o644)
    beside.rename(target)


def dhcp_boot(way: str, url: str) -> list[str]:
    """Returns dnsmasq's lines for machines that boot this way (see WAYS); `url` is the
    URL of boot.ipxe."""
    if way == "pxelinux":
        return ["dhcp-boot=pxelinux.0"]
    if way == "ipxe":
        return [f"dhcp-boot={url}"]
    return dhcp_boot_any(url) if way == "uefi" else []


def dhcp_boot_any(url: str, bios: str = "pxelinux.0") -> list[str]:
    """Returns dnsmasq's lines for a network with machines of all kinds: iPXE gets `url`,
    BIOS the file `bios`, UEFI iPXE."""
    return [
        # Option 175 is iPXE's own; client-arch 7 and 9 are UEFI on 64-bit PCs (RFC 4578).
        "dhcp-match=set:ipxe,175",
        "dhcp-match=set:efi,option:client-arch,7",
        "dhcp-match=set:efi,option:client-arch,9",
        f"dhcp-boot=tag:ipxe,{url}",
        "dhcp-boot=tag:!ipxe,tag:efi,snponly.efi",
        f"dhcp-boot=tag:!ipxe,tag:!efi,{bios}",
    ]
