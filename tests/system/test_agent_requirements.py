"""Tests the requirements that agents wait for."""

from __future__ import annotations

import ctypes

import pytest
from agents import (
    BBOT,
    BSLAVE,
    CLOCK,
    bbot,
    bslave,
    instance,
    messages,
    needs,
    reload,
    state,
    wait_for_state,
    wait_until_runs,
)
from host import Host
from simlan.errors import CommandFailed
from simlan.lan import Lan

AGENT = "bslave@x"
SLAVE = "/usr/bin/bslave"


def test_agent_waits_when_tasks_need_more_ram_than_host_has(host: Host, lan: Lan, url: str) -> None:
    memory = int(host_memory())
    host.configure("agentd", bbot(url, "instance_max = 4", f"ram_mib = {memory}"))
    host.start([lan])
    wait_for_state(host, "waiting")
    host.wait_for(lambda: set(needs(host)) == {"memory"}, "no other requirement is unmet")
    assert f"RAM: its tasks need {4 * memory} MiB, the host has " in needs(host)["memory"]
    reload(host, bbot(url, "instance_max = 4", "ram_mib = 64"))
    wait_until_runs(host)
    assert "--instance-max 4 --cpu" in host.systemctl("cat", BBOT)
    assert "--build-ram 65536 " in host.systemctl("cat", BBOT)


def host_memory() -> int:
    """RAM of the machine, MiB."""
    with open("/proc/meminfo") as text:
        return int(text.readline().split()[1]) // 1024


def test_credentials_reach_agent_only(host: Host, lan: Lan, url: str) -> None:
    script = """#!/bin/bash
    printf '%s\\n' "$@" >/build/arguments-$$
    cat "$CREDENTIALS_DIRECTORY/token" >/build/token-$$
    id -un >/build/user-$$
    exec sleep infinity
    """
    lines = ['program = "/opt/agent"', 'auth_key = "key:/etc/bbot/key"', 'credentials = ["token"]']
    host.program("/opt/agent", script)
    host.configure("agentd", bbot(url, *lines))
    host.start([lan])
    missing = {"credentials": "credential key:/etc/bbot/key, token is missing"}
    host.wait_for(lambda: needs(host) == missing, "no other requirement is unmet")
    host.run("mkdir -p /etc/bbot /etc/credstore; echo s3cret >/etc/credstore/token")
    host.wait_for(
        lambda: needs(host) == {"credentials": "credential key:/etc/bbot/key is missing"},
        "only the key is missing",
    )
    host.run("echo key >/etc/bbot/key; chmod 600 /etc/bbot/key /etc/credstore/token")
    pid = wait_until_runs(host)
    host.wait_for(lambda: host.succeeds(f"test -s /build/user-{pid}"), "the token is read")
    assert host.read(f"/build/token-{pid}") == "s3cret\n"
    arguments = host.read(f"/build/arguments-{pid}").split("\n")
    key = arguments[arguments.index("--auth-key") + 1]
    assert key == f"/run/credentials/{BBOT}/key"
    assert host.read(key) == "key\n"
    for file in ("cmdline", "environ"):
        assert "s3cret" not in host.read(f"/proc/{pid}/{file}")
    unprivileged = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    assert not host.succeeds([*unprivileged, "cat", key])


def test_missing_tool_is_named(host: Host, lan: Lan, url: str) -> None:
    tools = 'bbot_tools = ["/usr/bin/curl", "/opt/a", "/opt/b"]\n'
    host.configure("agentd", tools + bbot(url))
    host.start([lan])
    reason = "/opt/a, /opt/b, which it calls, are not installed"
    host.wait_for(lambda: needs(host) == {"tools": reason}, "only the tools are missing")
    why = host.run("buildosctl why", check=False)
    assert reason in why and "Install buildos-bbot-runtime" in why
    host.run("touch /opt/a /opt/b; chmod +x /opt/a")
    reason = "/opt/b, which it calls, is not installed"
    host.wait_for(lambda: needs(host) == {"tools": reason}, "one tool is not executable")
    host.run("chmod +x /opt/b")
    wait_until_runs(host)


