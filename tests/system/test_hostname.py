"""Where the host's name comes from."""

from __future__ import annotations

from host import Host
from lan import Lan


def hostname(host: Host) -> str:
    return host.run(["hostname"]).strip()


def test_without_a_name_in_the_lease_it_is_made_of_the_mac(host: Host, lan: Lan) -> None:
    lan.serve_dhcp()
    host.start([lan], macs=["de:ad:be:ef:b8:da"])
    host.wait_for(lambda: hostname(host) == "build-adbeefb8da", "the name")


def test_a_name_that_is_none_is_refused_with_the_reason(host: Host, lan: Lan) -> None:
    lan.serve_dhcp("--dhcp-option-force=option:hostname,localhost")
    host.start([lan], macs=["de:ad:be:ef:b8:da"])
    host.wait_for(lambda: hostname(host) == "build-adbeefb8da", "the name")
    assert "localhost" in host.status_text("buildos-hostnamed.service")


def test_it_follows_the_lease(host: Host, lan: Lan) -> None:
    mac = "02:bd:00:00:00:55"
    lan.serve_dhcp(f"--dhcp-host={mac},first")
    host.start([lan], macs=[mac])
    host.wait_for(lambda: hostname(host) == "first", "the first name")
    lan.stop_dhcp()
    lan.serve_dhcp(f"--dhcp-host={mac},second")
    host.call("network1", "Renew")
    host.wait_for(lambda: hostname(host) == "second", "the second name")


def test_an_administrators_name_stays(host: Host, lan: Lan) -> None:
    mac = "02:bd:00:00:00:56"
    lan.serve_dhcp(f"--dhcp-host={mac},from-dhcp")
    host.file("/etc/hostname", "by-hand\n")
    host.start([lan], macs=[mac])
    host.wait_online()
    assert host.wait_for_boot() == "running"
    assert hostname(host) == "by-hand"
