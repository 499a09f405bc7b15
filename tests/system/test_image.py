"""What of the image needs no machine: its scripts, beside our packages."""

from __future__ import annotations

from pathlib import Path

from host import Host
from lan import Lan
from wait import wait_for

LIBRARY = Path(__file__).resolve().parents[2] / "image/root/usr/lib"
SERVICE = "buildos-image-time-servers.service"
SERVERS = "/run/systemd/timesyncd.conf.d/50-lease.conf"

# Is started again when there are other servers.
TIMESYNCD = "[Service]\nExecStart=/usr/bin/sleep infinity\n"


def ntp(*servers: str) -> str:
    """dnsmasq's option for these NTP servers."""
    return f"--dhcp-option=option:ntp-server,{','.join(servers)}"


def test_time_servers_are_those_of_the_lease(host: Host, lan: Lan) -> None:
    script, unit = "buildos-image/time-servers", f"systemd/system/{SERVICE}"
    host.program(f"/usr/lib/{script}", (LIBRARY / script).read_text())
    host.file(f"/etc/{unit}", (LIBRARY / unit).read_text())
    host.file("/etc/systemd/system/systemd-timesyncd.service", TIMESYNCD)
    lan.serve_dhcp(ntp("192.0.2.77"))
    host.start([lan])
    host.run(f"systemctl start systemd-timesyncd.service {SERVICE}")

    def configured(*servers: str) -> bool:
        text = f"[Time]\nNTP=\nNTP={' '.join(servers)}" if servers else ""
        return host.run(f"cat {SERVERS}", check=False).strip() == text

    def timesyncd() -> str:
        return host.run("systemctl show --value --property=MainPID systemd-timesyncd.service")

    wait_for(lambda: configured("192.0.2.77"), "the time server of the lease")
    for servers in (("192.0.2.78", "192.0.2.79"), ()):
        before = timesyncd()
        lan.stop_dhcp()
        lan.serve_dhcp(*([ntp(*servers)] if servers else ["--dhcp-option=option:ntp-server"]))
        # systemd reads its units again while it happens.
        host.run("buildosctl renew & systemctl daemon-reload; wait")
        wait_for(lambda: configured(*servers), f"time servers {servers}")
        wait_for(lambda: timesyncd() not in (before, "0"), "another timesyncd")
    assert host.run(f"systemctl show --value --property=NRestarts {SERVICE}").strip() == "0"
