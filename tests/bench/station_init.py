#!/usr/bin/python3
"""The first process of a station: starts clients in its root and reports events with
their times.

    station_init.py ROOT

Standard input has commands, standard output events: a JSON object a line. Times are
CLOCK_MONOTONIC in seconds. Commands, and the events that answer them:

    {"do": "run", "argv": […]}                  {"event": "ran", "status", "output"}
    {"do": "exec", "argv": […], "cgroup": …}    {"event": "exec", "time", "pid"}
                                                starts a client; time of the execve
    {"do": "signal", "pid": …, "signal": …}     {"event": "signalled", "time"}

Events from rtnetlink(7) and wait(2):

    {"event": "address", "time", "added", "interface", "address": "192.0.2.1/24"}
    {"event": "link", "time", "interface", "carrier"}
    {"event": "exit", "time", "pid", "status"}
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from contextlib import suppress
from typing import Any

_LINK_GROUP, _IPV4_ADDRESS_GROUP = 0x1, 0x10
_NEWLINK, _NEWADDR, _DELADDR = 16, 20, 21
_IFLA_IFNAME, _IFA_LOCAL = 3, 2
_LOWER_UP = 0x10000

_ENVIRONMENT = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8", "HOME": "/root"}


def publish(event: str, **fields: Any) -> None:
    print(json.dumps({"event": event, **fields}), flush=True)


def attributes(data: bytes) -> dict[int, bytes]:
    """Parses the attributes of an rtnetlink message."""
    found = {}
    at = 0
    while at + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, at)
        if length < 4:
            break
        found[kind & 0x3FFF] = data[at + 4 : at + length]
        at += (length + 3) & ~3
    return found


class Watch:
    """Publishes changes of the station's links and addresses."""

    def __init__(self) -> None:
        self.socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self.socket.bind((0, _LINK_GROUP | _IPV4_ADDRESS_GROUP))
        self._names: dict[int, str] = {}

    def read(self) -> None:
        data = self.socket.recv(65536)
        now = time.monotonic()
        at = 0
        while at + 16 <= len(data):
            length, kind = struct.unpack_from("=IH", data, at)
            body = data[at + 16 : at + length]
            if kind == _NEWLINK and body[0] == socket.AF_UNSPEC:
                self._link(body, now)
            elif kind in (_NEWADDR, _DELADDR):
                self._address(kind == _NEWADDR, body, now)
            at += (length + 3) & ~3

    def _link(self, body: bytes, now: float) -> None:
        _, _, index, flags, _ = struct.unpack_from("=BxHiII", body)
        name = attributes(body[16:]).get(_IFLA_IFNAME, b"").rstrip(b"\0").decode()
        self._names[index] = name
        publish("link", time=now, interface=name, carrier=bool(flags & _LOWER_UP))

    def _address(self, added: bool, body: bytes, now: float) -> None:
        _, prefix, _, _, index = struct.unpack_from("=BBBBI", body)
        local = attributes(body[8:]).get(_IFA_LOCAL)
        if local:
            text = f"{socket.inet_ntoa(local)}/{prefix}"
            interface = self._names.get(index, str(index))
            publish("address", time=now, added=added, interface=interface, address=text)


def start_client(root: str, argv: list[str], cgroup: str) -> tuple[int, float]:
    """Starts a client; returns its process and the time of its execve."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            with open(f"{cgroup}/cgroup.procs", "w") as procs:
                procs.write("0")
            os.setsid()
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, signal.SIGPIPE, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            os.chroot(root)
            os.chdir("/")
            os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
            log = os.open("/run/client.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.write(writer, struct.pack("d", time.monotonic()))
            os.execve(argv[0], argv, _ENVIRONMENT)
        except BaseException as error:
            os.write(2, f"{argv[0]}: {error}\n".encode())
        finally:
            os._exit(127)
    os.close(writer)
    data = os.read(reader, 8)
    os.close(reader)
    return pid, struct.unpack("d", data)[0] if data else time.monotonic()


def execute_command(root: str, command: dict[str, Any]) -> None:
    if command["do"] == "run":
        result = subprocess.run(
            ["chroot", root, *command["argv"]],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=_ENVIRONMENT,
        )
        publish("ran", status=result.returncode, output=result.stdout)
    elif command["do"] == "exec":
        pid, when = start_client(root, command["argv"], command["cgroup"])
        publish("exec", pid=pid, time=when)
    elif command["do"] == "signal":
        when = time.monotonic()
        with suppress(ProcessLookupError):
            os.kill(command["pid"], command["signal"])
        publish("signalled", time=when)


def main() -> int:
    root = sys.argv[1]
    watch = Watch()
    woken, wake = socket.socketpair()
    wake.setblocking(False)
    woken.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake.fileno(), warn_on_full_buffer=False)
    publish("ready")
    buffer = b""
    while True:
        sources: list[socket.socket | int] = [watch.socket, woken, 0]
        ready, _, _ = select.select(sources, [], [])
        if watch.socket in ready:
            watch.read()
        if woken in ready:
            woken.recv(4096)
            while True:
                try:
                    pid, status = os.waitpid(-1, os.WNOHANG)
                except ChildProcessError:
                    break
                if pid == 0:
                    break
                code = os.waitstatus_to_exitcode(status)
                publish("exit", time=time.monotonic(), pid=pid, status=code)
        if 0 in ready:
            data = os.read(0, 65536)
            if not data:
                return 0
            *lines, buffer = (buffer + data).split(b"\n")
            for line in lines:
                execute_command(root, json.loads(line))


if __name__ == "__main__":
    sys.exit(main())
