"""Debian 13 roots below build/roots, and how commands run in them.

A root is a directory made once by mmdebstrap and kept until its recipe changes.
A command runs in it with mount, pid and ipc namespaces of its own, so nothing
outlives the command or has to be unmounted, and without a network unless it is
asked for. What the command changes in the root is forgotten, or kept apart from
it as a layer: the root that builds the packages holds their Build-Depends and
nothing else.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent
BUILD = TOP / "build"
SUITE = "trixie"

# Runs as the first process of the namespaces: mounts the root from the directories $1,
# keeps changes in the directory $2 if it is given, and executes the remaining arguments.
# A command with a network has that of this machine, with its resolver and certificates.
# A command without a network has a loopback device.
_ENTER = """
lower=$1 changes=$2 network=$3 binds=$4 directory=$5; shift 5
mount -t tmpfs -o mode=755 tmpfs "$MOUNTPOINT"
changes=${changes:-$MOUNTPOINT/changes}
here=$MOUNTPOINT/root
mkdir -p "$here" "$changes/upper" "$changes/work"
mount -t overlay -o "lowerdir=$lower,upperdir=$changes/upper,workdir=$changes/work" overlay "$here"
mount -t proc proc "$here/proc"
mount --rbind /dev "$here/dev"
mount -t tmpfs -o mode=1777 tmpfs "$here/tmp"
mkdir -p "$here/work"
mount -t tmpfs tmpfs "$here/work"
printf '%s' "$binds" | while IFS='|' read -r source target; do
    mkdir -p "$here$target"
    mount --bind "$source" "$here$target"
done
if [ "$network" = yes ]; then
    cp -L /etc/resolv.conf "$here/etc/resolv.conf"
    if [ -e "$here$CERTIFICATES" ] && [ -e "$CERTIFICATES" ]; then
        mount --bind "$CERTIFICATES" "$here$CERTIFICATES"
    fi
else
    ip link set lo up
