"""Decides which task an agent gets, and what becomes of its result: the rules of brep.

`Queue` knows no HTTP. `Refusal` is an answer other than 200. All other disappointments of
an agent are silent: it gets no task, or its result is dropped."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from .agent_keys import Keys, is_signature
from .manifests import Manifest

MAX_AUXILIARY = 9
"""Limit of auxiliary machines of a task."""

UPLOAD_LIMIT = 10_485_760
"""Default limit of an upload, in bytes."""


class Refusal(Exception):
    """A request that is answered with this HTTP error."""

    def __init__(self, status: int, reason: str):
        super().__init__(reason)
        self.status = status


@dataclass
class Job:
    """The tasks of a path: an entry of the script, see controller.py."""

    tasks: int = 0
    source: str = ""
    machine: str = "**"
    auxiliary: Sequence[str] = ()
    interactive: bool = False
    login: Sequence[tuple[str, str]] = ()
    bot_keys: Sequence[str] = ()
    checksums: Sequence[str] = ()
    upload: Mapping[str, int] = field(default_factory=dict)
    expire: float = 10_800
    gone: bool = False
    delay: float = 0
    answer: str | int = "task"


@dataclass
class Session:
    """A task that was handed out."""

    path: str
    package: int
    job: Job
    started: float
    fingerprint: str | None
    challenge: str | None
    building: bool = True


def matches(name: str, pattern: str) -> bool:
    """Returns true if the components of `name`, separated by dashes, match those of
    `pattern`; `**` stands for any number of components."""
    pieces = re.split(r"(\*\*|\*|\?)", pattern)
    wild = {"**": ".*", "*": "[^-]*", "?": "[^-]"}
    return bool(re.fullmatch("".join(wild.get(p) or re.escape(p) for p in pieces), name))


class Queue:
    """Tasks of all paths, and the sessions of those that were handed out."""

    def __init__(
        self,
        keys: Keys | None = None,
        now: Callable[[], float] = time.time,
        seed: int = 0,
    ):
        """Without `keys` no agent is authenticated."""
        self.sessions: dict[str, Session] = {}
        self._keys = keys
        self._now = now
        self._random = random.Random(seed)
        self._handed: dict[str, int] = {}
        self._packages: dict[str, int] = {}
        self._again: dict[str, list[int]] = {}

    def request(
        self, path: str, mode: str, job: Job, header: Manifest, machines: Sequence[Manifest]
    ) -> tuple[str, str | None, Manifest] | None:
        """Returns session, challenge and task for a request; `None` without a task. `mode`
        is the parameter `interactive` of the URL."""
        agent = header.get("fingerprint") if self._keys is not None else None
        if self._keys is not None and not agent:
            raise Refusal(401, "unauthorized")
        mode = _mode(mode, header.get("interactive-mode", "false"))
        for machine in machines:
            if machine.get("role") == "auxiliary":
                check_auxiliary(machine["name"])
        login = _login(job, header)
        # A key that brep does not have is the one of a custom bot, and such a bot builds
        # only packages that name its key.
        is_custom = self._keys is not None and agent not in self._keys.agents
        if is_custom != bool(job.bot_keys) or (is_custom and agent not in job.bot_keys):
            return None
        if mode not in ("both", "true" if job.interactive else "false"):
            return None
        build = [m for m in machines if m.get("role", "build") == "build"]
        machine = next((m for m in build if matches(m["name"], job.machine)), None)
        auxiliary = self._auxiliary(job, header, machines)
        if machine is None or auxiliary is None:
            return None
        return self._hand_out(path, job, header, agent, machine, auxiliary, login)

    def _auxiliary(
        self, job: Job, header: Manifest, machines: Sequence[Manifest]
    ) -> list[str] | None:
        """Draws a machine for each pattern from those that match and fit into the RAM."""
        limit = header.get("auxiliary-ram")
        free = [m for m in machines if m.get("role") == "auxiliary"]
        used = 0
        picked: list[str] = []
        for pattern in job.auxiliary:
            fitting = [
                m
                for m in free
                if matches(m["name"].partition("-")[2], pattern)
                and ("ram-minimum" not in m or limit is None or used + _ram(m) <= int(limit))
            ]
            if not fitting:
                return None
            machine = self._random.choice(fitting)
            free.remove(machine)
            used += _ram(machine)
            picked.append(machine["name"])
        return picked if len(picked) <= MAX_AUXILIARY else None

    def _hand_out(
        self,
        path: str,
        job: Job,
        header: Manifest,
        agent: str | None,
        machine: Manifest,
        auxiliary: Sequence[str],
        login: str | None,
    ) -> tuple[str, str | None, Manifest] | None:
        if self._handed.get(path, 0) >= job.tasks:
            return None
        self._handed[path] = self._handed.get(path, 0) + 1
        package = self._next_package(path)
        name = f"hello-{package}"
        toolchain = f"{header['toolchain-name']}/{header['toolchain-version']}"
        # The serial number makes sessions of the same moment different.
        stamp = int(self._now() * 1e9) + len(self.sessions)
        session = f"{path.strip('/')}/{name}/1.0.0/x86_64-linux-gnu/linux/default/{toolchain}/{stamp}"
        challenge = None if agent is None else f"{self._random.getrandbits(256):064x}"
        self.sessions[session] = Session(path, package, job, self._now(), agent, challenge)
        task = {
            "name": name,
            "version": "1.0.0",
            "repository-url": job.source,
            "repository-type": "pkg",
            "machine": machine["name"],
            "target": "x86_64-linux-gnu",
        }
        task |= {f"auxiliary-machine-{i}": m for i, m in enumerate(auxiliary, 1)}
        if job.interactive and login:
            task["interactive"] = "test"
        if job.checksums:
            _, task["worker-checksum"], task["dependency-checksum"] = job.checksums
        return session, challenge, task

    def _next_package(self, path: str) -> int:
        """Returns the number of a package that is due again, otherwise a new one."""
        for session in self.sessions.values():
            is_late = self._now() > session.started + session.job.expire
            if session.path == path and session.building and is_late:
                session.building = False
                return session.package
        if again := self._again.get(path):
            return again.pop(0)
        self._packages[path] = self._packages.get(path, 0) + 1
        return self._packages[path]

    def finish(self, header: Manifest, result: Manifest) -> str | None:
        """Takes a result. Returns why it is dropped, which the agent does not learn."""
        session, reason = self._session(header["session"], header.get("challenge"))
        name, version = header["session"].split("/")[1:3]
        if (result["name"], result["version"]) != (name, version):
            raise Refusal(400, "invalid session: package name or version mismatch")
        if session is None:
            return reason
        if result["status"] == "skip":
            _check_skip(session.job.checksums, header, result)
        if result["status"] == "interrupt":
            self._again.setdefault(session.path, []).append(session.package)
        session.building = False
        return None

    def upload(self, session: str, challenge: str | None) -> tuple[Session | None, str]:
        """Returns the session of an upload; otherwise why the upload is dropped."""
        return self._session(session, challenge)

    def _session(self, text: str, signature: str | None) -> tuple[Session | None, str]:
        if len(text.split("/")) != 9 or not text.rpartition("/")[2].isdecimal():
            raise Refusal(400, "invalid session")
        session = self.sessions.get(text)
        if session is None or session.job.gone:
            return None, "expired session: no package build"
        if not session.building:
            return None, "expired session: not building"
        if self._keys is None:
            return session, ""
        if (signature is None) != (session.challenge is None):
            return None, "not authenticated: a challenge is expected"
        keys = {**self._keys.bots, **self._keys.agents}
        key = keys.get(session.fingerprint or "")
        if key and signature and session.challenge:
            if is_signature(key, signature, session.challenge):
                return session, ""
        return None, "not authenticated"


def check_auxiliary(name: str) -> None:
    """Raises Refusal, for the whole request, unless `name` is ARCHITECTURE-OS…."""
    architecture, dash, rest = name.partition("-")
    if not architecture:
        raise Refusal(400, f"no architecture component in machine name '{name}'")
    if not dash or not rest:
        raise Refusal(400, f"no OS component in machine name '{name}'")


def _ram(machine: Manifest) -> int:
    return int(machine.get("ram-minimum", "0"))


def _mode(url: str, request: str) -> str:
    """Returns the mode of both; an empty text if they exclude each other."""
    if "both" in (url, request):
        return request if url == "both" else url
    return url if url == request else ""


def _login(job: Job, header: Manifest) -> str | None:
    """Returns the login of a person, rewritten by the first expression that matches."""
    if "interactive-login" not in header:
        return None
    login = f"{header['agent']} {header['interactive-login']}"
    for pattern, replacement in job.login:
        if re.search(pattern, login):
            return re.sub(pattern, replacement, login, count=1)
    if job.login:
        raise Refusal(400, f"unable to match login info '{login}'")
    return login


def _check_skip(stored: Sequence[str], header: Manifest, result: Manifest) -> None:
    """Raises Refusal unless the three checksums are stored, and those of the result."""
    if not stored:
        raise Refusal(400, "unexpected skip result status")
    names = ("agent-checksum", "worker-checksum", "dependency-checksum")
    for name, expected in zip(names, stored, strict=True):
        found = (header | result).get(name)
        if found != expected:
            raise Refusal(400, f"{name} {expected!r} is expected instead of {found!r}")
