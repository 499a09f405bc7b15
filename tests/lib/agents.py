"""Configures agents on a host and reads their state from D-Bus and the journal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Protocol

from host import Host

BBOT = "buildos-bbot@default.service"
BSLAVE = "buildos-bslave@x.service"

# MESSAGE_IDs of agentd, see the journal catalogue.
RUNNING = "90e2c0b5eff647a1b868032e525afbb3"
WAITING = "a5b7471c640e43188c3c75afdf7fde8a"
ENDED = "ec9c4b3fb8cd43fda4dd27d5c44c9d35"
CRASH_LOOP = "3f895cd92a28480eacf6520d9a71439f"
STOPPED = "ab1c791e2a7041a2be0ab0679223a2ef"
DRAINING = "0f8939e4b0f943e8b4c0a5538658791c"
DRAINED = "8ac9b05729db4ada8ec71df0cbe1cf35"
CLOCK = "dff2e49b009c4d95a8660a36e3eee045"
LEAKED = "755d46fb7eea44a8ab52bd32aaaf47b7"


class Runs(Protocol):
    """A host of any lane."""

    def run(self, command: str | Sequence[str]) -> str:
        """Runs a command as root; returns its output."""


def bbot(url: str, *lines: str, name: str = "default") -> str:
    """Returns the configuration of a bbot; hosts in namespaces have no /dev/kvm."""
    keys = [f'controllers = ["{url}"]', 'kvm = "waived"', *lines]
    return "\n".join([f"[bbot.{name}]", *keys, ""])


def bslave(program: str, *lines: str, name: str = "x") -> str:
    """Returns the configuration of a bslave."""
    return "\n".join([f"[bslave.{name}]", f'program = "{program}"', *lines, ""])


def agent1() -> list[str]:
    """Returns name, path and interface of agentd's manager, for busctl."""
    name = "org.build2.buildos.agent1"
    return [name, "/org/build2/buildos/agent1", f"{name}.Manager"]


def object_path(agent: str) -> str:
    """Returns the path of an agent's object on the bus."""
    escaped = "".join(c if c.isalnum() else f"_{ord(c):02x}" for c in f"buildos-{agent}")
    return f"/org/build2/buildos/agent1/instance/{escaped}"


def instance(host: Runs, property: str, agent: str = "bbot@default") -> Any:
    """Returns a property of an agent on the bus."""
    interface = "org.build2.buildos.agent1.Instance"
    command = ["busctl", "--json=short", "get-property", "org.build2.buildos.agent1"]
    return json.loads(host.run([*command, object_path(agent), interface, property]))["data"]


def state(host: Host, agent: str = "bbot@default") -> str:
    return str(instance(host, "State", agent))


def needs(host: Host, agent: str = "bbot@default") -> dict[str, str]:
    """Returns the requirements that an agent lacks, with the reason of each."""
    return dict(instance(host, "Needs", agent))


def wait_for_state(host: Host, wanted: str, agent: str = "bbot@default") -> None:
    host.wait_for(lambda: state(host, agent) == wanted, f"{agent} is {wanted}")


def wait_until_runs(host: Host, agent: str = "bbot@default") -> int:
    """Waits until an agent runs; returns its main process."""
    wait_for_state(host, "running", agent)
    return host.main_pid(f"buildos-{agent}.service")


def messages(host: Host, identifier: str) -> Sequence[str]:
    return [m["MESSAGE"] for m in host.journal(f"MESSAGE_ID={identifier}")]


def reload(host: Host, toml: str) -> None:
    """Replaces the test's configuration of agentd and reloads agentd."""
    write = 'printf %s "$1" >/etc/buildos/agentd.conf.d/50-test.toml'
    host.run(["sh", "-ec", write, "sh", toml])
    host.systemctl("reload", "buildos-agentd")


def restart(host: Host, agent: str = "bbot@default") -> None:
    """Asks agentd to restart an agent at once."""
    host.run(["busctl", "call", *agent1(), "Restart", "s", agent])
