"""Vendors the crates of Cargo.lock, for builds without a network."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from buildroot import BUILD, TOP, Root, Stamp, digest, say

VENDOR = BUILD / "vendor"

# The architectures of Debian 13 that rustc supports. Crates that no architecture needs
# are left empty: those for Windows contain 60 MB of import libraries.
TRIPLES = (
    "aarch64-unknown-linux-gnu",
    "armv7-unknown-linux-gnueabihf",
    "i686-unknown-linux-gnu",
    "powerpc64le-unknown-linux-gnu",
    "riscv64gc-unknown-linux-gnu",
    "s390x-unknown-linux-gnu",
    "x86_64-unknown-linux-gnu",
)

CARGO_CONFIG = """\
[source.crates-io]
replace-with = "vendored-sources"

[source.vendored-sources]
directory = "{vendor}"
"""


def vendor(tools: Root) -> str:
    """Brings `VENDOR` up to date with Cargo.lock; returns a digest of its content."""
    content = digest(TOP / "Cargo.lock", Path(__file__))
    stamp = Stamp(VENDOR.with_suffix(".stamp"), content)
    if stamp.fresh():
        return content
    say("Fetching the crates of Cargo.lock")
    stamp.clear()
    fresh = VENDOR.with_suffix(".new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    home = BUILD / "cargo-home"
    home.mkdir(exist_ok=True)
    binds = {"/work/source": TOP, "/work/vendor": fresh, "/work/cargo": home}
    env = {"CARGO_HOME": "/work/cargo"}
    cargo = ["cargo", "vendor", "--quiet", "--locked", "/work/vendor"]
    tools.run(cargo, binds=binds, env=env, directory="/work/source", network=True)
    needed = _needed(tools, binds)
    for crate in sorted(fresh.iterdir()):
        if crate.name not in needed:
            _empty(crate)
    shutil.rmtree(VENDOR, ignore_errors=True)
    fresh.rename(VENDOR)
    stamp.set()
    return content


def configure_cargo(home: Path, vendor_directory: str) -> None:
    """Makes `home` a CARGO_HOME that uses crates of `vendor_directory` only."""
    home.mkdir(parents=True, exist_ok=True)
    (home / "config.toml").write_text(CARGO_CONFIG.format(vendor=vendor_directory))


def _needed(tools: Root, binds: dict[str, Path]) -> set[str]:
    """Returns the directories of crates that are compiled on an architecture."""
    home = BUILD / "cargo-home-vendored"
    configure_cargo(home, "/work/vendor")
    cargo = ["cargo", "metadata", "--format-version=1", "--frozen"]
    cargo += [f"--filter-platform={triple}" for triple in TRIPLES]
    metadata = json.loads(
        tools.output(
            cargo,
            binds={**binds, "/work/cargo": home},
            env={"CARGO_HOME": "/work/cargo"},
            directory="/work/source",
        )
    )
    resolved = {node["id"] for node in metadata["resolve"]["nodes"]}
    packages = [package for package in metadata["packages"] if package["id"] in resolved]
    return {Path(package["manifest_path"]).parent.name for package in packages}


def _empty(crate: Path) -> None:
    """Reduces a crate to its manifest and empty sources, which cargo needs to resolve
    it."""
    for path in sorted(crate.rglob("*"), reverse=True):
        if path.is_dir() and not path.is_symlink():
            if not any(path.iterdir()):
                path.rmdir()
        elif path.suffix == ".rs":
            path.write_bytes(b"")
        elif path.relative_to(crate) not in (Path("Cargo.toml"), Path(".cargo-checksum.json")):
            path.unlink()
    checksum = crate / ".cargo-checksum.json"
    package = json.loads(checksum.read_text()).get("package")
    checksum.write_text(json.dumps({"files": {}, "package": package}))