def test_encrypted_credential_is_decrypted_for_agent(host: Host, lan: Lan, url: str) -> None:
    script = """#!/bin/bash
    cat "$CREDENTIALS_DIRECTORY/token" "$CREDENTIALS_DIRECTORY/key" >/build/secrets
    exec sleep infinity
    """
    host.program("/opt/agent", script)
    lines = ['auth_key = "encrypted:key:/etc/bbot/key.cred"', 'credentials = ["encrypted:token"]']
    host.configure("agentd", bbot(url, 'program = "/opt/agent"', *lines))
    host.start([lan])
    missing = "credential encrypted:key:/etc/bbot/key.cred, encrypted:token is missing"
    host.wait_for(lambda: needs(host) == {"credentials": missing}, "only the secrets are missing")
    # A secret that is not encrypted is not accepted in its place.
    host.run("mkdir -p /etc/bbot /etc/credstore /etc/credstore.encrypted")
    host.run("echo plain >/etc/credstore/token")
    encrypt = "echo {} | systemd-creds encrypt --with-key=host --name={} - {}"
    host.run(encrypt.format("s3cret", "token", "/etc/credstore.encrypted/token"))
    host.wait_for(lambda: "token" not in str(needs(host)), "the token is there")
    assert state(host) == "waiting"
    host.run(encrypt.format("private", "key", "/etc/bbot/key.cred"))
    wait_until_runs(host)
    host.wait_for(lambda: host.succeeds("test -s /build/secrets"), "the secrets are read")
    assert host.read("/build/secrets") == "s3cret\nprivate\n"
    assert not host.succeeds("grep -r s3cret /etc/credstore.encrypted /run/systemd/system")


def test_agent_waits_for_synchronised_clock(host: Host, lan: Lan) -> None:
    lan.serve_dhcp()
    host.without_time()
    host.configure("agentd", "clock_deadline_s = 600\n" + bslave(SLAVE))
    host.start([lan])
    missing = {"clock": "the clock is not synchronised yet"}
    host.wait_for(lambda: needs(host, AGENT) == missing, "no other requirement is unmet")
    assert not host.active(BSLAVE)
    # systemd-timesyncd creates this file.
    host.run("mkdir -p /run/systemd/timesync; touch /run/systemd/timesync/synchronized")
    wait_until_runs(host, AGENT)
    assert messages(host, CLOCK) == []
    assert host.status_text("buildos-agentd") == "1 of 1 agents run"


def test_clock_of_kernel_decides_without_timesyncd(host: Host, lan: Lan) -> None:
    """The host shares the kernel, and so the clock, with the machine that runs the tests."""
    lan.serve_dhcp()
    host.without_timesyncd()
    host.configure("agentd", "clock_deadline_s = 600\n" + bslave(SLAVE))
    host.start([lan])
    filter = host.unit("buildos-agentd", "SystemCallFilter")["SystemCallFilter"]
    assert "clock_adjtime" in filter.split()
    if kernel_keeps_time():
        wait_until_runs(host, AGENT)
        assert "clock synchronised" in host.run(["buildosctl", "status"])
    else:
        host.wait_for(lambda: set(needs(host, AGENT)) == {"clock"}, "only the clock is missing")
        assert "clock not synchronised" in host.run(["buildosctl", "status"])


def kernel_keeps_time() -> bool:
    """Returns true if the kernel's clock is synchronised, by the system call that
    systemd-timedated uses."""
    # The third long after `modes` in struct timex is the maximum error.
    timex = (ctypes.c_long * 64)()
    assert ctypes.CDLL(None, use_errno=True).adjtimex(timex) >= 0
    return bool(timex[3] < 16_000_000)


def test_agent_starts_without_synchronised_clock_after_deadline(host: Host, lan: Lan) -> None:
    lan.serve_dhcp()
    host.without_time()
    host.configure("agentd", "clock_deadline_s = 2\n" + bslave(SLAVE))
    host.start([lan])
    host.wait_for(lambda: "clock" in needs(host, AGENT), "the agent waits for the clock")
    wait_until_runs(host, AGENT)
    (message,) = messages(host, CLOCK)
    assert message.startswith("the clock is not synchronised after 2 s online")
    status = host.status_text("buildos-agentd")
    assert status == "1 of 1 agents run; the clock is not synchronised"


