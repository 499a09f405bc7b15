"""Tests ports of machines that are open on br0: buildosctl machine forward."""

from __future__ import annotations

import json
import subprocess
from typing import Any

from connections import reach, serve
from host import Host
from machine import Machine, machine_with_lease
from nat import messages, public_address, wait_until_ready
from simlan.lan import Lan

OPENED = "97909415079445d2a91bbd64fe65df73"
CLOSED = "fcad243fe546407fab514a20eb47ff3f"
RESTORED = "e027bb31090a415fa94f4619ad223281"

_NAT = "org.build2.buildos.nat1"


def _open_ports(host: Host) -> list[Any]:
    """Returns the open ports as an unprivileged user sees them."""
    read = ["busctl", "--json=short", "get-property", _NAT, "/org/build2/buildos/nat1"]
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    shown = host.run([*user, *read, f"{_NAT}.Ports", "OpenPorts"], check=False)
    return list(json.loads(shown)["data"]) if shown else []


def _forward(host: Host, *arguments: str) -> str:
    """Forwards once natd knows the machine's address."""
    command = ["buildosctl", "machine", "forward", *arguments]
    return host.wait_for(lambda: host.run(command, check=False), "the port is open")


def _refused(host: Host, *command: str) -> str:
    """Returns the error of a command that fails."""
    result = subprocess.run(host.command(command), capture_output=True, text=True, timeout=60)
    assert result.returncode == 1, (command, result)
    return result.stderr


def _is_closed(lan: Lan, address: str, port: int) -> bool:
    code = f"import socket; socket.create_connection(('{address}', {port}), timeout=2)"
    return "Error" in lan.run(["sh", "-c", f'python3 -c "{code}" 2>&1 || :'])


def _closed(host: Host, machine: Machine, reason: str) -> None:
    """Waits until the port of a machine is closed for a reason."""
    host.wait_for(lambda: not _open_ports(host), "the port is closed")
    (closed,) = (m for m in messages(host, CLOSED) if m["INTERFACE"] == machine.name)
    assert closed["MESSAGE"].endswith(f": {reason}")
    host.wait_for(
        lambda: "dnat ip to" not in host.run("nft list table inet buildos"), "the rules are removed"
    )


def test_open_port_leads_lan_to_machine(online: Host, lan: Lan) -> None:
    machine, address = machine_with_lease(online), public_address(online)
    with serve(machine) as port:
        assert _is_closed(lan, address, 61000)
        opened = _forward(online, machine.name, str(port))
        expected = f"port 61000 of {address} leads to port {port} of {machine.name} for 1 h 0 min"
        assert opened == f"{expected}\n"
        ((outside, inside, link, number, _),) = _open_ports(online)
        assert (outside, inside, link, number) == (61000, machine.address, machine.name, port)
        assert len(messages(online, OPENED)) == 1
        with reach(lan, address, 61000) as connection:
            assert connection.alive() == 1
            assert _is_closed(lan, address, 61001)
            shown = online.run("buildosctl machines")
            assert f"port {port} is open as 61000 for 59 min" in shown
            status = online.run("buildosctl status", check=False)
            assert f"61000 leads to port {port} of {machine.address} ({machine.name})" in status
            assert "1 port of a machine is open" in online.run("buildosctl why", check=False)
            assert "buildos_open_ports 1\n" in online.run("buildosctl metrics")
            counters = json.loads(online.run("buildosctl status --json", check=False))["usage"]
            assert counters["counters"]["new connections to open ports"][0] == 1

            # The rules survive natd, and natd restores them.
            online.run("nft flush ruleset")
            online.wait_for(lambda: messages(online, RESTORED), "natd restores its tables")
            assert connection.alive() == 1
            pid = online.main_pid("buildos-natd.service")
            online.run(f"kill -KILL {pid}")
            online.wait_for(
                lambda: online.main_pid("buildos-natd.service") not in (0, pid), "natd runs again"
            )
            wait_until_ready(online)
            assert [entry[0] for entry in _open_ports(online)] == [61000]
            assert connection.alive() == 1
            with reach(lan, address, 61000) as second:
                assert second.alive() == 1

            closing = ["buildosctl", "machine", "forward", "--close", machine.name, str(port)]
            closed = f"closed port 61000, which led to port {port} of {machine.name}\n"
            assert online.run(closing) == closed
            assert connection.alive() == 0
        _closed(online, machine, "an operator closed it")
        assert _is_closed(lan, address, 61000)


def test_port_closes_with_time_and_machine(online: Host, lan: Lan) -> None:
    first, second = machine_with_lease(online), machine_with_lease(online)
    address = public_address(online)
    _forward(online, "--for", "3s", "--port", "2200", first.name, "22")
    _closed(online, first, "its time has ended")
    with serve(second) as port:
        _forward(online, second.name, str(port))
        # The port of a machine leads to this machine alone.
        with reach(lan, address, 61000) as connection:
            assert connection.alive() == 1
        online.run(["ip", "link", "delete", second.name])
        _closed(online, second, "the machine is gone")
    assert _is_closed(lan, address, 61000)


def test_forward_is_refused(online: Host) -> None:
    machine, other = machine_with_lease(online), Machine(online, "br0")
    forward = ["buildosctl", "machine", "forward"]
    for group in ("65534", "buildos-admin"):
        user = ["setpriv", "--reuid=65534", f"--regid={group}", "--clear-groups"]
        denied = _refused(online, *user, *forward, machine.name, "22")
        assert "only root may open and close ports of machines" in denied
    online.run("systemd-run --unit=secret busybox httpd -f -p 8000 -h /usr/lib")
    listening = "test -n \"$(ss --no-header --listening --tcp 'sport = 8000')\""
    online.wait_for(lambda: online.succeeds(listening), "a service of the host listens")
    for arguments, error in (
        (["tap99", "22"], 'no machine at "tap99"'),
        ([other.name, "22"], "the LAN reaches this machine directly"),
        (["--port", "22", machine.name, "22"], "port 22 of br0 is a system port"),
        (["--port", "8000", machine.name, "22"], "the host itself listens on port 8000"),
        (["--for", "25h", machine.name, "22"], "the time is from one second to 24 hours"),
        (["--close", machine.name, "22"], f"port 22 of {machine.name} is not open"),
    ):
        assert error in _refused(online, *forward, *arguments)
    assert _open_ports(online) == []
