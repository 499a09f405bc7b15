"""Writes debian/copyright: copyright.in, and a paragraph for each vendored crate."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

_LICENCE_FILE = re.compile(r"(licen[cs]e|copying|copyright|notice|unlicense)", re.IGNORECASE)
_HOLDER = re.compile(r"^[\s#/*]*(copyright\s+(?:\(c\)|©|\d{4}).*?)[\s*]*$", re.IGNORECASE)
# The placeholder in the appendix of the Apache licence.
_FORM = re.compile(r"[\[{]yyyy[\]}]|\{name|name of copyright owner", re.IGNORECASE)

# SPDX names → names of the copyright format 1.0.
_NAMES = {
    "Apache-2.0": "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception": "Apache-2.0 with LLVM exception",
    "BSD-2-Clause": "BSD-2-clause",
    "LGPL-2.1-or-later": "LGPL-2.1+",
    "MIT": "Expat",
    "Unicode-3.0": "Unicode-3.0",
    "Unlicense": "Unlicense",
    "Zlib": "Zlib",
}


def write_copyright(tree: Path) -> None:
    """Writes debian/copyright of a source tree with its vendor/ in place."""
    head = (tree / "debian" / "copyright.in").read_text()
    paragraphs: dict[tuple[str, str], list[str]] = {}
    for manifest in sorted(tree.glob("vendor/*/Cargo.toml")):
        package = tomllib.loads(manifest.read_text())["package"]
        crate = manifest.parent
        terms = _terms(package.get("license", ""), crate.name)
        names = _holders(crate) or package.get("authors") or [f"The {crate.name} developers"]
        paragraphs.setdefault(("\n ".join(names), terms), []).append(f"vendor/{crate.name}/*")
    text = [head.rstrip()]
    for (holders, terms), files in paragraphs.items():
        listed = "\n ".join(files)
        text.append(f"Files:\n {listed}\nCopyright:\n {holders}\nLicense: {terms}")
    (tree / "debian" / "copyright").write_text("\n\n".join(text) + "\n")


def _holders(crate: Path) -> list[str]:
    """Returns the copyright lines of the crate's licence files."""
    holders: list[str] = []
    for path in sorted(crate.iterdir()):
        if not path.is_file() or not _LICENCE_FILE.match(path.name):
            continue
        for line in path.read_text(errors="replace").splitlines():
            match = _HOLDER.match(line)
            if match and not _FORM.search(line) and match[1] not in holders:
                holders.append(match[1])
    return holders


def _terms(spdx: str, crate: str) -> str:
    """Returns an SPDX expression in the terms of the copyright format."""
    choices = [_choice(part, crate) for part in spdx.replace("/", " OR ").split(" AND ")]
    return ", and ".join(choices)


def _choice(part: str, crate: str) -> str:
    names = [name.strip() for name in part.strip().strip("()").split(" OR ")]
    unknown = [name for name in names if name not in _NAMES]
    if unknown:
        sys.exit(
            f"vendor/{crate}: unknown licence {', '.join(unknown) or 'none'}: see whether it may "
            "be shipped, then add it to debian/licences.py and its text to debian/copyright.in"
        )
    return " or ".join(_NAMES[name] for name in names)
