"""A host takes agents of the channel."""

from __future__ import annotations

import hashlib
import itertools
import json
from typing import Any

from host import Host
from update_farm import Farm, update

PLACED = "/var/lib/buildos/agents"
SPOOL = "/var/cache/buildos/updated/agents"


def publish(farm: Farm, version: str) -> str:
    """Publishes an agent, and returns the digest of its extension."""
    content = f"hsqs of {version}"
    name = f"bbot-agent_{version}.raw"
    (farm.directory / name).write_text(content)
    farm.desk(f"buildosctl publish agent --tree www {name} >/dev/null")
    farm.sign()
    return hashlib.sha256(content.encode()).hexdigest()


def start(farm: Farm, host: Host, toml: str = 'agents.select = ["bbot-*"]\n') -> None:
    """Boots a host that follows the channel, without a machine volume."""
    farm.lan.serve_dhcp()
    farm.prepare(host, farm.serve(), toml)
    host.start([farm.lan])
    host.wait_for(lambda: host.addresses("br0"), "br0 has an address")


def state(host: Host) -> dict[str, Any]:
    """Returns the state of the helper."""
    found: dict[str, Any] = json.loads(host.read("/run/buildos/agent-place/state.json"))
    return found


def placed(host: Host) -> list[dict[str, Any]]:
    found = state(host)
    assert not found["problems"], found
    agents: list[dict[str, Any]] = found["agents"]
    return agents


def versions(host: Host) -> list[str]:
    return [agent["version"] for agent in placed(host)]


def test_host_places_the_selected_agent_and_keeps_the_previous_one(farm: Farm, host: Host) -> None:
    first = publish(farm, "0.18.0")
    start(farm, host)
    result = update(host)
    assert result["result"].endswith("; agent bbot-agent 0.18.0 placed"), result
    assert result["problems"] == []
    path = f"{PLACED}/{first}/bbot-agent.raw"
    assert host.run(["stat", "-c", "%U %a", f"{PLACED}/{first}", path]) == "root 755\nroot 644\n"
    assert host.read(path) == "hsqs of 0.18.0"
    assert host.run(["find", f"{SPOOL}/objects", "-type", "f"]) == ""
    assert "\nagent bbot-agent 0.18.0: placed " in host.run("buildosctl update status")
    # Nothing to do: the helper does not run.
    handled = host.read("/run/buildos/agent-place/state.json")
    assert "agent" not in update(host)["result"]
    assert host.read("/run/buildos/agent-place/state.json") == handled
    publish(farm, "0.19.0")
    update(host)
    assert versions(host) == ["0.19.0", "0.18.0"]
    publish(farm, "0.20.0")
    update(host)
    assert versions(host) == ["0.20.0", "0.19.0"]
    assert not host.succeeds(f"test -e {PLACED}/{first}")


def test_agent_that_a_unit_names_stays(farm: Farm, host: Host) -> None:
    first = publish(farm, "1")
    start(farm, host)
    update(host)
    drop_in = "/run/systemd/system/buildos-bbot@default.service.d"
    line = f"[Service]\\nEnvironment=AGENT={PLACED}/{first}/bbot-agent.raw\\n"
    host.run(f"mkdir -p {drop_in} && printf '{line}' >{drop_in}/x.conf")
    for version in ("2", "3"):
        publish(farm, version)
        update(host)
    assert versions(host) == ["3", "2", "1"]
    host.run(f"rm {drop_in}/x.conf")
    publish(farm, "4")
    update(host)
    assert versions(host) == ["4", "3"]


def test_host_without_the_key_takes_no_agent(farm: Farm, host: Host) -> None:
    publish(farm, "1")
    start(farm, host, "")
    assert "agent" not in update(host)["result"]
    assert not host.succeeds(f"test -e {PLACED}")
    assert not host.succeeds(f"test -e {SPOOL}")


def test_altered_agent_is_not_placed(farm: Farm, host: Host) -> None:
    digest = publish(farm, "1")
    (farm.tree / "objects" / digest).write_text("hsqs of 2")
    start(farm, host)
    [problem] = update(host)["problems"]
    assert problem.startswith("agent bbot-agent 1: ") and "a different digest" in problem
    assert placed(host) == []


def test_helper_believes_neither_channel_nor_object_of_the_spool(farm: Farm, host: Host) -> None:
    """As buildos-updated could write them, if it were taken over."""
    digest = publish(farm, "1")
    start(farm, host)
    update(host)
    signed = farm.signed.read_text()

    requests = itertools.count(1)

    def place() -> list[str]:
        request = next(requests)
        # The path unit starts the helper.
        host.run(f"echo {request} >/run/buildos/updated/agents-request")

        def handled() -> bool:
            return bool(state(host)["handled"] == request)

        host.wait_for(handled, f"the helper has handled request {request}")
        problems: list[str] = state(host)["problems"]
        return problems

    def spool(path: str, content: str) -> None:
        local = farm.directory / "spooled"
        local.write_text(content)
        host.copy(local, "/tmp")
        host.run(f"cp /tmp/spooled {SPOOL}/{path}")

    spool("channel", signed.replace("bbot-agent", "bbot-evil"))
    [problem] = place()
    assert problem.startswith("the channel is refused"), problem
    spool("channel", signed)
    host.run(f"rm -r {PLACED}/{digest}")
    spool(f"objects/{digest}", "hsqs of 2")
    [problem] = place()
    assert problem.startswith("agent bbot-agent: its content has a different digest"), problem
    assert placed_names(host) == []


def placed_names(host: Host) -> list[str]:
    return host.run(f"find {PLACED} -name '*.raw'").split()
