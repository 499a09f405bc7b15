"""Records the files, units, accounts and processes of a host, to find what a package
leaves behind."""

from __future__ import annotations

from host import Host

# Every file of the root file system with mode, owner, group and target. Left out: file
# systems in memory, caches, logs, dpkg's database.
_FILES = r"""
find / -xdev \( -path /dev -o -path /proc -o -path /run -o -path /sys -o -path /tmp \
    -o -path /var/cache -o -path /var/log -o -path /var/debs -o -path '/var/lib/dpkg/*' \
    -o -path /var/tmp -o -path /var/lib/systemd/catalog/database \
    -o -path /var/lib/systemd/timers \) -prune \
    -o -printf '%p %M %u %g %l\n' | sort
"""
# Files that several packages edit.
_SHARED = "/etc/passwd /etc/group /etc/shadow /etc/gshadow /etc/subuid /etc/subgid /etc/shells"
_QUERIES = {
    "content": f"md5sum {_SHARED} /etc/resolv.conf /etc/network/interfaces 2>/dev/null || true",
    "units": "systemctl list-unit-files --plain --no-legend | sort",
    "loaded units": "systemctl list-units --all --plain --no-legend --full 'buildos*'",
    "diversions": "dpkg-divert --list",
    "alternatives": "update-alternatives --get-selections",
    "packages": "dpkg-query --show --showformat='${Package} ${db:Status-Abbrev}\n'",
    "processes": "ps -e -o args= | grep '[b]uildos' || true",
}


def footprint(host: Host) -> dict[str, set[str]]:
    """Returns the lines of each kind."""
    host.systemctl("daemon-reload")
    found = {"files": set(host.run(_FILES).splitlines())}
    for kind, query in _QUERIES.items():
        found[kind] = set(host.run(query).splitlines())
    return found


def difference(before: dict[str, set[str]], after: dict[str, set[str]]) -> list[str]:
    """Returns added (+) and removed (-) lines."""
    lines = []
    for kind, old in before.items():
        new = after[kind]
        lines += [f"{kind}: + {line}" for line in sorted(new - old)]
        lines += [f"{kind}: - {line}" for line in sorted(old - new)]
    return lines
