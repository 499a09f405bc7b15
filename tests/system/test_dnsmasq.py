"""DHCP and DNS for machines."""

from __future__ import annotations

from host import Host
from machine import Machine
from nat import public_address, usage, wait_for_status, wait_until_ready
from simlan.lan import Lan

_UNIT = "buildos-dnsmasq.service"
_OTHER = "203.0.113.53"

_ELSEWHERE = "[Path]\nPathChanged=\nPathChanged=/run/elsewhere\n"

# Somebody else's name server, on an address of its own.
_TAKEN = """[Service]
Type=forking
ExecStart=/usr/sbin/dnsmasq --conf-file=/dev/null --no-resolv --no-hosts --pid-file= \
    --listen-address=127.0.0.1 --bind-interfaces --address=/taken.example/127.9.9.9 --user=root
"""


def _server(lan: Lan, address: str, name: str) -> None:
    """Another name server, behind the gateway, that knows one name."""
    lan.run(["ip", "address", "add", f"{address}/32", "dev", "lo"])
    lan.start(
        ["dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-hosts", "--no-resolv"]
        + ["--user=root", "--group=root", "--pid-file=", f"--listen-address={address}"]
        + ["--bind-interfaces", f"--host-record={name},{address}"],
        f"dns-{address}.log",
    )


def _machine(host: Host) -> Machine:
    machine = Machine(host)
    machine.take_lease()
    return machine


def test_dnsmasq_serves_machines_only(online: Host, lan: Lan) -> None:
    assert lan.address in _machine(online).run("getent ahostsv4 gateway.lan.example")
    listening = online.run("ss -H -lntu '( sport = :53 or sport = :67 )'")
    addresses = {line.split()[4] for line in listening.splitlines()}
    assert addresses == {"172.23.0.1:53", "0.0.0.0%br1:67"}, listening
    process = online.run(f"ps -o user= -p {online.main_pid(_UNIT)}").strip()
    assert process in ("buildos-dnsmasq", "buildos+")


def test_configuration_overlooked_by_systemd_is_applied(host: Host, lan: Lan) -> None:
    """It does while it reads its units again."""
    lan.serve_dhcp()
    host.file("/etc/systemd/system/buildos-dnsmasq.path.d/test.conf", _ELSEWHERE)
    host.start([lan])
    wait_until_ready(host)
    # What an operator stops stays down.
    host.systemctl("stop", _UNIT)
    host.wait_for(lambda: host.bus_property("nat1", "Ready") is False, "not ready")
    wait_for_status(host, "waiting for dnsmasq, which does not run")
    assert "yet" not in host.status_text("buildos-natd.service")


def test_dnsmasq_starts_with_port_in_use_on_other_addresses(host: Host, lan: Lan) -> None:
    lan.serve_dhcp()
    host.file("/etc/systemd/system/taken.service", _TAKEN)
    host.file(
        "/etc/systemd/system/buildos-dnsmasq.service.d/test.conf",
        "[Unit]\nWants=taken.service\nAfter=taken.service\n",
    )
    host.start([lan])
    wait_until_ready(host)
    assert host.active("taken.service")
    assert lan.address in _machine(host).run("getent ahostsv4 gateway.lan.example")


def test_dnsmasq_follows_name_servers_of_uplink(host: Host, lan: Lan) -> None:
    _server(lan, _OTHER, "second.example")
    lan.serve_dhcp("--except-interface=lo")
    host.start([lan])
    wait_until_ready(host)
    machine = _machine(host)
    assert machine.succeeds("getent ahostsv4 gateway.lan.example")
    assert not machine.succeeds("getent ahostsv4 second.example")
    pid = host.main_pid(_UNIT)
    lan.stop_dhcp()
    lan.serve_dhcp("--except-interface=lo", f"--dhcp-option=6,{_OTHER}")
    host.call("network1", "Renew")
    host.wait_for(lambda: host.bus_property("nat1", "DNS") == [_OTHER], "the other one")
    host.wait_for(lambda: machine.succeeds("getent ahostsv4 second.example"), "it is asked")
    wait_until_ready(host)
    # Without a restart.
    assert host.main_pid(_UNIT) == pid


def test_dnsmasq_killed_keeps_leases(online: Host) -> None:
    machine = Machine(online)
    address = machine.take_lease()
    pid = online.main_pid(_UNIT)
    online.run(f"kill -KILL {pid}")
    online.wait_for(lambda: online.main_pid(_UNIT) not in (0, pid), "it is started again")
    wait_until_ready(online)
    assert [lease[0] for lease in usage(online, "Machines")] == [address]
    machine.run("ip address flush dev eth0")
    assert machine.take_lease() == address


def test_released_lease_is_removed_from_list(online: Host) -> None:
    machine = Machine(online)
    address = machine.take_lease()
    assert [lease[:2] for lease in usage(online, "Machines")] == [[address, machine.mac]]
    # -R: gives the lease back at the end; -b would go on in the background.
    machine.run(["timeout", "3", "udhcpc", "-i", "eth0", "-f", "-R", "-s", "/bin/true"], check=False)
    online.wait_for(lambda: usage(online, "Machines") == [], "nobody has a lease")


def test_host_names_sent_by_machines_do_not_resolve(online: Host) -> None:
    machine = Machine(online)
    machine.run(
        ["udhcpc", "-i", "eth0", "-s", "/bin/true", "-n", "-q", "-f", "-x", "hostname:gateway"]
    )
    other = _machine(online)
    assert not other.succeeds("getent ahostsv4 gateway")
    assert "gateway" not in online.read("/run/buildos/dnsmasq/leases")


def test_configuration_refused_by_dnsmasq_is_reported(online: Host) -> None:
    # As a dnsmasq of another version might.
    online.run("mount --bind /bin/false /usr/sbin/dnsmasq")
    pid = online.main_pid(_UNIT)
    online.run(f"kill -KILL {pid}")
    online.wait_for(lambda: online.bus_property("nat1", "Ready") is False, "not ready")
    online.run("umount /usr/sbin/dnsmasq")
    wait_until_ready(online)
    assert public_address(online)
