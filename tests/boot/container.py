"""A container for tests, and examples of the manual."""

from __future__ import annotations

import itertools

from buildroot import TOP

PORT = 8080
"""TCP port at which the container serves a page."""


def container(root: str) -> str:
    """Returns a script that makes the container of the image's busybox in a directory."""
    return f"""
root={root}
mkdir -p $root/usr/bin $root/usr/sbin $root/etc $root/proc $root/sys $root/dev $root/run \\
    $root/tmp $root/srv
ln -s usr/bin $root/bin
ln -s usr/sbin $root/sbin
cp /usr/bin/busybox $root/usr/bin
chroot $root /bin/busybox --install -s /usr/bin
echo ID=container >$root/etc/os-release
echo first >$root/srv/page
cat >$root/etc/lease <<'END'
#!/bin/sh
[ "$1" != bound ] || ip address replace $ip/$mask dev $interface
END
cat >$root/sbin/init <<'END'
#!/bin/sh
# As systemd: halts with SIGRTMIN+3, powers off with SIGRTMIN+4.
trap 'exit 0' 37 38
ip link set host0 up
udhcpc -b -i host0 -s /etc/lease
httpd -f -p {PORT} -h /srv &
wait
END
chmod +x $root/etc/lease $root/sbin/init
"""


def manual_example(first: str) -> str:
    """Returns the example of the manual that begins with the line `first`."""
    lines = iter((TOP / "docs/manual.md").read_text().splitlines())
    example = [next(line for line in lines if line.strip() == first)]
    margin = len(example[0]) - len(first)
    example += itertools.takewhile(lambda line: line.startswith(" " * margin), lines)
    return "".join(f"{line[margin:]}\n" for line in example)
