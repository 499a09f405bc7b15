"""A build host without a machine: systemd as PID 1 of namespaces of its own, in
a Debian 13 root with our packages, with veth pairs as NICs.

What it writes is in memory and gone when it stops."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from buildroot import Root
from cgroup import make_cgroup, remove_cgroup
from simlan.closing import Closing
from simlan.lan import Lan, Nic
from simlan.process import child_of, close, run, start
from simlan.wait import DEADLINE, wait_for

T = TypeVar("T")

# Waits for the bus's socket, as the network may be there before it. D-Bus itself then
# waits for the daemon's name.
_SOON = ["--watch-bind=yes"]

# Assembles the root and becomes systemd. Waits for a line on its input before
# that: the NICs come first, as they do on a machine. `container` tells systemd
# not to expect a kernel of its own; then it leaves it to us to have mounts seen in
# the namespaces of its services, without which these get no credentials.
_BOOT = """
lower=$1; shift
top=/run
mount -t tmpfs -o mode=755 tmpfs $top
mkdir $top/upper $top/work $top/root
mount -t overlay -o "lowerdir=$lower,upperdir=$top/upper,workdir=$top/work" overlay $top/root
root=$top/root
mount -t proc proc $root/proc
# Of the settings below /proc/sys only those of the network are the host's own.
mkdir $top/sysctl
mount --bind $root/proc/sys/net $top/sysctl
mount --bind $root/proc/sys $root/proc/sys
mount -o remount,bind,ro $root/proc/sys
mount --bind $top/sysctl $root/proc/sys/net
mount -t sysfs sysfs $root/sys
mount -t cgroup2 cgroup2 $root/sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs $root/run
mount -t tmpfs -o mode=1777 tmpfs $root/tmp
mount -t tmpfs -o mode=755 tmpfs $root/dev
for device in null zero full random urandom tty; do
    : >$root/dev/$device
    mount --bind /dev/$device $root/dev/$device
done
mkdir $root/dev/pts $root/dev/shm $root/dev/net
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts $root/dev/pts
mount -t tmpfs -o mode=1777 tmpfs $root/dev/shm
ln -s pts/ptmx $root/dev/ptmx
if [ -e /dev/net/tun ]; then
    : >$root/dev/net/tun
    mount --bind /dev/net/tun $root/dev/net/tun
fi
ip link set lo up
echo '(none)' >/proc/sys/kernel/hostname
echo ready
read -r go
cd $root
mkdir -p .outside
pivot_root . .outside
exec env -i container=other PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin \
    sh -c 'umount -l /.outside && rmdir /.outside && mount --make-rshared / &&
        exec "$@" </dev/null >/dev/null 2>&1' \
    sh /usr/lib/systemd/systemd --system "$@"
