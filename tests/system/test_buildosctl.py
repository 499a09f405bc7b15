"""Runs buildosctl as an operator does. Breaks each step of `why` that can break on a host
in a namespace."""

from __future__ import annotations

import json
import re
import subprocess
from typing import Any

from agents import BBOT, BSLAVE, bbot, bslave, wait_until_runs
from buildroot import TOP
from host import Host
from machine import Machine
from nat import wait_until_ready
from simlan.lan import Lan

SLEEPER = "/usr/local/bin/sleeper"


def ctl(host: Host, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs buildosctl as an unprivileged user."""
    unprivileged = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    return subprocess.run(
        host.command([*unprivileged, "buildosctl", *arguments]),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def why(host: Host, *agents: str) -> dict[str, Any]:
    """Returns the verdict with the exit status as `code`; only `code` while there is no bus."""
    result = ctl(host, "why", "--json", *agents)
    verdict: dict[str, Any] = json.loads(result.stdout or "{}")
    return {**verdict, "code": result.returncode}


def wait_for_step(host: Host, step: str | None, outcome: str = "broken") -> dict[str, Any]:
    """Waits until `why` names this step as the failed one."""

    def found() -> dict[str, Any] | None:
        verdict = why(host)
        found = (verdict.get("step"), verdict.get("outcome"))
        return verdict if found == (step, outcome) else None

    return host.wait_for(found, f"buildosctl why says {outcome}, {step}")


def slave(host: Host) -> None:
    """Configures a bslave without tasks."""
    host.program(SLEEPER, "#!/bin/sh\nexec sleep infinity\n")
    host.configure("agentd", bslave(SLEEPER, 'bridge = "br0"', 'kvm = "waived"'))


def test_why_of_host_without_fault_is_ready(running: Host) -> None:
    verdict = wait_for_step(running, None, "ready")
    assert verdict["code"] == 0
    assert {link["mark"] for link in verdict["chain"]} == {"ok"}


def test_why_of_host_with_tasks_is_building(host: Host, lan: Lan) -> None:
    lan.serve_dhcp()
    # A process apart from the main one is a task.
    host.program(SLEEPER, "#!/bin/sh\nsleep infinity &\nwait\n")
    host.configure("agentd", bslave(SLEEPER, 'bridge = "br0"', 'kvm = "waived"'))
    host.start([lan])
    verdict = wait_for_step(host, None, "building")
    assert (verdict["code"], verdict["answer"]) == (0, "bslave@x with 1 process of tasks")


def test_why_names_stopped_daemon_without_activation(online: Host) -> None:
    online.systemctl("stop", "buildos-hostnamed")
    verdict = wait_for_step(online, "daemons")
    assert verdict["code"] == 10
    assert verdict["answer"] == "buildos-hostnamed does not answer: it is not running"
    assert "systemctl status buildos-hostnamed" in verdict["advice"]
    status = ctl(online, "status")
    assert status.returncode == 1
    assert "buildos-hostnamed does not answer: it is not running" in status.stdout
    # D-Bus activation has not started it.
    assert not online.active("buildos-hostnamed")


def test_why_names_missing_carrier_then_missing_lease(host: Host, lan: Lan) -> None:
    host.start([lan], plugged=False)
    verdict = wait_for_step(host, "carrier")
    assert (verdict["code"], verdict["answer"]) == (11, "no carrier on eth0")
    host.nics[0].plug()
    verdict = wait_for_step(host, "lease")
    assert verdict["code"] == 12
    assert any("DHCP server" in line for line in verdict["advice"])
    lan.serve_dhcp()
    verdict = wait_for_step(host, "needs")
    assert (verdict["code"], verdict["answer"]) == (17, "no agents are configured")


def test_why_names_nat_that_running_agent_lost(running: Host) -> None:
    wait_for_step(running, None, "ready")
    running.systemctl("stop", "buildos-dnsmasq.service")
    # The agent still runs, but its machines would get no address.
    verdict = wait_for_step(running, "nat")
    assert verdict["code"] == 15
    assert "systemctl status buildos-dnsmasq" in verdict["advice"]


def test_why_names_nat_that_agent_waits_for(host: Host, lan: Lan, url: str) -> None:
    host.file("/etc/systemd/system/buildos-dnsmasq.service.d/test.conf",
              "[Service]\nExecStart=\nExecStart=/bin/false\n")  # fmt: skip
    host.configure("agentd", bbot(url))
    host.start([lan])
    verdict = wait_for_step(host, "nat")
    assert verdict["code"] == 15
    assert "systemctl status buildos-dnsmasq" in verdict["advice"]


def test_why_names_clock_that_agent_waits_for(host: Host, lan: Lan, url: str) -> None:
    host.without_time()
    host.configure("agentd", "clock_deadline_s = 3600\n" + bbot(url))
    host.start([lan])
    verdict = wait_for_step(host, "clock")
    assert verdict["code"] == 16


def test_why_names_missing_program(host: Host, lan: Lan, url: str) -> None:
    host.configure("agentd", bbot(url, 'program = "/nonexistent/bbot-agent"'))
    host.start([lan])
    verdict = wait_for_step(host, "needs")
    assert verdict["code"] == 17
    assert "program /nonexistent/bbot-agent is not installed" in verdict["answer"]


def test_why_names_agent_that_ends_repeatedly(host: Host, lan: Lan) -> None:
    lan.serve_dhcp()
    host.program(SLEEPER, "#!/bin/sh\nexit 3\n")
    host.configure("agentd", bslave(SLEEPER, 'bridge = "br0"', 'kvm = "waived"'))
    host.start([lan])
    verdict = host.wait_for(
        lambda: next((v for v in [why(host)] if "exit code 3" in v.get("answer", "")), None),
        "buildosctl why reports the exit code of the agent",
    )
    assert (verdict["code"], verdict["step"]) == (18, "agent")


def test_why_names_controller_that_demands_key(host: Host, lan: Lan, url: str) -> None:
    lan.script_controller(all={"answer": 401})
    host.configure("agentd", bbot(url))
    host.start([lan])
    wait_until_runs(host)
    # Only root and members of systemd-journal may read the log of the agent.
    host.wait_for(
        lambda: "http status: 401" in host.run("buildosctl why"),
        "buildosctl why quotes the log of the agent",
    )
    assert "set auth_key" in host.run("buildosctl why")
    # The name of the host can contain the number.
    assert "status: 401" not in str(why(host))


def test_why_distinguishes_lost_full_size_packets(host: Host, lan: Lan, url: str) -> None:
    host.configure("agentd", bbot(url))
    host.start([lan])
    wait_for_step(host, None, "ready")
    # The table stands for a router that drops long packets and sends no ICMP message.
    chain = "type filter hook output priority 0; tcp dport 8080 meta length > 1000 drop;"
    host.run(["nft", f"table ip router {{ chain output {{ {chain} }}; }}"])
    before = len(lan.task_requests())
    # Task requests are small, and pass.
    host.wait_for(lambda: len(lan.task_requests()) > before, "the agent polls")
    verdict = why(host)
    assert (verdict["code"], verdict["step"]) == (19, "controllers")
    assert "full-size packets do not (path MTU)" in verdict["answer"]
    # The measurement is no request.
    assert {entry["status"] for entry in lan.task_requests()} == {200}


def test_why_of_drained_or_stopped_agent_is_out_of_service(host: Host, lan: Lan) -> None:
    lan.serve_dhcp()
    slave(host)
    host.start([lan])
    wait_until_runs(host, "bslave@x")
    host.run(["buildosctl", "drain", "--wait"])
    verdict = wait_for_step(host, "agent", "out-of-service")
    assert (verdict["code"], verdict["advice"]) == (3, ["buildosctl resume bslave@x"])
    host.run(["buildosctl", "resume"])
    wait_until_runs(host, "bslave@x")
    host.systemctl("stop", BSLAVE)
    verdict = wait_for_step(host, "agent", "out-of-service")
    assert verdict["advice"] == [f"systemctl start {BSLAVE}"]


def test_why_names_unreachable_controller(host: Host, lan: Lan) -> None:
    lan.serve_dhcp()
    host.configure("agentd", bbot("http://198.51.100.1:9/"))
    host.start([lan])
    wait_until_runs(host)
    verdict = wait_for_step(host, "controllers")
    assert verdict["code"] == 19
    assert "Connection refused" in verdict["answer"]


def test_status_and_lists_match_the_host(running: Host) -> None:
    machine = Machine(running)
    leased = machine.take_lease()
    status = json.loads(ctl(running, "status", "--json").stdout)
    assert status["schema"] == 1
    assert status["silent"] == {}
    assert status["network"]["address"].split("/")[0] == running.wait_online()
    assert [link["name"] for link in status["links"] if link["role"] == "uplink"] == ["eth0"]
    assert status["agents"][0]["main_pid"] == running.main_pid(BBOT)
    assert status["agents"][0]["controllers"][0]["failure"] is None
    text = ctl(running, "leases").stdout
    assert leased in text and status["network"]["address"] in text
    assert "\x1b" not in ctl(running, "status").stdout
    # On a terminal, the output has colour.
    tty = running.run(["script", "-qec", "TERM=linux buildosctl status", "/dev/null"])
    assert "\x1b[32m" in tty
    assert "uplink" in ctl(running, "links").stdout


def test_watch_prints_changes(host: Host, lan: Lan) -> None:
    lan.serve_dhcp()
    slave(host)
    host.start([lan])
    wait_until_runs(host, "bslave@x")
    watch = subprocess.Popen(
        host.command(["buildosctl", "agents", "--watch", "--json"]),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert watch.stdout is not None
        first = json.loads(watch.stdout.readline())
        assert first["agents"][0]["state"] == "running"
        host.systemctl("stop", BSLAVE)
        for line in watch.stdout:
            if json.loads(line)["agents"][0]["state"] == "stopped":
                break
    finally:
        watch.kill()
        watch.wait()
        if watch.stdout is not None:
            watch.stdout.close()


def test_renew_is_allowed_for_root_only(online: Host) -> None:
    acquired = json.loads(ctl(online, "leases", "--json").stdout)["lease"]["acquired_usec"]
    denied = ctl(online, "renew")
    assert denied.returncode == 1
    assert denied.stderr == "buildosctl: only root and members of buildos-admin may do that\n"

    def renewed() -> bool:
        # Times are in whole seconds: the first renewal might have the time of the lease.
        online.run(["buildosctl", "renew"])
        leases = json.loads(ctl(online, "leases", "--json").stdout)
        return bool(leases["lease"]["acquired_usec"] > acquired)

    online.wait_for(renewed, "the lease is renewed")


def test_renew_reports_silent_server(online: Host, lan: Lan) -> None:
    online.run(["buildosctl", "renew"])
    lan.stop_dhcp()
    script = "timeout 10 buildosctl renew 2>&1 || echo status $?"
    said = online.run(script)
    assert f"buildosctl: {lan.address} has not answered within 9 s" in said
    assert said.endswith("\nstatus 1\n")
    assert online.addresses("br0")


def test_log_shows_all_buildos_units_and_no_other_unit(online: Host) -> None:
    entries = [
        json.loads(line)
        for line in online.run(["buildosctl", "log", "--output=json"]).splitlines()
    ]
    units = {e.get("_SYSTEMD_UNIT") for e in entries} | {e.get("UNIT") for e in entries}
    assert {f"buildos-{d}.service" for d in ("netd", "hostnamed", "natd", "agentd")} <= units
    others = [
        e["MESSAGE"]
        for e in entries
        if not any(str(e.get(k, "")).startswith("buildos") for k in ("_SYSTEMD_UNIT", "UNIT"))
    ]
    assert others == []


def test_check_and_daemon_report_equal_problems(online: Host) -> None:
    mistake = "carier_grace_s = 3\n"
    online.write("/etc/buildos/netd.conf.d/60-mistake.toml", mistake)
    path = "/etc/buildos/netd.conf.d/60-mistake.toml"
    check = ctl(online, "check", path)
    online.systemctl("reload", "buildos-netd")
    problems = online.bus_property("network1", "ConfigurationProblems")
    assert (check.returncode, check.stderr.splitlines()) == (1, problems)
    assert ctl(online, "check", "/etc/buildos/netd.conf.d/10-nics.toml").returncode == 0
    assert ctl(online, "check", "--cmdline", "quiet buildos.hostname=b1").returncode == 0
    assert ctl(online, "check", "--cmdline", "buildos.hostname=b_1").returncode == 1
    assert ctl(online, "check", "--cmdline", "buildos.login=ttyS0").returncode == 0
    assert ctl(online, "check").returncode == 2


def test_help_of_each_command_is_printed(online: Host) -> None:
    overview = ctl(online, "--help")
    assert (overview.returncode, overview.stderr) == (0, "")
    names = re.findall(r"^  (\w+)  ", overview.stdout.split("Options:")[0], re.MULTILINE)
    assert {"status", "why", "check"} <= set(names)
    # journalctl answers `log --help`.
    for name in set(names) - {"log"}:
        own = ctl(online, name, "--help")
        assert own.returncode == 0
        usage = own.stdout.splitlines()[0]
        assert usage.startswith("Usage: buildosctl ") and name in usage
    assert ctl(online, "--simulate", "x").returncode == 2


def test_fingerprint_of_ssh_server_is_shown_while_it_runs(host: Host, lan: Lan) -> None:
    """The root of the test has no OpenSSH: the unit and the program are stand-ins."""
    lan.serve_dhcp()
    public = "ssh-ed25519 AAAA root@host\n"
    fingerprint = "SHA256:Bbpk8cdSyWlh6jV9N5oJh4IzLGpaEqAPcSdqJYEsdLI"
    host.file("/etc/ssh/ssh_host_ed25519_key.pub", public)
    host.program(
        "/usr/local/bin/ssh-keygen",
        f'#!/bin/sh\n[ "$*" = "-l -f -" ] && read -r type key who &&\n'
        f'    echo "256 {fingerprint} $who (ED25519)"\n',
    )
    host.file("/etc/systemd/system/ssh.service", "[Service]\nExecStart=sleep infinity\n")
    host.start([lan])
    wait_until_ready(host)
    assert fingerprint not in host.run("PATH=/usr/local/bin:$PATH buildosctl status")
    host.systemctl("start", "ssh")
    shown = host.run("PATH=/usr/local/bin:$PATH buildosctl status")
    assert f"ssh key           ED25519 {fingerprint}\n" in shown
    issue = "/run/issue.d/50-buildos.issue"
    # A change that makes the console read the host.
    host.nics[0].unplug()
    host.wait_for(
        lambda: f"  ssh key  ED25519 {fingerprint}\n" in host.read(issue),
        "the console shows the fingerprint",
    )


def test_console_shows_the_status(online: Host) -> None:
    issue = "/run/issue.d/50-buildos.issue"
    online.wait_for(lambda: online.succeeds(["test", "-e", issue]), "an issue file")
    address = online.wait_online()
    name = online.run(["hostname"]).strip()
    online.wait_for(
        lambda: f"ssh root@{address}" in online.read(issue) and name in online.read(issue),
        "the console shows the host name and the address",
    )
    # agetty --reload was run.
    assert online.succeeds("test -e /run/agetty.reload")
    online.nics[0].unplug()
    online.wait_for(
        lambda: "carrier-lost" in online.read(issue), "the console shows the loss of carrier"
    )


def test_metrics_timer_writes_readable_file_and_no_log(online: Host) -> None:
    online.systemctl("start", "buildos-metrics.timer")
    prom = "/run/buildos/metrics/buildos.prom"
    unprivileged = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    online.wait_for(lambda: online.succeeds([*unprivileged, "cat", prom]), "a file with metrics")
    assert 'buildos_network_state{state="online"} 1\n' in online.read(prom)
    logged = online.journal("UNIT=buildos-metrics.service")
    assert [entry["MESSAGE"] for entry in logged] == []


def test_examples_of_dbus_man_pages_run(online: Host) -> None:
    manuals = sorted((TOP / "docs/man").glob("org.build2.buildos.*.5"))
    assert len(manuals) == 5
    for manual in manuals:
        example = manual.read_text().split(".Bd -literal -offset indent\n")[1].split(".Ed")[0]
        online.run(example.replace("\\e", "\\"))
