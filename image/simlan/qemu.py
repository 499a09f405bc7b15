"""Describes machines and makes QEMU's command line for them."""

from __future__ import annotations

import base64
import functools
import os
import select
import shutil
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .boot_lan import LAN, SEGMENTS
from .errors import SimlanError

QEMU = "qemu-system-x86_64"

UEFI_CODE = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
UEFI_VARIABLES = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")

FIRST_MAC = "de:ad:be:ef:b8:da"
"""MAC address of a machine's first NIC, as in the manual; the next NICs count up."""

KVM_DEADLINE = 10.0
"""Seconds in which a kernel must print its version under KVM. With a working KVM, this
takes less than one second."""


@dataclass(frozen=True)
class Nic:
    """A network card and its segment."""

    model: str
    segment: str
    mac: str


class NicError(SimlanError):
    """A text that does not describe a NIC."""


def parse_nic(text: str, index: int) -> Nic:
    """Parses `MODEL[@SEGMENT]`, the `index`-th NIC of its machine."""
    model, _, segment = text.partition("@")
    segment = segment or LAN
    if not model or segment not in SEGMENTS:
        raise NicError(f"{text!r} is not a NIC: MODEL[@{'|'.join(SEGMENTS)}], such as e1000@{LAN}")
    return Nic(model, segment, nth_mac(index))


def nth_mac(index: int) -> str:
    """Returns the MAC address of the `index`-th NIC of a machine."""
    number = int(FIRST_MAC.replace(":", ""), 16) + index
    return number.to_bytes(6).hex(":")


@dataclass(frozen=True)
class Machine:
    """A machine and how it boots.

    With the directory `image` it boots the two files there, and the kernel gets
    `append`. Without it boots from its first NIC, by UEFI if `uefi` is a file for its
    variables (see `uefi_variables`). The guest's systemd gets `credentials`, see
    systemd.system-credentials(7).
    """

    nics: Sequence[Nic]
    memory: int = 2048
    """MiB."""
    image: Path | None = None
    append: str = ""
    credentials: Mapping[str, str] = field(default_factory=dict)
    uefi: Path | None = None
    reboots: bool = False
    """False: a reboot of the guest ends QEMU."""
    extra: Sequence[str] = ()
    """More arguments for QEMU."""

    def arguments(self, accelerator: Sequence[str], taps: Sequence[str]) -> list[str]:
        """Returns QEMU's command line without console and channels, with a tap for
        each NIC."""
        argv = [QEMU, *accelerator, "-m", f"{self.memory}M"]
        argv += [] if self.reboots else ["-no-reboot"]
        argv += ["-display", "none"]
        for index, (nic, tap) in enumerate(zip(self.nics, taps, strict=True)):
            netdev = f"tap,id=net{index},ifname={tap},script=no,downscript=no"
            argv += ["-netdev", netdev]
            # UEFI brings its own driver and PXE client in place of the NIC's ROM.
            rom = ",romfile=" if self.uefi else ""
            argv += ["-device", f"{nic.model},netdev=net{index},mac={nic.mac}{rom}"]
        if self.image:
            argv += ["-kernel", str(self.image / "buildos-image")]
            argv += ["-initrd", str(self.image / "buildos-initrd")]
            argv += ["-append", self.append]
        else:
            # Without graphics the firmware, the NIC's boot ROM and PXELINUX
            # write to the serial line.
            argv += ["-machine", "pc,graphics=off", "-boot", "n"]
        if self.uefi:
            code = f"if=pflash,format=raw,readonly=on,file={UEFI_CODE}"
            argv += ["-drive", code, "-drive", f"if=pflash,format=raw,file={self.uefi}"]
        for name, value in self.credentials.items():
            # Base64: QEMU would interpret commas and line ends.
            text = base64.b64encode(value.encode()).decode()
            argv += ["-smbios", f"type=11,value=io.systemd.credential.binary:{name}={text}"]
        return [*argv, *self.extra]


def uefi_variables(directory: Path) -> Path:
    """Makes a new file for the variables of a machine's UEFI."""
    target = directory / "uefi-variables.fd"
    shutil.copyfile(UEFI_VARIABLES, target)
    return target


@functools.cache
def accelerator(kernel: Path) -> tuple[str, ...]:
    """Returns QEMU's arguments for the fastest way to run `kernel` on this machine."""
    cpus = os.cpu_count() or 1
    if kvm_runs(kernel):
        return ("-accel", "kvm", "-cpu", "host", "-smp", str(min(cpus, 4)))
    # TCG is slow: with one CPU the boot would wait for it all the time.
    return ("-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2")


def kvm_runs(kernel: Path) -> bool:
    """Returns true if `kernel` starts under KVM.

    /dev/kvm is not enough: in some virtual machines it exists, but a guest dies at its
    first unusual instruction.
    """
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    argv = [QEMU, "-accel", "kvm", "-cpu", "host", "-m", "512M", "-display", "none", "-nic", "none"]
    argv += ["-no-reboot", "-serial", "stdio", "-kernel", str(kernel), "-append", "console=ttyS0"]
    said = b""
    deadline = time.monotonic() + KVM_DEADLINE
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as qemu:
        assert qemu.stdout
        try:
            while b"Linux version" not in said and b"KVM internal error" not in said:
                rest = max(0.0, deadline - time.monotonic())
                ready, _, _ = select.select([qemu.stdout], [], [], rest)
                some = os.read(qemu.stdout.fileno(), 4096) if ready else b""
                if not some:
                    break
                said += some
        finally:
            qemu.kill()
    return b"Linux version" in said
