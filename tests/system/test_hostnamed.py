"""The name of a host: from DHCP, from its MAC address, or as it was told."""

from __future__ import annotations

import pytest
from host import Host
from lan import Lan

# All NICs of the harness, whatever host they are in.
_ANY_NIC = "02:bd:00:00:*:*"


def _wait_for_name(host: Host, name: str, source: str) -> None:
    host.wait_for(
        lambda: host.bus_property("hostname1", "Hostname") == name, f"hostname1 says {name}"
    )
    assert host.bus_property("hostname1", "Source") == source
    assert host.run(["hostname"]).strip() == name


def test_without_a_name_it_is_called_after_its_mac_address(host: Host, lan: Lan) -> None:
    lan.serve_dhcp()
    host.start([lan])
    digits = host.nics[0].mac.replace(":", "")[-10:]
    _wait_for_name(host, f"build-{digits}", "mac")
    assert not host.succeeds("test -e /etc/hostname")


def test_the_name_of_the_lease_is_taken_and_kept_without_it(host: Host, lan: Lan) -> None:
    lan.serve_dhcp(f"--dhcp-host={_ANY_NIC},rack7")
    host.start([lan])
    _wait_for_name(host, "rack7", "dhcp-hostname")
    pid = host.main_pid("buildos-hostnamed.service")
    host.systemctl("stop", "buildos-netd.service")
    host.systemctl("restart", "buildos-hostnamed.service")
    assert host.main_pid("buildos-hostnamed.service") != pid
    assert host.run(["hostname"]).strip() == "rack7"
    status = host.status_text("buildos-hostnamed.service")
    assert status == "waiting for buildos-netd, which is not running"


def test_the_kernel_command_line_comes_first(host: Host, lan: Lan) -> None:
    lan.serve_dhcp(f"--dhcp-host={_ANY_NIC},rack7")
    host.command_line("buildos.hostname=b1.example.com")
    host.start([lan])
    _wait_for_name(host, "b1.example.com", "configuration")


@pytest.mark.parametrize("name", ["localhost", "12345", "$(reboot)", "a_b", "(none)"])
def test_a_name_that_is_none_goes_nowhere(host: Host, lan: Lan, name: str) -> None:
    lan.serve_dhcp(f"--dhcp-option-force=12,{name}")
    host.start([lan])
    digits = host.nics[0].mac.replace(":", "")[-10:]
    _wait_for_name(host, f"build-{digits}", "mac")
    (refused,) = host.bus_property("hostname1", "Refused")
    assert refused.startswith(f'"{name}" from DHCP option 12: ')


def test_an_administrators_name_stands(host: Host, lan: Lan) -> None:
    lan.serve_dhcp()
    host.file("/etc/hostname", "mine\n")
    host.start([lan])
    _wait_for_name(host, "mine", "static")
    # Without it the host has the name that was chosen.
    host.run(["hostnamectl", "hostname", ""])
    digits = host.nics[0].mac.replace(":", "")[-10:]
    _wait_for_name(host, f"build-{digits}", "mac")
    # One that comes later stands as well.
    host.run(["hostnamectl", "hostname", "again"])
    _wait_for_name(host, "again", "static")
    host.run(["hostnamectl", "hostname", ""])
    _wait_for_name(host, f"build-{digits}", "mac")
    # Nor when it is not written to disk.
    host.run(["hostnamectl", "--transient", "hostname", "for-now"])
    _wait_for_name(host, "for-now", "static")
