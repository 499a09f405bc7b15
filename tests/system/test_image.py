"""Tests scripts and units of the image on a host in namespaces."""

from __future__ import annotations

from pathlib import Path

from host import Host
from simlan.lan import Lan
from simlan.wait import wait_for

LIBRARY = Path(__file__).resolve().parents[2] / "image/root/usr/lib"
SCRIPT = "buildos-image/time-servers"
UNITS = [
    "buildos-image-timesyncd.path",
    "buildos-image-time-servers.path",
    "buildos-image-time-servers.service",
    "buildos-image-time-servers.timer",
    "systemd-timesyncd.service.d/50-buildos-image.conf",
]

# Records the servers that timesyncd was started with.
TIMESYNCD = """\
[Service]
ExecStart=/bin/sh -ec 'cp /run/buildos/netd/timesyncd.conf /run/started/with; exec sleep infinity'
RuntimeDirectory=started
RuntimeDirectoryPreserve=yes
"""

# Shortens the interval of the timer, a quarter of an hour, to a second.
DROPINS = "/run/systemd/system/buildos-image-time-servers.timer.d"
SOON = r"[Timer]\nOnBootSec=\nOnUnitInactiveSec=\nOnActiveSec=1s\nOnUnitInactiveSec=1s\n"


def ntp(*servers: str) -> str:
    """Returns dnsmasq's argument for these NTP servers; without servers dnsmasq sends no
    option."""
    return f"--dhcp-option=option:ntp-server{''.join(f',{server}' for server in servers)}"


def test_timesyncd_uses_time_servers_of_lease(host: Host, lan: Lan) -> None:
    host.program(f"/usr/lib/{SCRIPT}", (LIBRARY / SCRIPT).read_text())
    for unit in UNITS:
        host.file(f"/etc/systemd/system/{unit}", (LIBRARY / f"systemd/system/{unit}").read_text())
    host.file("/etc/systemd/system/systemd-timesyncd.service", TIMESYNCD)
    host.start([lan])
    host.systemctl("start", *(unit for unit in UNITS if unit.endswith((".path", ".timer"))))
    # Without a lease timesyncd has no server and is not started.
    assert host.run("systemctl is-active systemd-timesyncd", check=False).strip() == "inactive"

    def started_with(*servers: str) -> bool:
        text = host.run("cat /run/started/with", check=False)
        named = [line.removeprefix("NTP=") for line in text.splitlines() if "NTP=" in line]
        # The file first resets the list with an empty assignment.
        return bool(text) and named == (["", " ".join(servers)] if servers else [])

    lan.serve_dhcp(ntp("192.0.2.77"))
    wait_for(lambda: started_with("192.0.2.77"), "timesyncd with the time server of the lease")
    for servers in (("192.0.2.78", "192.0.2.79"), (), ("192.0.2.77",)):
        lan.stop_dhcp()
        lan.serve_dhcp(ntp(*servers))
        host.run("buildosctl renew")
        wait_for(lambda: started_with(*servers), f"timesyncd with {servers}")

    # systemd misses events of path units during daemon-reload; the timer finds the change.
    host.systemctl("stop", "buildos-image-time-servers.path")
    host.run(f"mkdir -p {DROPINS}; printf '{SOON}' >{DROPINS}/soon.conf")
    host.run("systemctl daemon-reload; systemctl restart buildos-image-time-servers.timer")
    lan.stop_dhcp()
    lan.serve_dhcp(ntp("192.0.2.80"))
    host.run("buildosctl renew")
    wait_for(lambda: started_with("192.0.2.80"), "timesyncd with the last time server")
