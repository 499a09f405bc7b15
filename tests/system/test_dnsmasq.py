"""Tests DHCP and DNS for machines: dnsmasq and its supervisor."""

from __future__ import annotations

import pytest
from host import Host
from machine import Machine, machine_with_lease
from nat import dnsmasq_pid, public_address, usage, wait_for_status, wait_until_ready
from simlan.errors import CommandFailed
from simlan.lan import Lan

_UNIT = "buildos-dnsmasq.service"
_SECOND_SERVER = "203.0.113.53"

_SERVES = "dnsmasq serves"

# A name server of another program, on the loopback address.
_LOCAL_SERVER = """[Service]
Type=forking
ExecStart=/usr/sbin/dnsmasq --conf-file=/dev/null --no-resolv --no-hosts --pid-file= \
    --listen-address=127.0.0.1 --bind-interfaces --address=/local.example/127.9.9.9 --user=root
"""


def _serve_dns(lan: Lan, address: str, name: str) -> None:
    """Starts a name server behind the gateway that resolves one name."""
    lan.run(["ip", "address", "add", f"{address}/32", "dev", "lo"])
    lan.start(
        ["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-hosts", "--no-resolv"]
        + ["--user=root", "--group=root", "--pid-file=", f"--listen-address={address}"]
        + ["--bind-interfaces", f"--host-record={name},{address}"],
        f"dns-{address}.log",
    )


def _set_lease_time(host: Host, seconds: int) -> None:
    """Changes dnsmasq's configuration by a setting of natd."""
    text = f"dhcp_lease_s = {seconds}"
    host.run(f"mkdir -p /etc/buildos/natd.conf.d; echo '{text}' >/etc/buildos/natd.conf.d/1.toml")
    host.systemctl("reload", "buildos-natd.service")


def test_dnsmasq_serves_machines_only(online: Host, lan: Lan) -> None:
    assert lan.address in machine_with_lease(online).run("getent ahostsv4 gateway.lan.example")
    listening = online.run("ss -H -lntu '( sport = :53 or sport = :67 )'")
    addresses = {line.split()[4] for line in listening.splitlines()}
    assert addresses == {"172.23.0.1:53", "0.0.0.0%br1:67"}, listening
    for pid in (online.main_pid(_UNIT), dnsmasq_pid(online)):
        process = online.run(f"ps -o user= -p {pid}").strip()
        assert process in ("buildos-dnsmasq", "buildos+")


def test_dnsmasq_started_after_natd_takes_configuration(host: Host, lan: Lan) -> None:
    lan.serve_dhcp()
    host.file(
        "/etc/systemd/system/buildos-dnsmasq.service.d/test.conf",
        "[Unit]\nConditionPathExists=/go\n",
    )
    host.start([lan])
    wait_for_status(host, "waiting for dnsmasq, which does not run")
    host.run("touch /go")
    host.systemctl("start", _UNIT)
    wait_until_ready(host)


def test_dnsmasq_without_configuration_waits(host: Host, lan: Lan) -> None:
    lan.serve_dhcp()
    host.file(
        "/etc/systemd/system/buildos-natd.service.d/test.conf",
        "[Unit]\nConditionPathExists=/go\n",
    )
    host.start([lan])
    host.wait_for(lambda: host.active(_UNIT), "the supervisor is ready")
    assert host.status_text(_UNIT) == "waiting for a configuration from buildos-natd"
    assert dnsmasq_pid(host) == 0
    host.run("touch /go")
    host.systemctl("start", "buildos-natd.service")
    wait_until_ready(host)
    assert host.status_text(_UNIT) == _SERVES


def test_dnsmasq_stopped_by_operator_stays_stopped(online: Host) -> None:
    pid = dnsmasq_pid(online)
    online.systemctl("stop", _UNIT)
    assert not online.succeeds(f"test -e /proc/{pid}")
    wait_for_status(online, "waiting for dnsmasq, which does not run")
    _set_lease_time(online, 900)
    wait_for_status(online, "waiting for dnsmasq, which does not run")
    assert dnsmasq_pid(online) == 0
    assert online.failed_units() == []
    online.systemctl("start", _UNIT)
    wait_until_ready(online)


