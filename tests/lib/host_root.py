"""The root of the system lane's hosts: Debian 13 with our packages installed."""

from __future__ import annotations

import shutil
from pathlib import Path

from buildroot import BUILD, Root, Stamp, digest, make_root, say

# What our packages depend on, what a host has besides, and what the scenarios
# use on it.
_PACKAGES = [
    "btrfs-progs",
    "curl",
    "dbus",
    "dnsmasq-base",
    "iproute2",
    "iptables",
    "iputils-ping",
    "libmnl0",
    "libnftnl11",
    "nftables",
    "procps",
    "sudo",
    "systemd",
    "systemd-sysv",
    "udev",
    "udhcpc",
]


def base_root() -> Path:
    """A Debian 13 in which our packages can be installed."""
    return make_root("host", _PACKAGES).path


def host_root(debs: list[Path]) -> list[Path]:
    """The directories that make the root, uppermost first; `debs` are installed."""
    base = base_root()
    layer = BUILD / "roots" / "host-debs"
    made_from = base.with_suffix(".stamp").read_text()
    stamp = Stamp(layer.with_suffix(".stamp"), digest(made_from, Path(__file__), *debs))
    if not stamp.fresh():
        say(f"Installing {len(debs)} packages in {layer.name}")
        stamp.clear()
        shutil.rmtree(layer, ignore_errors=True)
        root = Root(base, layer)
        if debs:
            names = [f"/work/debs/{deb.name}" for deb in debs]
            root.run(["dpkg", "--install", *names], binds={"/work/debs": debs[0].parent})
        # As in the image: what every host makes for itself is not there, and
        # nothing looks for updates.
        timers = "apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer"
        clean = f"rm -f /etc/hostname; : >/etc/machine-id; systemctl --quiet disable {timers}"
        root.run(["sh", "-ec", clean])
        stamp.set()
    return [layer / "upper", base]
