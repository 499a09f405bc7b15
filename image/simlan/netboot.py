"""What a TFTP server publishes for PXELINUX, as the manual describes it."""

from __future__ import annotations

import shutil
from pathlib import Path

LOADER = Path("/usr/lib/PXELINUX/pxelinux.0")
MODULES = Path("/usr/lib/syslinux/modules/bios")


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


def configuration_name(mac: str) -> str:
    """The file in `pxelinux.cfg/` that PXELINUX asks for first on this NIC."""
    return "01-" + mac.lower().replace(":", "-")


def publish(root: Path, image: Path, configurations: dict[str, str]) -> None:
    """Fills the directory `root`: loader, the two files of `image`, and for
    each MAC its configuration."""
    shutil.copy(LOADER, root / "pxelinux.0")
    shutil.copy(MODULES / "ldlinux.c32", root / "ldlinux.c32")
    (root / "buildos").mkdir()
    for name in ("buildos-image", "buildos-initrd"):
        (root / "buildos" / name).symlink_to((image / name).resolve())
    (root / "pxelinux.cfg").mkdir()
    for mac, text in configurations.items():
        (root / "pxelinux.cfg" / configuration_name(mac)).write_text(text)
