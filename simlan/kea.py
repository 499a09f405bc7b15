"""Kea, the other real DHCP server, out of a Debian 13 root of its own: on the
machine that runs the tests apt would start it as a service."""

from __future__ import annotations

from pathlib import Path

from buildroot import Root, locked, make_root

# Runs in a mount namespace: the root $1, with the directory $2 as what Kea reads
# and writes.
_ENTER = """
root=$1 directory=$2; shift 2
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mkdir "$root/run/kea"
# The only place where Kea accepts leases; systemd would make it.
mount -t tmpfs tmpfs "$root/var/lib"
mkdir "$root/var/lib/kea"
mount --bind "$directory" "$root/var/lib/kea"
exec chroot "$root" /usr/bin/env --ignore-environment "$@"
"""


def kea_root() -> Root:
    """A Debian 13 with Kea's DHCPv4 server."""
    with locked():
        return make_root("kea", ["kea-dhcp4-server"])


def kea_command(directory: Path) -> list[str]:
    """The command line of a Kea that reads kea-dhcp4.conf in `directory` and writes
    its leases there, which it knows as /var/lib/kea."""
    root = kea_root().directories[0]
    return [
        *("unshare", "--mount", "--propagation=private"),
        *("sh", "-euc", _ENTER, "enter", str(root), str(directory)),
        "KEA_LOCKFILE_DIR=/run/kea",
        "KEA_PIDFILE_DIR=/run/kea",
        *("/usr/sbin/kea-dhcp4", "-c", "/var/lib/kea/kea-dhcp4.conf"),
    ]
