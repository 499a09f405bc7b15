"""Tests the harness of the system lane: hosts, LANs and waiting."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
from buildroot import Root
from host import Host
from simlan.errors import CommandFailed, TimedOut
from simlan.lan import Lan
from simlan.wait import wait_for


def test_host_boots_systemd_and_runs_commands(host: Host) -> None:
    host.file("/etc/motd", "hello\n")
    host.start()
    assert host.wait_for_boot() in ("running", "degraded")
    assert host.read("/etc/motd") == "hello\n"
    assert host.run("ps -o comm= 1") == "systemd\n"
    assert host.run(["hostname"]) == "localhost\n"
    with pytest.raises(CommandFailed, match="status 3"):
        host.run("echo no; exit 3")


def test_files_written_by_host_are_gone_after_stop(host: Host) -> None:
    host.start()
    host.run("touch /usr/left-over")
    host.stop()
    host.start()
    assert not host.succeeds("test -e /usr/left-over")


def test_host_has_requested_nics(host: Host, lan: Lan) -> None:
    host.start([lan, lan], plugged=False)
    nic = host.nics[0]
    host.run("ip link set eth0 up; ip link set eth1 up")
    assert host.link("eth0")["address"] == nic.mac != host.nics[1].mac
    host.wait_for(lambda: "NO-CARRIER" in host.link("eth0")["flags"], "eth0 is up without carrier")
    nic.plug()
    host.wait_for(lambda: host.link("eth0")["operstate"] == "UP", "carrier on eth0")
    assert host.link("eth1")["operstate"] != "UP"


def test_lan_serves_dhcp_and_http(host: Host, lan: Lan) -> None:
    lan.serve_dhcp()
    url = lan.serve_web("from the LAN\n")
    host.start([lan])
    # The test configures eth0 itself, in place of netd. If netd had a lease before, br0 still
    # has a route to the LAN.
    host.wait_for_boot()
    host.run("systemctl stop 'buildos-*'")
    host.run("ip link set eth0 nomaster; ip link del br0; ip link set eth0 up")
    host.run(["udhcpc", "-i", "eth0", "-n", "-q", "-t", "20", "-T", "1"])
    assert list(lan.leases()) == [host.nics[0].mac]
    assert host.run(["curl", "--silent", "--max-time", "20", url]) == "from the LAN\n"
    assert lan.web_clients() == [lan.leases()[host.nics[0].mac]]


def test_service_sees_kernel_command_line_of_test(host: Host) -> None:
    host.command_line("buildos.netd.include=eth*")
    host.file(
        "/etc/systemd/system/buildos-dummy.service",
        "[Service]\nType=oneshot\nProtectProc=invisible\nProtectSystem=strict\n"
        "ExecStart=cat /proc/cmdline\n",
    )
    host.start()
    host.wait_for_boot()
    host.systemctl("start", "buildos-dummy.service")
    messages = [entry["MESSAGE"] for entry in host.journal("--unit=buildos-dummy.service")]
    assert "buildos.netd.include=eth*" in messages


def test_wait_fails_at_deadline_with_reason() -> None:
    def never() -> bool:
        assert 1 + 1 == 3, "arithmetic"
        return True

    with pytest.raises(TimedOut, match="not within 0.1 s: the sum.*arithmetic"):
        wait_for(never, "the sum", deadline=0.1)


def test_killed_test_run_leaves_no_process(root: Root, tmp_path: Path) -> None:
    program = (
        "import sys\n"
        f"sys.path[:0] = {sys.path!r}\n"
        "from pathlib import Path\n"
        "from buildroot import Root\n"
        "from host import Host\n"
        "from simlan.lan import Lan\n"
        "lan = Lan()\n"
        "lan.serve_dhcp()\n"
        f"host = Host(Root(*map(Path, {[str(path) for path in root.directories]!r})))\n"
        "host.start([lan])\n"
        "print(host._pid, lan.namespace.pid, lan._servers['dnsmasq'].pid, flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    ) as tests:
        assert tests.stdout is not None
        pids = [int(pid) for pid in tests.stdout.readline().split()]
        assert len(pids) == 3
        tests.send_signal(signal.SIGKILL)
    for pid in pids:
        wait_for(partial(_ended, pid), f"process {pid} ends")


def _ended(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


def test_stopped_hosts_and_lans_leave_nothing_behind(
    new_host: Callable[..., Host], new_lan: Callable[..., Lan]
) -> None:
    lan, host = new_lan(name="brief"), new_host("brief")
    host.start([lan])
    cgroup, directory = host._cgroup, lan.directory
    assert cgroup is not None and cgroup.is_dir() and directory.is_dir()
    host.stop()
    lan.close()
    assert not cgroup.exists() and not directory.exists()
