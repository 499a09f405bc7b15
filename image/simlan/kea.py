"""Kea as the DHCPv4 server of a LAN, in a Debian root of its own.

The root keeps apt from starting Kea as a service of the machine that runs the tests."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

STARTED = "DHCP4_STARTED"
"""Text that Kea logs once it serves."""

# Runs in a mount namespace: enters the root $1 with the directory $2 mounted where Kea
# reads and writes.
_ENTER = """
root=$1 directory=$2; shift 2
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mkdir "$root/run/kea"
# Kea accepts no other directory for leases; systemd would make it.
mount -t tmpfs tmpfs "$root/var/lib"
mkdir "$root/var/lib/kea"
mount --bind "$directory" "$root/var/lib/kea"
exec chroot "$root" /usr/bin/env --ignore-environment "$@"
"""


def configuration(
    interface: str,
    prefix: str,
    lease: int,
    t1: int | None,
    t2: int | None,
    options: Sequence[Mapping[str, Any]],
) -> str:
    """Returns kea-dhcp4.conf for the network PREFIX.0/24 on `interface`.

    Times are seconds; without `t1` and `t2` Kea sends neither. `options` is Kea's
    `option-data`, the router excepted."""
    times = {"valid-lifetime": lease}
    times |= {"renew-timer": t1} if t1 is not None else {}
    times |= {"rebind-timer": t2} if t2 is not None else {}
    router = {"name": "routers", "data": f"{prefix}.1"}
    subnet = {
        "id": 1,
        "subnet": f"{prefix}.0/24",
        "pools": [{"pool": f"{prefix}.100 - {prefix}.199"}],
        "option-data": [router, *options],
    }
    log = {
        "name": "kea-dhcp4",
        "severity": "INFO",
        "output_options": [{"output": "stdout"}],
    }
    leases = {
        "type": "memfile",
        "persist": True,
        "name": "/var/lib/kea/leases.csv",
        "lfc-interval": 0,
    }
    server = {
        "interfaces-config": {"interfaces": [interface], "dhcp-socket-type": "raw"},
        "lease-database": leases,
        "authoritative": True,
        **times,
        "subnet4": [subnet],
        "loggers": [log],
    }
    return json.dumps({"Dhcp4": server}, indent=2)


def command(root: Path, directory: Path) -> list[str]:
    """Returns the command line of Kea in the Debian root `root`.

    Kea reads kea-dhcp4.conf in `directory`, which it sees as /var/lib/kea, and writes
    its leases there."""
    return [
        *("unshare", "--mount", "--propagation=private"),
        *("sh", "-euc", _ENTER, "enter", str(root), str(directory)),
        "KEA_LOCKFILE_DIR=/run/kea",
        "KEA_PIDFILE_DIR=/run/kea",
        *("/usr/sbin/kea-dhcp4", "-c", "/var/lib/kea/kea-dhcp4.conf"),
    ]