fi
exec chroot "$here" /usr/bin/env --ignore-environment --chdir="$directory" "$@"
"""

_ENVIRONMENT = {
    "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/tmp",
    "LC_ALL": "C.UTF-8",
    "DEBIAN_FRONTEND": "noninteractive",
}


# Other files of this machine that describe its network.
_PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")


class CommandFailed(Exception):
    """A command in a root failed; it has printed the reason."""

    def __init__(self, command: Sequence[str], status: int):
        super().__init__(f"{shlex.join(command)}: failed with status {status}")


@contextmanager
def locked() -> Iterator[None]:
    """Holds the lock of build/, so that no other process changes it meanwhile."""
    BUILD.mkdir(exist_ok=True)
    with (BUILD / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def say(text: str) -> None:
    """Prints a line with the current step."""
    print(f"==> {text}", flush=True)


def digest(*parts: str | bytes | Path) -> str:
    """Returns a digest of `parts`; a path counts with the bytes of its file."""
    total = hashlib.sha256()
    for part in parts:
        data = part.read_bytes() if isinstance(part, Path) else part
        data = data.encode() if isinstance(data, str) else data
        total.update(hashlib.sha256(data).digest())
    return total.hexdigest()


class Stamp:
    """Records in a file the inputs of a result."""

    def __init__(self, path: Path, content: str):
        self.path = path
        self.content = content

    def fresh(self) -> bool:
        return self.path.exists() and self.path.read_text() == self.content

    def clear(self) -> None:
        self.path.unlink(missing_ok=True)

    def set(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(self.content)


class Root:
    """A Debian root: the directories of its overlay, uppermost first."""

    def __init__(self, *directories: Path):
        self.directories = directories

    def layer(self, directory: Path) -> Root:
        """Returns the root with the changes of a command, kept in `directory`, on top."""
        return Root(directory / "upper", *self.directories)

    def run(
        self,
        command: Sequence[str],
        *,
        binds: Mapping[str, Path] | None = None,
        env: Mapping[str, str] | None = None,
        directory: str = "/",
        network: bool = False,
        changes: Path | None = None,
    ) -> None:
        """Runs `command` as root in `directory` with `binds` (place in the root →
        directory outside) mounted; keeps what it changes as the layer `changes`.
        Its output goes to ours; raises `CommandFailed`."""
        self._run(command, binds or {}, env or {}, directory, network, changes)

    def output(
        self,
        command: Sequence[str],
        *,
        binds: Mapping[str, Path] | None = None,
        env: Mapping[str, str] | None = None,
        directory: str = "/",
    ) -> bytes:
        """Returns the output of `command`; otherwise as `run`, without a network."""
        return self._run(command, binds or {}, env or {}, directory, False, None, capture=True)

    def _run(
        self,
        command: Sequence[str],
        binds: Mapping[str, Path],
        env: Mapping[str, str],
        directory: str,
        network: bool,
        changes: Path | None,
        capture: bool = False,
    ) -> bytes:
        need_root()
        unshare = ["unshare", "--mount", "--pid", "--ipc", "--fork", "--kill-child"]
        if not network:
            unshare.append("--net")
        mounts = "".join(f"{source}|{target}\n" for target, source in binds.items())
        proxies = {name: os.environ[name] for name in _PROXIES if network and name in os.environ}
        variables = [f"{k}={v}" for k, v in {**_ENVIRONMENT, **proxies, **env}.items()]
        lower = ":".join(str(path) for path in self.directories)
        enter = ["sh", "-euc", _ENTER, "enter", lower, str(changes or "")]
        enter += ["yes" if network else "no", mounts, directory, *variables, *command]
        result = subprocess.run(
            [*unshare, *enter],
            env={
                **os.environ,
                "MOUNTPOINT": str(_mountpoint()),
                "CERTIFICATES": "/etc/ssl/certs/ca-certificates.crt",
            },
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if capture else None,
        )
        if result.returncode != 0:
            raise CommandFailed(command, result.returncode)
        return result.stdout or b""


def _mountpoint() -> Path:
    path = BUILD / "roots" / "mnt"
    path.mkdir(parents=True, exist_ok=True)
    return path


def make_root(name: str, packages: Sequence[str], hooks: Sequence[str] = (), key: str = "") -> Root:
    """The root `name` with `packages`, made unless it is there already.

    `hooks` are mmdebstrap's customize hooks, with $TOP in their environment;
    `key` stands for the files that they read."""
    path = BUILD / "roots" / name
    recipe = ["--variant=minbase", f"--include={','.join(packages)}"]
    # No fsync: the root can be made again.
    recipe += ["--dpkgopt=force-unsafe-io", '--aptopt=Acquire::Retries "5"']
    # mmdebstrap copies the name of this machine, which is not that of a host.
    recipe += ['--customize-hook=rm -f "$1/etc/hostname"']
    recipe += [f"--customize-hook={hook}" for hook in hooks]
    stamp = Stamp(path.with_suffix(".stamp"), digest(SUITE, *recipe, key))
    if not stamp.fresh():
        say(f"Making the Debian root {path.relative_to(TOP)}")
        need_root()
        stamp.clear()
        shutil.rmtree(path, ignore_errors=True)
        path.parent.mkdir(parents=True, exist_ok=True)
        log = path.with_suffix(".log")
        with log.open("wb") as output:
            result = subprocess.run(
                ["mmdebstrap", *recipe, SUITE, str(path)],
                env={**os.environ, "TOP": str(TOP)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        if result.returncode != 0:
            sys.exit(f"{log.read_text(errors='replace')}\nmmdebstrap could not make {path}")
        stamp.set()
    return Root(path)


def build_root() -> Root:
    """Returns the root with build-essential and the Build-Depends of debian/control."""
    control = TOP / "debian" / "control"
    hook = (
        'mkdir -p "$1/tmp/source/debian" && '
        'cp "$TOP/debian/control" "$1/tmp/source/debian/control" && '
        'chroot "$1" apt-get --yes --no-install-recommends build-dep /tmp/source && '
        'rm -r "$1/tmp/source"'
    )
    return make_root("build", ["build-essential"], [hook], build_depends(control.read_text()))


def tools_root() -> Root:
    """Returns the build root, with the tools that check source and packages on top."""
    packages = ["ca-certificates", "lintian", "rust-clippy", "rustfmt"]
    root = build_root()
    layer = BUILD / "roots" / "tools"
    made_from = root.directories[0].with_suffix(".stamp").read_text()
    stamp = Stamp(layer.with_suffix(".stamp"), digest(made_from, *packages))
    if not stamp.fresh():
        say(f"Adding tools in {layer.relative_to(TOP)}")
        need_root()
        stamp.clear()
        shutil.rmtree(layer, ignore_errors=True)
        install = (
            "(apt-get update && apt-get --yes --no-install-recommends install "
            f"{' '.join(packages)} && apt-get clean) >/tmp/log 2>&1 || (cat /tmp/log; exit 1)"
        )
        root.run(["sh", "-c", install], network=True, changes=layer)
        stamp.set()
    return root.layer(layer)


def build_depends(control: str) -> str:
    """Returns the Build-Depends field of a debian/control file, unparsed."""
    lines = control.split("\n\n", 1)[0].splitlines()
    field: list[str] = []
    for line in lines:
        if line.startswith("Build-Depends:") or (field and line.startswith(" ")):
            field.append(line)
        elif field:
            break
    return "\n".join(field)


def need_root() -> None:
    """Exits with an explanation unless the program runs as root."""
    if os.geteuid() != 0:
        sys.exit("Making Debian roots and mounting them needs root: use sudo.")