def test_changed_configuration_restarts_dnsmasq_but_not_unit(online: Host) -> None:
    supervisor, dnsmasq = online.main_pid(_UNIT), dnsmasq_pid(online)
    _set_lease_time(online, 900)
    online.wait_for(lambda: dnsmasq_pid(online) not in (0, dnsmasq), "dnsmasq is restarted")
    wait_until_ready(online)
    assert ",900\n" in online.read("/run/buildos/dnsmasq/dnsmasq.conf")
    assert online.main_pid(_UNIT) == supervisor


def test_dnsmasq_survives_hangup(online: Host) -> None:
    supervisor, dnsmasq = online.main_pid(_UNIT), dnsmasq_pid(online)
    for whom in ("main", "all"):
        online.systemctl("kill", "--signal=HUP", f"--kill-whom={whom}", _UNIT)
    assert Machine(online).take_lease()
    assert (online.main_pid(_UNIT), dnsmasq_pid(online)) == (supervisor, dnsmasq)


def test_dnsmasq_starts_with_port_in_use_on_other_addresses(host: Host, lan: Lan) -> None:
    lan.serve_dhcp()
    host.file("/etc/systemd/system/other-dns.service", _LOCAL_SERVER)
    host.file(
        "/etc/systemd/system/buildos-dnsmasq.service.d/test.conf",
        "[Unit]\nWants=other-dns.service\nAfter=other-dns.service\n",
    )
    host.start([lan])
    wait_until_ready(host)
    assert host.active("other-dns.service")
    assert lan.address in machine_with_lease(host).run("getent ahostsv4 gateway.lan.example")


def test_dnsmasq_follows_name_servers_of_uplink(host: Host, lan: Lan) -> None:
    _serve_dns(lan, _SECOND_SERVER, "second.example")
    lan.serve_dhcp("--except-interface=lo")
    host.start([lan])
    wait_until_ready(host)
    machine = machine_with_lease(host)
    assert machine.succeeds("getent ahostsv4 gateway.lan.example")
    assert not machine.succeeds("getent ahostsv4 second.example")
    pid = dnsmasq_pid(host)
    lan.stop_dhcp()
    lan.serve_dhcp("--except-interface=lo", f"--dhcp-option=6,{_SECOND_SERVER}")
    host.call("network1", "Renew")
    host.wait_for(
        lambda: host.bus_property("nat1", "DNS") == [_SECOND_SERVER], "natd has the second server"
    )
    host.wait_for(
        lambda: machine.succeeds("getent ahostsv4 second.example"), "the second server answers"
    )
    wait_until_ready(host)
    # dnsmasq was not restarted.
    assert dnsmasq_pid(host) == pid


@pytest.mark.parametrize("victim", ["dnsmasq", "supervisor", "both"])
def test_dnsmasq_killed_keeps_leases(online: Host, victim: str) -> None:
    machine = Machine(online)
    address = machine.take_lease()
    supervisor, dnsmasq = online.main_pid(_UNIT), dnsmasq_pid(online)
    assert supervisor != dnsmasq
    pids = {"dnsmasq": [dnsmasq], "supervisor": [supervisor], "both": [supervisor, dnsmasq]}
    # Without its supervisor dnsmasq can be gone before the signal.
    online.run(["kill", "-KILL", *(str(pid) for pid in pids[victim])], check=victim != "both")
    online.wait_for(lambda: online.main_pid(_UNIT) not in (0, supervisor), "the unit is restarted")
    online.wait_for(lambda: dnsmasq_pid(online) not in (0, dnsmasq), "dnsmasq is restarted")
    wait_until_ready(online)
    # The old dnsmasq ended with its supervisor.
    assert online.run("pgrep --exact --count dnsmasq").strip() == "1"
    assert [lease[0] for lease in usage(online, "Machines")] == [address]
    machine.run("ip address flush dev eth0")
    assert machine.take_lease() == address


