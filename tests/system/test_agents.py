"""When agents run, and what happens when they end."""

from __future__ import annotations

from host import Host
from lan import Lan

BBOT = "buildos-bbot@default.service"
AGENTD = "buildos-agentd.service"


def configure(host: Host, controller: str, more: str = "") -> None:
    host.configure(
        "agentd",
        f'[bbot.default]\ncontrollers = ["{controller}"]\nkvm = "waived"\n'
        f'environment = ["BBOT_DOUBLE_INTERVAL_MS=200"]\n{more}',
    )


def test_killed_it_is_started_again(host: Host, lan: Lan) -> None:
    lan.serve_dhcp()
    configure(host, lan.start_controller())
    host.start([lan])
    host.wait_for(lan.task_requests, "the first poll")
    before = host.main_pid(BBOT)
    host.systemctl("kill", "--signal=KILL", BBOT)
    host.wait_for(
        lambda: host.active(BBOT) and host.main_pid(BBOT) not in (0, before), "another agent runs"
    )
    polls = len(lan.task_requests())
    host.wait_for(lambda: len(lan.task_requests()) > polls, "it polls")


def test_it_outlives_agentd(host: Host, lan: Lan) -> None:
    lan.serve_dhcp()
    configure(host, lan.start_controller())
    host.start([lan])
    host.wait_for(lan.task_requests, "the first poll")
    agent, daemon = host.main_pid(BBOT), host.main_pid(AGENTD)
    host.systemctl("kill", "--signal=KILL", AGENTD)
    host.wait_for(
        lambda: host.active(AGENTD) and host.main_pid(AGENTD) not in (0, daemon), "agentd is back"
    )
    host.systemctl("restart", AGENTD)
    assert host.main_pid(BBOT) == agent


def test_it_waits_for_the_network_and_says_so(host: Host, lan: Lan) -> None:
    configure(host, lan.start_controller())
    host.start([lan])
    assert host.wait_for_boot() == "running"
    host.wait_for(lambda: "bbot" in host.status_text(AGENTD), "agentd says that it waits")
    assert not host.active(BBOT)
    lan.serve_dhcp()
    host.wait_for(lan.task_requests, "the first poll")


def test_a_program_that_is_missing_is_named(host: Host, lan: Lan) -> None:
    lan.serve_dhcp()
    configure(host, lan.start_controller(), 'program = "/opt/bbot/bin/bbot-agent"\n')
    host.start([lan])
    host.wait_for(
        lambda: "/opt/bbot/bin/bbot-agent" in host.status_text(AGENTD), "agentd names the program"
    )
    assert host.wait_for_boot() == "running"
    assert not host.active(BBOT)


def test_stopped_by_an_operator_it_stays_stopped(host: Host, lan: Lan) -> None:
    lan.serve_dhcp()
    configure(host, lan.start_controller())
    host.start([lan])
    host.wait_for(lan.task_requests, "the first poll")
    host.systemctl("stop", BBOT)
    host.systemctl("restart", AGENTD)
    host.wait_for(lambda: host.active(AGENTD), "agentd is up")
    host.wait_for(lambda: "stopped" in host.status_text(AGENTD), "agentd says so")
    assert not host.active(BBOT)


def test_instances_are_units_of_their_own(host: Host, lan: Lan) -> None:
    lan.serve_dhcp()
    controller = lan.start_controller()
    configure(host, controller, f'[bbot.gcc]\ncontrollers = ["{controller}"]\nkvm = "waived"\n')
    host.start([lan])

    def toolchains() -> set[str]:
        return {str(request["toolchain"]).split()[0] for request in lan.task_requests()}

    host.wait_for(lambda: toolchains() == {"default", "gcc"}, "both poll")
    assert host.active(BBOT) and host.active("buildos-bbot@gcc.service")