def test_agent_starts_when_last_of_six_requirements_is_met(host: Host, lan: Lan) -> None:
    """The host meets no requirement at first."""
    host.without_time()
    host.configure("agentd", bslave("/opt/agent", 'bridge = "br1"', 'credentials = ["token"]'))
    lan.serve_dhcp()
    host.start([lan], plugged=False)
    host.wait_for(
        lambda: (
            set(needs(host, AGENT))
            == {"program", "credentials", "network", "hostname", "private-network", "clock"}
        ),
        "all six requirements are unmet",
    )
    assert host.run(["buildosctl", "agents"]).count("waits: ") == 6
    host.run("cp /usr/bin/bslave /opt/agent; mkdir -p /etc/credstore; : >/etc/credstore/token")
    host.wait_for(
        lambda: not {"program", "credentials"} & set(needs(host, AGENT)), "two requirements are met"
    )
    host.nics[0].plug()
    host.wait_for(lambda: set(needs(host, AGENT)) == {"clock"}, "only the clock is missing")
    assert state(host, AGENT) == "waiting"
    host.run("mkdir -p /run/systemd/timesync; touch /run/systemd/timesync/synchronized")
    wait_until_runs(host, AGENT)
    assert instance(host, "Needs", AGENT) == []


def test_print_shows_unit_files_and_check_finds_errors(host: Host, lan: Lan, url: str) -> None:
    host.configure("agentd", bbot(url, 'user = "root"') + bslave(SLAVE, "cpu = 2", "ram_mib = 64"))
    host.start([lan])
    wait_until_runs(host)
    wait_until_runs(host, AGENT)
    printed = host.run(["buildos-agentd", "--print"])
    for unit in (BBOT, BSLAVE):
        path = f"/run/systemd/system/{unit}.d/50-buildos.conf"
        assert f"# {path}\n{host.read(path)}\n" in printed
    assert host.run(["buildos-agentd", "--check"]) == ""
    # systemd has the same values.
    assert host.unit(BBOT, "User") == {"User": "root"}
    assert host.unit(BSLAVE, "MemoryMax", "CPUQuotaPerSecUSec") == {
        "MemoryMax": str(64 << 20),
        "CPUQuotaPerSecUSec": "2s",
    }
    # --check finds an invalid configuration in another root.
    host.run("mkdir -p /desk/etc/buildos/agentd.conf.d /desk/proc; : >/desk/proc/cmdline")
    host.run("echo '[bbot.x]' >/desk/etc/buildos/agentd.conf.d/50-x.toml")
    with pytest.raises(CommandFailed, match="no controller is configured"):
        host.run(["buildos-agentd", "--check", "--root", "/desk"])


def test_agent_is_drained_while_a_disk_has_no_room(host: Host, lan: Lan, url: str) -> None:
    host.configure("agentd", bbot(url))
    host.start([lan])
    wait_until_runs(host)
    disk = "/build/machines/small"
    host.run(f"mkdir {disk} && mount -t tmpfs -o size=8M tmpfs {disk}")
    host.run(f"head -c 8100000 /dev/zero >{disk}/core")
    again = "; starts again when there is room"
    host.wait_for(lambda: instance(host, "Reason").endswith(again), "the agent is drained")
    assert needs(host)["disk"].startswith(f"disk: {disk} has ")
    assert instance(host, "Reason") == f"is drained ({needs(host)['disk']}){again}"
    host.systemctl("restart", "buildos-agentd")
    wait_for_state(host, "drained")
    why = host.run("buildosctl why || test $? = 17")
    assert f"{disk} has" in why
    assert "du -xh" in why
    host.run(f"rm {disk}/core")
    wait_until_runs(host)
    assert "disk" not in needs(host)
    reload(host, "disk_reserve_percent = 0\n" + bbot(url))
    host.run(f"head -c 8100000 /dev/zero >{disk}/core")
    wait_until_runs(host)
    assert "disk" not in needs(host)
