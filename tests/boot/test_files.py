"""The records of image/build and the image's scripts, without a machine."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

IMAGE = Path(__file__).resolve().parents[2] / "image"
LIBRARY = IMAGE / "root/usr/lib/buildos-image"


def load(name: str) -> ModuleType:
    """Imports a program of image/ as a module."""
    loader = importlib.machinery.SourceFileLoader(name, str(IMAGE / name))
    spec = importlib.util.spec_from_loader(name, loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    loader.exec_module(module)
    return module


describe = load("describe")

STATUS = """\
Package: zlib1g
Status: install ok installed
Architecture: amd64
Multi-Arch: same
Source: zlib (1:1.3)
Version: 1:1.3+b1
Maintainer: Nick Name <name@example.org>
Description: compression
 with: a colon

Package: gone
Status: deinstall ok config-files
Architecture: all
Version: 1

Package: buildos
Status: install ok installed
Architecture: all
Version: 0.1.0-1
"""

INDEX = "Package: {}\nVersion: {}\nArchitecture: {}\nSHA256: {}\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with two packages; the index of buildos's packages is `index` beside it."""
    root = tmp_path / "root"
    for directory in ("var/lib/dpkg/info", "var/lib/apt/lists", "usr/lib"):
        (root / directory).mkdir(parents=True)
    (root / "var/lib/dpkg/status").write_text(STATUS)
    (root / "var/lib/dpkg/info/zlib1g:amd64.list").write_text("/.\n/usr\n/usr/lib/libz.so.1\n/no\n")
    (root / "usr/lib/libz.so.1").write_text("12345")
    lists = root / "var/lib/apt/lists/deb.debian.org_debian_dists_trixie_main_binary-amd64_Packages"
    lists.write_text(INDEX.format("zlib1g", "1:1.3+b1", "amd64", "a" * 64))
    (tmp_path / "index").write_text(INDEX.format("buildos", "0.1.0-1", "all", "b" * 64))
    return root


def test_manifest_lists_packages_with_digest_and_size(root: Path) -> None:
    packages = describe.installed(root, root.parent / "index")
    assert describe.manifest(packages).splitlines()[1:] == [
        f"buildos 0.1.0-1 all {'b' * 64} 0",
        f"zlib1g 1:1.3+b1 amd64 {'a' * 64} 5",
    ]


def test_sbom_names_image_packages_and_sources(root: Path) -> None:
    packages = describe.installed(root, root.parent / "index")
    bill = json.loads(describe.sbom(packages, "0.1.0-1", "feed", 0))
    assert bill["creationInfo"]["created"] == "1970-01-01T00:00:00Z"
    image, buildos, zlib = bill["packages"]
    assert image["versionInfo"] == "0.1.0-1 build feed"
    locators = [p["externalRefs"][0]["referenceLocator"] for p in (buildos, zlib)]
    assert locators == [
        "pkg:deb/buildos/buildos@0.1.0-1?arch=all",
        "pkg:deb/debian/zlib1g@1%3A1.3%2Bb1?arch=amd64",
    ]
    assert zlib["sourceInfo"] == "built from: zlib 1:1.3"
    known = {p["SPDXID"] for p in bill["packages"]} | {"SPDXRef-DOCUMENT"}
    assert {r["relatedSpdxElement"] for r in bill["relationships"]} < known


def test_record_with_other_packages_is_refused(root: Path) -> None:
    packages = describe.installed(root, root.parent / "index")
    record = describe.manifest(packages)
    describe.check(packages, record)
    for old, new, problem in (
        ("1:1.3+b1", "1:1.2", "zlib1g is 1:1.3\\+b1 amd64, but 1:1.2 amd64 in the record"),
        ("b" * 64, "c" * 64, "buildos 0.1.0-1 is not the .deb of the record"),
        ("zlib1g", "zlib2g", "zlib1g .* is not in the record\n.*zlib2g .* is not installed"),
    ):
        with pytest.raises(describe.DescribeError, match=problem):
            describe.check(packages, record.replace(old, new))
    # --prune changes sizes, but no package.
    describe.check(packages, record.replace(" 5\n", " 4\n"))


def test_package_without_index_is_refused(root: Path) -> None:
    (root.parent / "index").write_text("")
    with pytest.raises(describe.DescribeError, match="buildos .* in no index"):
        describe.installed(root, root.parent / "index")


def test_os_release_names_image_version_and_build() -> None:
    text = describe.os_release('PRETTY_NAME="Debian 13"\nID=debian\n', "0.1.0-1", "feed")
    assert text.splitlines() == [
        'PRETTY_NAME="buildos on Debian 13"',
        "IMAGE_ID=buildos",
        'IMAGE_VERSION="0.1.0-1"',
        "BUILD_ID=feed",
        "ID=debian",
    ]


@pytest.mark.parametrize(
    ("line", "values"),
    [
        ("", []),
        ("quiet a.b=1 xa.b=2 a.bc=3", ["1"]),
        ('a.b="1 2" a.b=3', ["1 2", "3"]),
        ('"a.b=1 2"\n', ["1 2"]),
        ("a.b=it's a.b=$(reboot)", ["it's", "$(reboot)"]),
    ],
)
def test_parameter_prints_values_of_the_command_line(
    tmp_path: Path, line: str, values: list[str]
) -> None:
    file = tmp_path / "cmdline"
    file.write_text(line)
    environment = {"BUILDOS_CMDLINE": str(file), "PATH": "/usr/bin:/bin"}
    command = [str(LIBRARY / "parameter"), "a.b"]
    assert subprocess.check_output(command, env=environment, text=True).splitlines() == values


def test_build_with_wrong_options_names_the_option(tmp_path: Path) -> None:
    for options, complaint in (
        (["--tree", "/no/such"], "--tree /no/such: no such directory"),
        (["--prune", "/no/such"], "--prune /no/such: no such file"),
        (["--record", "/no/such"], "--record /no/such: no such file"),
        (["--level"], "--level needs an argument"),
        (["--levle", "3"], "unknown option --levle"),
        (["--debs", str(tmp_path)], f"no buildos_*.deb in {tmp_path}"),
    ):
        command = [str(IMAGE / "build"), *options]
        done = subprocess.run(command, text=True, capture_output=True, check=False)
        assert (done.returncode, complaint in done.stderr) == (1, True), done.stderr
