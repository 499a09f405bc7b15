"""Makes other versions of packages, with the same content."""

from __future__ import annotations

import subprocess
from pathlib import Path


def as_version(debs: list[Path], version: str, directory: Path) -> list[Path]:
    """Makes copies of `debs` in `directory` with the version `version`."""
    made = []
    for deb in debs:
        tree = directory / deb.stem
        subprocess.run(["dpkg-deb", "--raw-extract", deb, tree], check=True)
        control = tree / "DEBIAN/control"
        fields = control.read_text()
        (line,) = (line for line in fields.splitlines() if line.startswith("Version: "))
        control.write_text(fields.replace(line.removeprefix("Version: "), version))
        name, _, architecture = deb.stem.split("_")
        made.append(directory / f"{name}_{version}_{architecture}.deb")
        build = ["dpkg-deb", "--root-owner-group", "-Znone", "--build", tree, made[-1]]
        subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
    return made