def test_killed_unit_leaves_no_pid_file(online: Host) -> None:
    settings = "[Service]\nRestartSec=1h\nRestartSteps=0\nRestartMaxDelaySec=infinity\n"
    online.write(f"/run/systemd/system/{_UNIT}.d/test.conf", settings)
    online.systemctl("daemon-reload")
    pids = [online.main_pid(_UNIT), dnsmasq_pid(online)]
    # systemd may have ended the second process when the first one has.
    online.run(["kill", "-KILL", *(str(pid) for pid in pids)], check=False)
    online.wait_for(lambda: dnsmasq_pid(online) == 0, "the PID file is removed")
    online.wait_for(lambda: online.bus_property("nat1", "Ready") is False, "natd is not ready")
    online.systemctl("restart", _UNIT)
    wait_until_ready(online)


def test_released_lease_is_removed_from_list(online: Host) -> None:
    machine = Machine(online)
    address = machine.take_lease()
    assert [lease[:2] for lease in usage(online, "Machines")] == [[address, machine.mac]]
    # -R releases the lease at the end; -b would continue in the background.
    release = ["timeout", "3", "udhcpc", "-i", "eth0", "-f", "-R", "-s", "/bin/true"]
    machine.run(release, check=False)
    online.wait_for(lambda: usage(online, "Machines") == [], "no machine has a lease")


def test_clones_with_one_client_identifier_get_different_addresses(online: Host) -> None:
    # Type 255, an IAID, and a DUID made from the machine ID (RFC 4361, section 6.1).
    client_id = "ff00000001" + "000200009f1c" + 8 * "5a"
    first, second = Machine(online), Machine(online)
    addresses = [first.take_lease(client_id), second.take_lease(client_id)]
    assert addresses[0] != addresses[1]
    leases = {lease[1]: lease[0] for lease in usage(online, "Machines")}
    assert [leases.get(machine.mac) for machine in (first, second)] == addresses
    # Each keeps its address.
    assert [first.take_lease(client_id), second.take_lease(client_id)] == addresses


def test_host_names_sent_by_machines_do_not_resolve(online: Host) -> None:
    machine = Machine(online)
    machine.run(
        ["udhcpc", "-i", "eth0", "-s", "/bin/true", "-n", "-q", "-f", "-x", "hostname:rack-7"]
    )
    other = machine_with_lease(online)
    assert not other.succeeds("getent ahostsv4 rack-7")
    assert "rack-7" not in online.read("/run/buildos/dnsmasq/leases")


def test_dnsmasq_failing_to_start_makes_natd_not_ready(online: Host) -> None:
    # dnsmasq of another version might refuse the configuration.
    online.run("mount --bind /bin/false /usr/sbin/dnsmasq")
    pid = online.main_pid(_UNIT)
    online.run(f"kill -KILL {pid}")
    online.wait_for(lambda: online.bus_property("nat1", "Ready") is False, "natd is not ready")
    online.run("umount /usr/sbin/dnsmasq")
    wait_until_ready(online)
    assert public_address(online)


def test_natd_answers_with_fifos_in_place_of_files_of_other_users(host: Host, lan: Lan) -> None:
    """A read of a FIFO waits for a writer; the watchdog would end natd after 30 s."""
    lan.serve_dhcp()
    host.start([lan])
    wait_until_ready(host)
    natd = host.main_pid("buildos-natd")
    host.run(
        "cd /run/buildos; rm dnsmasq/leases dnsmasq/dnsmasq.conf probe/report.json;"
        " mkfifo dnsmasq/leases dnsmasq/dnsmasq.conf probe/report.json"
    )
    with pytest.raises(CommandFailed, match="not a regular file"):
        usage(host, "Machines")
    wait_for_status(host, "dnsmasq")
    assert host.bus_property("nat1", "Reason")
    assert host.main_pid("buildos-natd") == natd
