"""Disks with content that buildos must not touch: what libblkid recognises, without the programs
that make it."""

from __future__ import annotations

import struct
from collections.abc import Callable

from disk import SIZE, Disk, btrfs, ext4

_MIB = 1 << 20


def _disk(*parts: tuple[int, bytes]) -> Disk:
    """Makes a disk with these bytes at these places; negative places count from the end."""
    disk = Disk()
    with disk.image.open("r+b") as image:
        for place, content in parts:
            image.seek(place % SIZE)
            image.write(content)
    return disk


def luks() -> Disk:
    return _disk((0, b"LUKS\xba\xbe\0\1"), (_MIB, b"secret"))


def md() -> Disk:
    """Makes a disk of an array with metadata 1.2."""
    head = struct.pack("<II", 0xA92B4EFC, 1).ljust(144, b"\0") + struct.pack("<Q", 8)
    return _disk((4096, head.ljust(256, b"\0")))


def lvm() -> Disk:
    """Makes a physical volume; the checksum is that of lvm2's lib/misc/crc.c."""
    tail = struct.pack("<I", 32) + b"LVM2 001" + b"a" * 32
    tail = tail.ljust(512 - 20, b"\0")
    crc = 0xF597A6CF
    for byte in tail:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0xEDB88320 if crc & 1 else 0)
    return _disk((512, b"LABELONE" + struct.pack("<QI", 1, crc) + tail))


def zfs() -> Disk:
    """Makes a disk of a pool: a list of names and values (XDR) and uberblocks in all four
    labels."""

    def pair(name: str, kind: int, value: bytes) -> bytes:
        padded = name.encode().ljust(-(-len(name) // 4) * 4, b"\0")
        body = struct.pack(">II", 0, len(name)) + padded + struct.pack(">II", kind, 1) + value
        return struct.pack(">I", len(body) + 4) + body

    numbers = {"version": 5000, "pool_guid": 77, "guid": 78, "txg": 4, "state": 0}
    pairs = b"".join(pair(name, 8, struct.pack(">Q", value)) for name, value in numbers.items())
    pairs += pair("name", 9, struct.pack(">I", 4) + b"tank")
    values = b"\1\1\0\0" + struct.pack(">II", 0, 1) + pairs + bytes(8)
    # The list ends in a checksum with a magic number.
    values = values.ljust((112 << 10) - 40, b"\0") + struct.pack("<Q", 0x210DA7AB10C7A11)
    block = struct.pack("<QQQ", 0x00BAB10C, 5000, 4)
    labels = (0, 256 << 10, -(512 << 10), -(256 << 10))
    return _disk(
        *((label + (16 << 10), values) for label in labels),
        *((label + (128 << 10) + (n << 10), block) for label in labels for n in range(16)),
    )


def ntfs() -> Disk:
    """Makes a boot sector with a master file table."""
    boot = bytearray(512)
    boot[:11] = b"\xeb\x52\x90NTFS    "
    struct.pack_into("<HB", boot, 11, 512, 8)
    struct.pack_into("<QQQ", boot, 40, SIZE // 512 - 1, 4, 8)
    struct.pack_into("<bxxxbxxxQ", boot, 64, -10, 1, 0x1234)
    boot[510:] = b"\x55\xaa"
    table = 4 * 4096
    return _disk((0, bytes(boot)), *((table + n * 1024, b"FILE") for n in range(4)))


def partitioned() -> Disk:
    """Makes a partition table with one partition, which has data."""
    entry = struct.pack("<BxxxBxxxII", 0x80, 0x83, 2048, SIZE // 512 - 4096)
    return _disk((446, entry), (510, b"\x55\xaa"), (2 * _MIB, b"data"))


def unknown() -> Disk:
    """Makes a disk without a signature, as one that is encrypted as a whole."""
    return _disk((0, b"\x81\x17" * 4096))


def unknown_end() -> Disk:
    return _disk((-512, b"x"))


def swap() -> Disk:
    return Disk(["mkswap", "--label", "swap"])


def other_ext4() -> Disk:
    return ext4("data")


def other_btrfs() -> Disk:
    return btrfs("data")


DECOYS: dict[str, tuple[Callable[[], Disk], str]] = {
    "LUKS": (luks, "crypto_LUKS"),
    "md": (md, "linux_raid_member"),
    "LVM": (lvm, "LVM2_member"),
    "ZFS": (zfs, 'zfs_member "tank"'),
    "NTFS": (ntfs, "ntfs"),
    "ext4": (other_ext4, 'ext4 "data"'),
    "btrfs": (other_btrfs, 'btrfs "data"'),
    "swap": (swap, 'swap "swap"'),
    "partitions": (partitioned, "dos"),
    "unknown": (unknown, "data of an unknown kind"),
    "unknown at the end": (unknown_end, "data of an unknown kind"),
}
"""Disks by name, with what `buildosctl volume create` says about them."""