"""

# Without this, udev has the kernel announce all devices of the machine again, to
# everybody on it. The host's own are its network interfaces.
_UDEV_TRIGGER = (
    "/etc/systemd/system/systemd-udev-trigger.service.d/test.conf",
    "[Service]\nExecStart=\n"
    "ExecStart=-udevadm trigger --type=devices --action=add --subsystem-match=net\n",
)

# The clock is the machine's own, with what the kernel knows of it. This is what
# systemd-timesyncd says when it has set one.
_SYNCHRONISED = (
    "/etc/tmpfiles.d/test-clock.conf",
    "d /run/systemd/timesync\nf /run/systemd/timesync/synchronized\n",
)
_NO_KERNEL_CLOCK = (
    "/etc/systemd/system/buildos-agentd.service.d/test-clock.conf",
    "[Service]\nSystemCallFilter=~clock_adjtime\n",
)

_HOSTS = itertools.count(1)


class Host(Closing):
    """A build host with a root, see roots.py."""

    running: ClassVar[list[Host]] = []
    """The hosts that run now."""

    def __init__(self, root: Root, name: str = "host"):
        self.root = root
        self.name = name
        self.nics: list[Nic] = []
        self._process: subprocess.Popen[str] | None = None
        self._pid = 0
        self._cgroup: Path | None = None
        self._files: dict[str, str] = dict([_UDEV_TRIGGER, _SYNCHRONISED])
        self._programs: set[str] = set()
        # The NICs are veth pairs, which netd takes for NICs when it is told to.
        self.file("/etc/buildos/netd.conf.d/10-nics.toml", 'include = ["eth*"]\n')

    def close(self) -> None:
        self.stop()

    # Before it starts

    def file(self, path: str, content: str) -> None:
        """A file that is there when the host boots."""
        self._files[path] = content

    def program(self, path: str, script: str) -> None:
        """A script that can be executed and is there when the host boots."""
        self.file(path, script)
        self._programs.add(path)

    def configure(self, daemon: str, toml: str) -> None:
        """Configuration of a daemon, as an operator writes it."""
        self.file(f"/etc/buildos/{daemon}.conf.d/50-test.toml", toml)

    def without_time(self) -> None:
        """No server has told the time when the host boots, as far as agentd can
        find out: it may not ask the kernel, to which somebody may have told it."""
        self.without_timesyncd()
        self._files.update([_NO_KERNEL_CLOCK])

    def without_timesyncd(self) -> None:
        """systemd-timesyncd has told no time when the host boots."""
        self._files.pop(_SYNCHRONISED[0])

    def command_line(self, parameters: str) -> None:
        """The kernel command line, as our daemons see it. The machine's own is
        replaced in each service's view of /proc."""
        self.file("/etc/buildos-test/cmdline", f"{parameters}\n")
        self.file(
            "/etc/systemd/system/buildos-.service.d/test-cmdline.conf",
            "[Service]\nBindReadOnlyPaths=/etc/buildos-test/cmdline:/proc/cmdline\n",
        )

    # Starting and stopping

    def start(
        self, nics: Sequence[Lan] = (), *, plugged: bool = True, macs: Sequence[str] = ()
    ) -> None:
        """Boots the host with a NIC eth0, eth1, … in each of the given LANs, the
        first of them with the given MAC addresses."""
        assert self._process is None, "the host runs already"
        number = next(_HOSTS)
        self._cgroup = make_cgroup(str(number))
        lower = ":".join(str(path) for path in self.root.directories)
        unshare = ["unshare", "--mount", "--pid", "--uts", "--ipc", "--net", "--cgroup"]
        unshare += ["--fork", "--kill-child", "--propagation=private"]
        # The cgroup must be the process's own before it becomes the root of a
        # namespace.
        join = 'echo 0 >"$1/cgroup.procs"; shift; exec "$@"'
        systemd = ["systemd.unit=multi-user.target", "systemd.log_target=journal"]
        self._process = start(
            ["sh", "-euc", join, "join", str(self._cgroup), *unshare]
            + ["sh", "-euc", _BOOT, "boot", lower, *systemd],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n", "the host's root did not come up"
        pid = child_of(self._process)
        assert pid is not None
        self._pid = pid
        Host.running.append(self)
        for path, content in self._files.items():
            target = Path(f"/proc/{pid}/root/run/root{path}")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(content)
            if path in self._programs:
                target.chmod(0o755)
        for index, lan in enumerate(nics):
            # A prefix of the locally administered range; the number keeps the
            # hosts of one LAN apart.
            mac = f"02:bd:00:00:{number % 256:02x}:{index + 1:02x}"
            mac = macs[index] if index < len(macs) else mac
            self.nics.append(lan.connect(f"eth{index}", mac, pid, plugged))
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        # systemd answers from here on.
        wait_for(
            lambda: (
                run(self.command(["systemctl", "--version"]), check=False)
                and Path(f"/proc/{pid}/root/run/systemd/private").exists()
            ),
            f"{self.name}: systemd runs",
        )

    def wait_for_boot(self, deadline: float = DEADLINE) -> str:
        """Waits until systemd has done what it does at boot: `running` or
        `degraded`."""
        wait = self.command(["systemctl", "is-system-running", "--wait"])
        return wait_for(
            lambda: run(wait, check=False, deadline=deadline).strip() or None,
            f"{self.name}: boot is over",
            deadline,
        )

    def stop(self) -> None:
        """Power off: nothing is asked, everything ends."""
        if self._process is not None:
            if self._pid:
                with suppress(ProcessLookupError):
                    os.kill(self._pid, signal.SIGKILL)
            self._process.kill()
            self._process.wait()
            close(self._process.stdin)
            close(self._process.stdout)
            self._process = None
            self.nics.clear()
            if self in Host.running:
                Host.running.remove(self)
        if self._cgroup is not None:
            remove_cgroup(self._cgroup)
            self._cgroup = None

    def wait_for_end(self, deadline: float = DEADLINE) -> None:
        """Waits until the host has switched itself off."""
        process = self._process
        assert process is not None, "the host does not run"
        wait_for(lambda: process.poll() is not None, f"{self.name}: it is off", deadline)

    # While it runs

    def command(self, command: Sequence[str]) -> list[str]:
        """The command line, for the outside, that runs `command` in the host."""
        return [
            "nsenter", f"--target={self._pid}", "--all", "--root", "--wd", "--",
            "env", "-i", "PATH=/usr/sbin:/usr/bin", "LC_ALL=C.UTF-8", "HOME=/root",
            *command,
        ]  # fmt: skip

    def network(self, namespace: str) -> list[str]:
        """The beginning of a command line, for the outside, that runs a program of
        the outside in the network namespace that a file of the host is."""
        return ["nsenter", f"--net=/proc/{self._pid}/root{namespace}", "--"]

    def run(self, command: str | Sequence[str], *, check: bool = True, deadline: float = 60) -> str:
        """What `command` prints, run by root in the host: a list of arguments,
        or a line for the shell."""
        arguments = ["sh", "-ec", command] if isinstance(command, str) else command
        return run(self.command(arguments), check=check, deadline=deadline)

    def succeeds(self, command: str | Sequence[str]) -> bool:
        arguments = ["sh", "-ec", command] if isinstance(command, str) else command
        result = subprocess.run(
            self.command(arguments),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=60,
        )
        return result.returncode == 0

    def read(self, path: str) -> str:
        return self.run(["cat", path])

    def write(self, path: str, content: str) -> None:
        """Replaces a file of the running host."""
        self.run(["sh", "-ec", 'mkdir -p "${1%/*}"; printf %s "$2" >"$1"', "write", path, content])

    def plug_in(self, lan: Lan, name: str, mac: str) -> None:
        """Gives the running host another NIC."""
        self.nics.append(lan.connect(name, mac, self._pid, True))

    def copy(self, source: Path, target: str) -> None:
        """Copies a file of the outside into the directory `target`."""
        self.run(["mkdir", "-p", target])
        shutil.copy(source, f"/proc/{self._pid}/root{target}/{source.name}")

    def systemctl(self, *arguments: str) -> str:
        return self.run(["systemctl", *arguments])

    def unit(self, name: str, *properties: str) -> dict[str, str]:
        """Properties of a unit as systemd shows them."""
        show = self.systemctl("show", f"--property={','.join(properties)}", name)
        return dict(line.split("=", 1) for line in show.splitlines())

    def active(self, name: str) -> bool:
        return self.unit(name, "ActiveState")["ActiveState"] == "active"

    def status_text(self, name: str) -> str:
        """What the service says of itself in `systemctl status`."""
        return self.unit(name, "StatusText")["StatusText"]

    def failed_units(self) -> list[str]:
        """The lines of `systemctl --failed`."""
        return self.systemctl("list-units", "--failed", "--plain", "--no-legend").splitlines()

    def journal(self, *matches: str) -> list[Mapping[str, str]]:
        """Messages of this boot, oldest first; `matches` as for journalctl."""
        lines = self.run(["journalctl", "--boot", "--output=json", "--no-pager", *matches])
        return [json.loads(line) for line in lines.splitlines()]

    def call(self, daemon: str, method: str) -> None:
        """Calls a method of a daemon's Manager object as root."""
        self.run(["busctl", *_SOON, "call", *manager(daemon), method])

    def bus_property(self, daemon: str, name: str) -> Any:
        """A property of a daemon's Manager object; `daemon` is the last word of
        its bus name: network1."""
        out = self.run(["busctl", *_SOON, "--json=short", "get-property", *manager(daemon), name])
        return json.loads(out)["data"]

    def addresses(self, interface: str) -> list[str]:
        """The IPv4 addresses of an interface, with their prefixes."""
        show = json.loads(self.run(["ip", "-json", "-4", "address", "show", "dev", interface]))
        return [f"{a['local']}/{a['prefixlen']}" for link in show for a in link["addr_info"]]

    def link(self, interface: str) -> dict[str, Any]:
        """An interface as `ip -json link` shows it."""
        show = self.run(["ip", "-json", "-details", "link", "show", "dev", interface])
        link: dict[str, Any] = json.loads(show)[0]
        return link

    def links(self) -> list[dict[str, Any]]:
        """All interfaces as `ip -json link` shows them."""
        links: list[dict[str, Any]] = json.loads(self.run(["ip", "-json", "link"]))
        return links

    def state(self) -> dict[str, Any]:
        """What netd knows, as it writes it to /run."""
        state: dict[str, Any] = json.loads(self.read("/run/buildos/netd/state.json"))
        return state

    def ledger(self) -> list[dict[str, Any]]:
        """The entries of netd's decision ledger."""
        entries: list[dict[str, Any]] = json.loads(self.read("/run/buildos/netd/ledger.json"))[
            "entries"
        ]
        return entries

    def main_pid(self, unit: str) -> int:
        """The unit's main process, by the host's own numbers; 0 while there is none."""
        return int(self.unit(unit, "MainPID")["MainPID"])

    # What several scenarios do

    def wait_online(self) -> str:
        """Waits for a lease; the address of br0."""
        addresses = self.wait_for(lambda: self.addresses("br0"), "a lease on br0")
        assert len(addresses) == 1, addresses
        return addresses[0].split("/")[0]

    def wait_for(
        self, condition: Callable[[], T | None], what: str, deadline: float = DEADLINE
    ) -> T:
        """`wait.wait_for`, that also says which host."""
        return wait_for(condition, f"{self.name}: {what}", deadline)

    def report(self) -> str:
        """What somebody wants to see when a test fails."""
        sections = [
            ("ip address", "ip address"),
            ("ip route", "ip route"),
            ("failed units", "systemctl --failed --no-pager"),
            ("units of ours", "systemctl status --no-pager --lines=0 'buildos*'"),
            ("journal", "journalctl --boot --no-pager --output=short-monotonic | tail -n 300"),
        ]
        texts = [f"--- {title}\n{self.run(c, check=False)}" for title, c in sections]
        return "\n".join(texts)


def manager(daemon: str) -> list[str]:
    """Bus name, path and interface of a daemon's Manager, as busctl wants them."""
    name = f"org.build2.buildos.{daemon}"
    return [name, f"/org/build2/buildos/{daemon}", f"{name}.Manager"]
