"""Parses and writes the bodies that agents and controllers exchange.

A body has manifests: `: 1` before the first, `:` before the others, then `name: value`."""

from __future__ import annotations

import email
import re

MAX_REQUEST = 102_400
"""Limit of a task request, in bytes."""

MAX_RESULT = 15_728_640
"""Limit of a result, in bytes."""

HEADER = {"agent", "toolchain-name", "toolchain-version"}
HEADER_OPTIONAL = {"interactive-mode", "interactive-login", "fingerprint", "auxiliary-ram"}
MACHINE = {"id", "name", "summary"}
MACHINE_OPTIONAL = {"role", "ram-minimum", "ram-maximum"}

RESULT = {"name", "version", "status"}
CHECKSUMS = {"worker-checksum", "dependency-checksum"}
STATUSES = {"skip", "success", "warning", "error", "abort", "abnormal", "interrupt"}

ROLES = {"build", "auxiliary"}
MODES = {"false", "true", "both"}

_NAME = re.compile(r"[a-z0-9-]+")

Manifest = dict[str, str]


class ProtocolError(Exception):
    """A body that breaks the protocol, with place and reason."""


def parse_manifests(body: str) -> list[Manifest]:
    """Parses the manifests of a body: `: 1` before the first, `:` before the others,
    then `name: value`. A value of several lines is between `name:\\` and `\\`."""
    manifests: list[Manifest] = []
    lines = enumerate(body.split("\n"), 1)
    for number, raw in lines:
        line = raw.strip(" \t\r")
        if not line or line.startswith("#"):
            continue
        if line.startswith(":"):
            if line[1:].strip() != ("" if manifests else "1"):
                raise ProtocolError(f'line {number}: expected ": 1", then ":"')
            manifests.append({})
            continue
        name, colon, value = line.partition(":")
        name, value = name.rstrip(), value.lstrip()
        if not manifests or not colon or not _NAME.fullmatch(name):
            raise ProtocolError(f'line {number}: expected "name: value" in a manifest')
        if name in manifests[-1]:
            raise ProtocolError(f"line {number}: {name} occurs twice")
        if value == "\\":
            text = []
            for _, more in lines:
                if more.strip() == "\\":
                    break
                text.append(more)
            else:
                raise ProtocolError(f"line {number}: the value of {name} has no end")
            manifests[-1][name] = "\n".join(text)
            continue
        if any(ord(c) < 32 or ord(c) == 127 for c in value):
            raise ProtocolError(f"line {number}: control character in the value of {name}")
        manifests[-1][name] = value
    if not manifests:
        raise ProtocolError("no manifest")
    return manifests


def parse_task_request(body: bytes) -> tuple[Manifest, list[Manifest]]:
    """Parses the header and the machines of a task request."""
    try:
        manifests = parse_manifests(body.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ProtocolError(f"not UTF-8: {error}") from error
    header, machines = manifests[0], manifests[1:]
    _check("task request", header, HEADER, HEADER_OPTIONAL)
    if not machines:
        raise ProtocolError("no machine")
    for machine in machines:
        _check("machine", machine, MACHINE, MACHINE_OPTIONAL)
        if machine.get("role", "build") not in ROLES:
            raise ProtocolError(f"role is {machine['role']!r}")
    if header.get("interactive-mode", "false") not in MODES:
        raise ProtocolError(f"interactive-mode is {header['interactive-mode']!r}")
    for manifest in (header, *machines):
        for name in ("auxiliary-ram", "ram-minimum", "ram-maximum"):
            if not manifest.get(name, "0").isdecimal():
                raise ProtocolError(f"{name} is {manifest[name]!r}")
    for manifest in (header, *machines):
        for name, value in manifest.items():
            if "\n" in value:
                raise ProtocolError(f"the value of {name} has several lines")
    return header, machines


def parse_result(body: bytes) -> tuple[Manifest, Manifest]:
    """Parses the header and the result manifest of a result."""
    manifests = parse_manifests(body.decode("utf-8", errors="replace"))
    if len(manifests) != 2:
        raise ProtocolError(f"result: 2 manifests are expected, not {len(manifests)}")
    header, result = manifests
    _check("result request", header, {"session"}, {"challenge", "agent-checksum"})
    operations = {n for n in result if re.fullmatch(r"[a-z-]+-(status|log)", n)}
    _check("result", result, RESULT, CHECKSUMS | operations)
    for name in result:
        if name.endswith("status") and result[name] not in STATUSES:
            raise ProtocolError(f"result: {name} is {result[name]!r}")
    return header, result


def _check(what: str, manifest: Manifest, required: set[str], optional: set[str]) -> None:
    for name in sorted(required):
        if not manifest.get(name):
            raise ProtocolError(f"{what}: {name} is missing")
    for name in sorted(manifest.keys() - required - optional):
        raise ProtocolError(f"{what}: {name} is unknown")


def write_manifests(manifests: list[Manifest]) -> bytes:
    """Makes a body of manifests without values of several lines."""
    lines = []
    for index, manifest in enumerate(manifests):
        lines.append(":" if index else ": 1")
        lines += [f"{name}: {value}".rstrip() for name, value in manifest.items()]
    return ("\n".join(lines) + "\n").encode()


def parse_form(content_type: str, body: bytes) -> dict[str, bytes]:
    """Returns the values of a body of multipart/form-data (RFC 7578)."""
    message = email.message_from_bytes(f"Content-Type: {content_type}\r\n\r\n".encode() + body)
    values: dict[str, bytes] = {}
    for part in message.walk():
        name = part.get_param("name", header="content-disposition")
        content = part.get_payload(decode=True)
        if isinstance(name, str) and isinstance(content, bytes):
            values[name] = content
    return values
