"""image/agent packs agents, and buildosctl publishes them."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from buildroot import TOP, Root

CONTROL = """\
Package: {package}
Version: 0.18.0-1
Architecture: {architecture}
Maintainer: Example <example@example.com>
Description: an agent
"""


class Packages:
    """Makes packages in a directory, and packs them."""

    def __init__(self, directory: Path):
        self.directory = directory

    def make(
        self,
        files: dict[str, str],
        script: str = "",
        package: str = "bbot-agent",
        architecture: str = "amd64",
        mode: int = 0o755,
    ) -> Path:
        root = self.directory / "package" / package
        control = root / "DEBIAN/control"
        control.parent.mkdir(parents=True)
        control.write_text(CONTROL.format(package=package, architecture=architecture))
        if script:
            (root / "DEBIAN/postinst").write_text(script)
            (root / "DEBIAN/postinst").chmod(0o755)
        for name, content in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_text(content)
            (root / name).chmod(mode)
        made = self.directory / f"{package}.deb"
        build = ["dpkg-deb", "--build", "--root-owner-group", str(root), str(made)]
        subprocess.run(build, check=True, capture_output=True)
        subprocess.run(["rm", "-r", str(root)], check=True)
        return made

    def pack(self, *packages: Path, output: str = ".") -> subprocess.CompletedProcess[str]:
        command = [str(TOP / "image/agent"), *map(str, packages), "--output", output]
        return subprocess.run(command, capture_output=True, text=True, cwd=self.directory)

    def refused(self, *packages: Path, output: str = ".") -> str:
        done = self.pack(*packages, output=output)
        assert done.returncode == 1 and not list(self.directory.glob("*.raw")), done
        return done.stderr.removeprefix("image/agent: ")


@pytest.fixture
def packages(tmp_path: Path) -> Packages:
    return Packages(tmp_path)


AGENT = {"usr/bin/bbot-agent": "#!/bin/sh\n"}


def test_extension_has_usr_and_release(packages: Packages) -> None:
    agent = packages.make(AGENT)
    library = packages.make({"usr/lib/libbbot.so": "x"}, package="libbbot")
    done = packages.pack(agent, library)
    raw = packages.directory / "bbot-agent_0.18.0-1.raw"
    assert (done.returncode, done.stderr) == (0, ""), done
    listed = subprocess.run(
        ["unsquashfs", "-lls", str(raw)], check=True, capture_output=True, text=True
    ).stdout
    assert "-rwxr-xr-x root/root" in listed
    for file in ("usr/bin/bbot-agent", "usr/lib/libbbot.so"):
        assert f"squashfs-root/{file}\n" in listed
    release = "usr/lib/extension-release.d/extension-release.bbot-agent"
    text = subprocess.run(["unsquashfs", "-cat", str(raw), release], check=True, capture_output=True)
    assert text.stdout == b"ID=debian\nVERSION_ID=13\nARCHITECTURE=x86-64\n"
    first = raw.read_bytes()
    assert packages.pack(agent, library).returncode == 0
    assert raw.read_bytes() == first


def test_package_that_needs_more_than_usr_is_refused(packages: Packages) -> None:
    outside = packages.make({**AGENT, "etc/bbot.conf": "x"})
    assert packages.refused(outside) == (
        "bbot-agent.deb has /etc, and an extension has only /usr: build the package without it, "
        "or add the package to the image with image/build\n"
    )
    script = packages.make(AGENT, script="#!/bin/sh\nset -e\nadduser build\n")
    assert "has the maintainer script postinst, which no host runs" in packages.refused(script)
    privileged = packages.make(AGENT, mode=0o4755)
    assert "/usr/bin/bbot-agent with a set-user-ID" in packages.refused(privileged)
    agent, same = packages.make(AGENT), packages.make(AGENT, package="other")
    assert "both have /usr/bin/bbot-agent" in packages.refused(agent, same)
    assert "is not NAME_VERSION.raw" in packages.refused(agent, output="bbot agent.raw")
    arm = packages.make({"usr/bin/x": "x"}, package="other", architecture="arm64")
    assert "packages of several architectures" in packages.refused(agent, arm)
    assert "dpkg-deb failed" in packages.refused(packages.directory / "no.deb")


def test_script_without_effect_is_accepted(packages: Packages) -> None:
    script = "#!/bin/sh\nset -e\n# Nothing to do.\nexit 0\n"
    assert packages.pack(packages.make(AGENT, script=script)).returncode == 0


def test_file_for_the_host_is_reported(packages: Packages) -> None:
    unit = "usr/lib/systemd/system/bbot.service"
    done = packages.pack(packages.make({**AGENT, unit: "[Service]\n"}))
    assert done.returncode == 0
    assert done.stderr == f"image/agent: the host will not see /{unit}\n"


def test_agent_is_published_and_signed(root: Root, packages: Packages) -> None:
    assert packages.pack(packages.make(AGENT)).returncode == 0
    (packages.directory / "keys").mkdir(mode=0o700)
    script = """
        set -eu
        gpg --batch --quiet --passphrase "" --quick-generate-key op@desk ed25519 sign
        buildosctl publish init www >/dev/null
        buildosctl publish agent bbot-agent_0.18.0-1.raw --tree www
        buildosctl publish promote www --key op@desk
        buildosctl publish agent bbot-agent_0.18.0-1.raw --tree www --name 0.19.0
        buildosctl publish show www
    """
    output = root.output(
        ["sh", "-c", script],
        binds={"/work/desk": packages.directory},
        env={"GNUPGHOME": "/work/desk/keys"},
        directory="/work/desk",
    ).decode()
    assert "agent bbot-agent version 0.18.0-1: 4.0 KiB for each host" in output
    assert "+ agent bbot-agent version 0.18.0-1\n" in output
    assert "~ agent bbot-agent version 0.19.0, was version 0.18.0-1\n" in output
