"""The Debian 13 roots of hosts and of Kea."""

from __future__ import annotations

import shutil
from pathlib import Path

from buildroot import BUILD, TOP, Root, Stamp, digest, locked, make_root, say

# Dependencies of buildos's packages, packages of a usual host, and tools of the tests.
_PACKAGES = [
    "btrfs-progs",
    "busybox",
    "curl",
    "dbus",
    "dnsmasq-base",
    "gnupg",
    "iproute2",
    "iptables",
    "iputils-ping",
    "kmod",
    "libc6-dev",
    "libmnl0",
    "libnftnl11",
    "libnss-myhostname",
    "lz4",
    "nftables",
    "openssl",
    "procps",
    "qemu-system-x86",
    "sudo",
    "systemd",
    "systemd-sysv",
    "tcc",
    "tftpd-hpa",
    "udev",
    "udhcpc",
    "zstd",
]


# As in the image: no identity of a host, no timer that looks for updates, and no TFTP server
# beside those of the agents.
_CLEAN = """
rm -f /etc/hostname
: >/etc/machine-id
systemctl --quiet disable apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer tftpd-hpa
"""


# The kernel of virtual build machines. Its package is larger than all others together:
# the root gets the kernel and the drivers of QEMU's NIC only. The kernel is outside of
# /boot, as only the tests use it.
KERNEL = "/opt/machine/vmlinuz"
_KERNEL = f"""
chroot "$1" sh -euc '
    cd /tmp
    package=$(apt-cache depends --important linux-image-cloud-amd64 |
        sed -n "s/^ *Depends: //p")
    apt-get --quiet download "$package"
    mkdir {Path(KERNEL).parent}
    dpkg-deb --fsys-tarfile "$package"_*.deb | tar --extract --directory=/ --wildcards \
        "./boot/vmlinuz-*" "./usr/lib/modules/*/modules.*" \
        "*/failover.ko*" "*/net_failover.ko*" "*/virtio_net.ko*"
    mv /boot/vmlinuz-* {Path(KERNEL).parent}
    ln -s /opt/machine/vmlinuz-* {KERNEL}
    depmod "${{package#linux-image-}}"
    rm "$package"_*.deb
'
"""


_SSH = """
(apt-get update && apt-get --yes --no-install-recommends install openssh-server &&
    apt-get clean) >/tmp/log 2>&1 || (cat /tmp/log; exit 1)
rm /etc/ssh/ssh_host_*
systemctl --quiet disable ssh.service ssh.socket
"""


def base_root() -> Root:
    """Makes a Debian 13 with the dependencies of buildos's packages."""
    with locked():
        return make_root("host", _PACKAGES, [_KERNEL])


def ordinary_root() -> Root:
    """Makes a usual Debian 13, with ifupdown and NetworkManager."""
    with locked():
        return make_root("ordinary", [*_PACKAGES, "ifupdown", "network-manager"])


def kea_root() -> Path:
    """Makes a Debian 13 with Kea's DHCPv4 server; returns its directory."""
    with locked():
        return make_root("kea", ["kea-dhcp4-server"]).directories[0]


def host_debs() -> list[Path]:
    """Returns the packages of this project, made by debian/build."""
    found = sorted((BUILD / "debs").glob("*.deb"))
    assert found, "build/debs has no packages: run debian/build (make debs)"
    return [deb for deb in found if "-dbgsym_" not in deb.name]


def host_root(debs: list[Path]) -> Root:
    """Makes the root of a host: the packages `debs` are installed."""
    base = base_root()
    layer = BUILD / "roots" / "host-debs"
    made_from = base.directories[0].with_suffix(".stamp").read_text()
    stamp = Stamp(layer.with_suffix(".stamp"), digest(made_from, _CLEAN, *debs))
    with locked():
        if not stamp.fresh():
            say(f"Installing {len(debs)} packages in {layer.relative_to(TOP)}")
            stamp.clear()
            shutil.rmtree(layer, ignore_errors=True)
            names = " ".join(f"/work/debs/{deb.name}" for deb in debs)
            install = f"dpkg --install {names} >/tmp/log 2>&1 || (cat /tmp/log; exit 1)"
            base.run(
                ["sh", "-euc", f"{install}\n{_CLEAN}"],
                binds={"/work/debs": debs[0].parent},
                changes=layer,
            )
            stamp.set()
    return base.layer(layer)


def ssh_root(host: Root) -> Root:
    """Makes the root of a host with Debian's SSH server. It has no host keys, and does not
    start at boot."""
    layer = BUILD / "roots" / "host-ssh"
    made_from = host.directories[0].parent.with_suffix(".stamp").read_text()
    stamp = Stamp(layer.with_suffix(".stamp"), digest(made_from, _SSH))
    with locked():
        if not stamp.fresh():
            say(f"Installing an SSH server in {layer.relative_to(TOP)}")
            stamp.clear()
            shutil.rmtree(layer, ignore_errors=True)
            host.run(["sh", "-euc", _SSH], network=True, changes=layer)
            stamp.set()
    return host.layer(layer)
