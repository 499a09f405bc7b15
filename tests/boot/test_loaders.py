"""Tests that boot loaders pass kernel parameters unchanged, quoted as docs/booting.md says.

The kernel is that of the image. Its initrd is the first part of the image's, with an init
that prints the kernel's command line and switches the machine off."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import netboot
import pytest
from booted_host import BOOT_SECONDS, Boot, BootedHost
from cpio_archive import archive

TOP = Path(__file__).resolve().parents[2]
CONSOLE = "console=ttyS0"
GRUB = Path("/usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed")
MARK = "the kernel's command line: "
FOREIGN = "foreign"
"""A file that no initrd of these tests has."""
INIT = f"""\
#!/bin/busybox sh
mount -t devtmpfs devtmpfs /dev
mount -t proc proc /proc
echo "{MARK}$(cat /proc/cmdline)" >/dev/ttyS0
[ ! -e /{FOREIGN} ] || echo "the initrd has a file {FOREIGN}" >/dev/ttyS0
/bin/busybox poweroff -f
"""

# Each loader has a meaning of its own for some of these.
CHARACTERS = "buildos.test=?=&,%20;#*~()[]<>|!@+^$x:/"
SPACES = 'buildos.spaces="one two"'


def manual_line() -> str:
    """Returns the kernel parameter that docs/booting.md has under "Quoting"."""
    text = (TOP / "docs/booting.md").read_text().partition("### Quoting")[2]
    found = re.search(r"^    (buildos\.\S+)$", text, re.MULTILINE)
    assert found and set("?=&,") <= set(found[1])
    return found[1]


@pytest.fixture
def small_image(image: Path, tmp_path: Path) -> Path:
    """The image's kernel with an initrd of some megabytes, see `INIT`."""
    directory = tmp_path / "image"
    directory.mkdir()
    (directory / "buildos-image").symlink_to(image / "buildos-image")
    with (image / "buildos-initrd").open("rb") as file:
        start = file.read(32 << 20)
    # The second archive, with the root, is not compressed.
    second = re.search(rb"070701[0-9A-F]{104}", start)
    assert second and second.start() % 4 == 0
    small = start[: second.start()] + archive("init", INIT.encode())
    (directory / "buildos-initrd").write_bytes(small)
    return directory


Published = Callable[[str], Path]


@pytest.fixture
def published(small_image: Path, tmp_path: Path) -> Published:
    """Makes the directory of image/serve, with GRUB, for these kernel parameters."""

    def publish(parameters: str) -> Path:
        root = tmp_path / "netboot"
        netboot.publish(root, small_image, parameters, {}, timeout=10)
        shutil.copyfile(GRUB, root / "grubx64.efi")
        return root

    return publish


def start(boot: Boot, loader: str, published: Path) -> BootedHost:
    """Starts a machine that boots with a boot loader."""
    nic = "e1000@lan" if loader in ("pxelinux", "ipxe") else "virtio-net-pci@lan"
    way = "uefi" if loader == "grub" else loader
    dhcp_boot = ["dhcp-boot=grubx64.efi"] if loader == "grub" else None
    host: BootedHost = boot(nic, way=way, published=published, dhcp_boot=dhcp_boot, memory=1024)
    return host


def command_line(boot: Boot, loader: str, published: Path) -> str:
    """Boots a machine with a boot loader; returns the command line of its kernel."""
    host = start(boot, loader, published)
    assert host.guest.wait_for_end(BOOT_SECONDS) == 0
    found = re.search(rf"{MARK}(.*?)\r?$", host.guest.console(), re.MULTILINE)
    assert found, host.guest.console()[-4000:]
    return found[1]


@pytest.mark.parametrize("loader", ["pxelinux", "ipxe", "uefi", "grub"])
def test_loader_passes_parameters_unchanged(
    boot_once: Boot, published: Published, loader: str
) -> None:
    parameters = f"{CONSOLE} {manual_line()} {CHARACTERS} {SPACES}"
    line = command_line(boot_once, loader, published(parameters))
    # GRUB puts the double quotes around the whole parameter, which the kernel removes there, too.
    assert parameters in line.replace('"buildos.spaces=one', 'buildos.spaces="one')


def test_grub_does_not_boot_with_an_unquoted_ampersand(
    boot_once: Boot, published: Published
) -> None:
    """The reason for the quotes, and for the message of `buildosctl check`."""
    root = published(f"{CONSOLE} {manual_line()}")
    file = root / "grub/grub.cfg"
    file.write_text(file.read_text().replace("'", ""))
    host = start(boot_once, "grub", root)
    host.guest.wait_for(
        lambda: "error: syntax error." in host.guest.console(), "GRUB's complaint", BOOT_SECONDS
    )
