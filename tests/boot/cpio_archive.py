"""Makes archives that are appended to an initrd."""

from __future__ import annotations


DIRECTORY = 0o040755


def archive(name: str, content: bytes = b"", mode: int = 0o100755) -> bytes:
    """Returns a cpio archive, in the format newc, with one file or directory."""

    def entry(name: str, mode: int, content: bytes) -> bytes:
        # inode, mode, uid, gid, links, mtime, size, devices (2 + 2), length of name, check
        fields = [0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0]
        head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
        return padded(head) + padded(content)

    return entry(name, mode, content) + entry("TRAILER!!!", 0, b"")


def padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
