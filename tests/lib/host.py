"""A build host in namespaces: systemd as PID 1, a Debian 13 root with buildos's packages,
veth pairs as NICs.

The host writes to memory only; a stop discards its changes."""

from __future__ import annotations

import itertools
import json
import os
import re
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

# Waits for the bus's socket: the network may be up before the bus. D-Bus activation waits
# for the daemon's name.
_WAIT_FOR_BUS = ["--watch-bind=yes"]

# Assembles the root and executes systemd. Before that it waits for a line on its input:
# as on a machine, the NICs exist before systemd. With `container` systemd expects no
# kernel of its own and does not share mounts; without `--make-rshared` services would
# get no credentials.
_BOOT = """
lower=$1; shift
top=/run
mount -t tmpfs -o mode=755 tmpfs $top
mkdir $top/upper $top/work $top/root
mount -t overlay -o "lowerdir=$lower,upperdir=$top/upper,workdir=$top/work" overlay $top/root
root=$top/root
mount -t proc proc $root/proc
# Below /proc/sys the host has only the network's settings to itself.
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

# By default udev makes the kernel announce every device again, to all listeners on the
# machine. Only the network interfaces belong to the host.
_UDEV_TRIGGER = (
    "/etc/systemd/system/systemd-udev-trigger.service.d/test.conf",
    "[Service]\nExecStart=\n"
    "ExecStart=-udevadm trigger --type=devices --action=add --subsystem-match=net\n",
)

# Hosts share the machine's clock. systemd-timesyncd makes this file once it has set the
# clock.
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
    """A build host with a root of roots.py."""

    running: ClassVar[list[Host]] = []
    """The running hosts."""

    def __init__(self, root: Root, name: str = "host"):
        self.root = root
        self.name = name
        self.nics: list[Nic] = []
        self._process: subprocess.Popen[str] | None = None
        self._pid = 0
        self._cgroup: Path | None = None
        self._files: dict[str, str] = dict([_UDEV_TRIGGER, _SYNCHRONISED])
        self._programs: set[str] = set()
        # By default netd does not use veth pairs.
        self.file("/etc/buildos/netd.conf.d/10-nics.toml", 'include = ["eth*"]\n')

    def close(self) -> None:
        """Stops the host."""
        self.stop()

    # Before it starts

    def file(self, path: str, content: str) -> None:
        """Adds a file that exists at boot."""
        self._files[path] = content

    def program(self, path: str, script: str) -> None:
        """Adds an executable script that exists at boot."""
        self.file(path, script)
        self._programs.add(path)

    def configure(self, daemon: str, toml: str) -> None:
        """Adds a configuration file of a daemon, where an operator puts it."""
        self.file(f"/etc/buildos/{daemon}.conf.d/50-test.toml", toml)

    def without_time(self) -> None:
        """Makes the clock unsynchronised for agentd: no file of systemd-timesyncd, and no
        access to the kernel's state, which is the machine's."""
        self.without_timesyncd()
        self._files.update([_NO_KERNEL_CLOCK])

    def without_timesyncd(self) -> None:
        """Removes the file by which systemd-timesyncd reports a synchronised clock."""
        self._files.pop(_SYNCHRONISED[0])

    def command_line(self, parameters: str) -> None:
        """Sets the kernel command line for buildos's services, by a file mounted over
        /proc/cmdline in each of them."""
        self.file("/etc/buildos-test/cmdline", f"{parameters}\n")
        self.file(
            "/etc/systemd/system/buildos-.service.d/test-cmdline.conf",
            "[Service]\nBindReadOnlyPaths=/etc/buildos-test/cmdline:/proc/cmdline\n",
        )

    # Starting and stopping

    def start(
        self, nics: Sequence[Lan] = (), *, plugged: bool = True, macs: Sequence[str] = ()
    ) -> None:
        """Boots the host with a NIC eth0, eth1, … for each LAN in `nics`; the first NICs
        get the MAC addresses `macs`."""
        assert self._process is None, "the host runs already"
        number = next(_HOSTS)
        self._cgroup = make_cgroup(str(number))
        lower = ":".join(str(path) for path in self.root.directories)
        unshare = ["unshare", "--mount", "--pid", "--uts", "--ipc", "--net", "--cgroup"]
        unshare += ["--fork", "--kill-child", "--propagation=private"]
        # The process joins its cgroup before that becomes the root of a namespace.
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
            # Locally administered; the number distinguishes the hosts of a LAN.
            mac = f"02:bd:00:00:{number % 256:02x}:{index + 1:02x}"
            mac = macs[index] if index < len(macs) else mac
            self.nics.append(lan.connect(f"eth{index}", mac, pid, plugged))
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        # From here on systemd answers.
        wait_for(
            lambda: (
                run(self.command(["systemctl", "--version"]), check=False)
                and Path(f"/proc/{pid}/root/run/systemd/private").exists()
            ),
            f"{self.name}: systemd runs",
        )

    @property
    def pid(self) -> int:
        """PID 1 of the running host, in the PID namespace of the tests."""
        return self._pid

    def wait_for_boot(self, deadline: float = DEADLINE) -> str:
        """Waits for the end of the boot; returns `running` or `degraded`."""
        wait = self.command(["systemctl", "is-system-running", "--wait"])
        return wait_for(
            lambda: run(wait, check=False, deadline=deadline).strip() or None,
            f"{self.name}: end of the boot",
            deadline,
        )

    def stop(self) -> None:
        """Ends the host at once, like a power failure."""
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
        """Waits until the host has powered off."""
        process = self._process
        assert process is not None, "the host does not run"
        wait_for(lambda: process.poll() is not None, f"{self.name}: power off", deadline)

    # While it runs

    def command(self, command: Sequence[str]) -> list[str]:
        """Returns the command line for the outside that runs `command` in the host."""
        return [
            "nsenter", f"--target={self._pid}", "--all", "--root", "--wd", "--",
            "env", "-i", "PATH=/usr/sbin:/usr/bin", "LC_ALL=C.UTF-8", "HOME=/root",
            *command,
        ]  # fmt: skip

    def network(self, namespace: str) -> list[str]:
        """Returns the prefix of a command line for the outside that runs a program of the
        outside in a network namespace; `namespace` is its file in the host."""
        return ["nsenter", f"--net=/proc/{self._pid}/root{namespace}", "--"]

    def run(self, command: str | Sequence[str], *, check: bool = True, deadline: float = 60) -> str:
        """Runs `command` as root in the host, a list of arguments or a line for the shell;
        returns its standard output."""
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
        """Adds a NIC to the running host."""
        self.nics.append(lan.connect(name, mac, self._pid, True))

    def copy(self, source: Path, target: str) -> None:
        """Copies a file of the outside into the directory `target`."""
        self.run(["mkdir", "-p", target])
        shutil.copy(source, f"/proc/{self._pid}/root{target}/{source.name}")

    def systemctl(self, *arguments: str) -> str:
        return self.run(["systemctl", *arguments])

    def unit(self, name: str, *properties: str) -> dict[str, str]:
        """Returns properties of a unit as `systemctl show` prints them."""
        show = self.systemctl("show", f"--property={','.join(properties)}", name)
        return dict(line.split("=", 1) for line in show.splitlines())

    def active(self, name: str) -> bool:
        return self.unit(name, "ActiveState")["ActiveState"] == "active"

    def status_text(self, name: str) -> str:
        """Returns the STATUS= of a service."""
        return self.unit(name, "StatusText")["StatusText"]

    def failed_units(self) -> list[str]:
        """Returns the lines of `systemctl --failed`."""
        return self.systemctl("list-units", "--failed", "--plain", "--no-legend").splitlines()

    def journal(self, *matches: str) -> list[Mapping[str, str]]:
        """Returns messages of this boot, oldest first; `matches` as in journalctl(1)."""
        lines = self.run(["journalctl", "--boot", "--output=json", "--no-pager", *matches])
        return [json.loads(line) for line in lines.splitlines()]

    def call(self, daemon: str, method: str) -> None:
        """Calls a method of a daemon's Manager object as root."""
        self.run(["busctl", *_WAIT_FOR_BUS, "call", *manager(daemon), method])

    def bus_property(self, daemon: str, name: str) -> Any:
        """Returns a property of a daemon's Manager object; `daemon` is the last part of
        its bus name, for example network1."""
        command = ["busctl", *_WAIT_FOR_BUS, "--json=short", "get-property"]
        return json.loads(self.run([*command, *manager(daemon), name]))["data"]

    def addresses(self, interface: str) -> list[str]:
        """Returns the IPv4 addresses of an interface, with their prefixes."""
        show = json.loads(self.run(["ip", "-json", "-4", "address", "show", "dev", interface]))
        return [f"{a['local']}/{a['prefixlen']}" for link in show for a in link["addr_info"]]

    def link(self, interface: str) -> dict[str, Any]:
        """Returns an interface as `ip -json -details link` prints it."""
        show = self.run(["ip", "-json", "-details", "link", "show", "dev", interface])
        link: dict[str, Any] = json.loads(show)[0]
        return link

    def links(self) -> list[dict[str, Any]]:
        """Returns all interfaces as `ip -json link` prints them."""
        links: list[dict[str, Any]] = json.loads(self.run(["ip", "-json", "link"]))
        return links

    def state(self) -> dict[str, Any]:
        """Returns netd's state file."""
        state: dict[str, Any] = json.loads(self.read("/run/buildos/netd/state.json"))
        return state

    def history(self) -> list[dict[str, Any]]:
        """Returns the entries of netd's history file."""
        entries: list[dict[str, Any]] = json.loads(self.read("/run/buildos/netd/ledger.json"))[
            "entries"
        ]
        return entries

    def main_pid(self, unit: str) -> int:
        """Returns the unit's main process in the host's PID namespace; 0 if it has none."""
        return int(self.unit(unit, "MainPID")["MainPID"])

    def outside_pid(self, unit: str) -> int:
        """Returns the unit's main process in the PID namespace of the tests."""
        namespace = os.readlink(f"/proc/{self._pid}/ns/pid")
        inside = self.main_pid(unit)
        for process in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if os.readlink(process / "ns/pid") != namespace:
                    continue
                numbers = re.search(r"^NSpid:(.*)", (process / "status").read_text(), re.M)
                if numbers and int(numbers[1].split()[-1]) == inside:
                    return int(process.name)
        raise AssertionError(f"{unit} has no process")

    def resident(self, unit: str) -> int:
        """Returns the resident memory of the unit's main process, in kB."""
        status = self.read(f"/proc/{self.main_pid(unit)}/status")
        return int(status.split("VmRSS:")[1].split()[0])

    # Waiting and reporting

    def wait_online(self) -> str:
        """Waits for a lease; returns the address of br0."""
        addresses = self.wait_for(lambda: self.addresses("br0"), "a lease on br0")
        assert len(addresses) == 1, addresses
        return addresses[0].split("/")[0]

    def wait_for(
        self, condition: Callable[[], T | None], what: str, deadline: float = DEADLINE
    ) -> T:
        """Calls `wait.wait_for` with the host's name in the error."""
        return wait_for(condition, f"{self.name}: {what}", deadline)

    def report(self) -> str:
        """Returns addresses, routes, units and journal, for a failed test."""
        sections = [
            ("ip address", "ip address"),
            ("ip route", "ip route"),
            ("failed units", "systemctl --failed --no-pager"),
            ("units of buildos", "systemctl status --no-pager --lines=0 'buildos*'"),
            ("journal", "journalctl --boot --no-pager --output=short-monotonic | tail -n 300"),
        ]
        texts = [f"--- {title}\n{self.run(c, check=False)}" for title, c in sections]
        return "\n".join(texts)


def manager(daemon: str) -> list[str]:
    """Returns bus name, path and interface of a daemon's Manager, for busctl."""
    name = f"org.build2.buildos.{daemon}"
    return [name, f"/org/build2/buildos/{daemon}", f"{name}.Manager"]
