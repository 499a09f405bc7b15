"""Machines: what they have, and the command line of QEMU for it."""

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

from .network import LAN, SEGMENTS

QEMU = "qemu-system-x86_64"

UEFI_CODE = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
UEFI_VARIABLES = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")

FIRST_MAC = "de:ad:be:ef:b8:da"
"""Of a machine's first NIC, as in the manual; the next ones count on."""

KVM_DEADLINE = 10.0
"""Seconds until a kernel must have said its first words under KVM. It takes
less than one where KVM works."""


@dataclass(frozen=True)
class Nic:
    """A network card and the segment it is plugged into."""

    model: str
    segment: str
    mac: str


class NicError(ValueError):
    """A text describes no NIC."""


def parse_nic(text: str, index: int) -> Nic:
    """The NIC that `MODEL[@SEGMENT]` describes, the `index`-th of its machine."""
    model, _, segment = text.partition("@")
    segment = segment or LAN
    if not model or segment not in SEGMENTS:
        raise NicError(f"{text!r} is no NIC: MODEL[@{'|'.join(SEGMENTS)}], for example e1000@{LAN}")
    return Nic(model, segment, nth_mac(index))


def nth_mac(index: int) -> str:
    """The MAC of the `index`-th NIC of a machine."""
    number = int(FIRST_MAC.replace(":", ""), 16) + index
    return number.to_bytes(6).hex(":")


@dataclass(frozen=True)
class Machine:
    """A machine and how it boots.

    With `image`, a directory, it boots the two files there and the kernel gets
    `append`; without, it boots from its first NIC, by UEFI if `uefi` is a file for
    its variables (see `uefi_variables`). `credentials` are given to the guest's
    systemd, see systemd.system-credentials(7).
    """

    nics: Sequence[Nic]
    memory: int = 2048
    """MiB."""
    image: Path | None = None
    append: str = ""
    credentials: Mapping[str, str] = field(default_factory=dict)
    uefi: Path | None = None
    reboots: bool = False
    """Whether a reboot of the guest is one; else it ends QEMU."""
    extra: Sequence[str] = ()
    """More arguments for QEMU."""

    def arguments(self, accelerator: Sequence[str], taps: Sequence[str]) -> list[str]:
        """QEMU's command line, but for console and channels. `taps` belong to
        `nics`, one each."""
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
            # show what they do on the serial line.
            argv += ["-machine", "pc,graphics=off", "-boot", "n"]
        if self.uefi:
            code = f"if=pflash,format=raw,readonly=on,file={UEFI_CODE}"
            argv += ["-drive", code, "-drive", f"if=pflash,format=raw,file={self.uefi}"]
        for name, value in self.credentials.items():
            # Base64, because a comma or a line end means something to QEMU.
            text = base64.b64encode(value.encode()).decode()
            argv += ["-smbios", f"type=11,value=io.systemd.credential.binary:{name}={text}"]
        return [*argv, *self.extra]


def uefi_variables(directory: Path) -> Path:
    """A fresh file for the variables of a machine's UEFI."""
    target = directory / "uefi-variables.fd"
    shutil.copyfile(UEFI_VARIABLES, target)
    return target


@functools.cache
def accelerator(kernel: Path) -> tuple[str, ...]:
    """QEMU's arguments for the fastest way to run `kernel` here."""
    cpus = os.cpu_count() or 1
    if kvm_runs(kernel):
        return ("-accel", "kvm", "-cpu", "host", "-smp", str(min(cpus, 4)))
    # Translated code is slow enough for one CPU to be waited for all the time.
    return ("-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2")


def kvm_runs(kernel: Path) -> bool:
    """Whether `kernel` comes up under KVM.

    Nothing less tells: in some virtual machines /dev/kvm is there and answers,
    and the first guest dies at its first unusual instruction.
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
