#!/usr/bin/python3
"""Finds import circles between the files of a Rust crate.

    tests/source/imports.py [DIRECTORY WITH lib.rs OR main.rs]...

Without an argument, all crates. Prints each group of files that import each other,
directly or by way of other files, and exits with 1 if there is one.

A file imports another if it names an item of it: in `use`, or as a path that begins
with `crate::`, `super::`, `self::` or a child module. A re-export (`pub use`) is not an
import; an item that is imported by way of one is looked up where it is defined.
Unit tests do not count.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent.parent

Module = tuple[str, ...]

TESTS = re.compile(r"#\[cfg\(test\)\]\s*(?:pub(?:\([a-z]+\))?\s+)?mod \w+ \{.*", re.DOTALL)
COMMENT = re.compile(r"//[^\n]*")
STRING = re.compile(r'"(?:\\.|[^"\\])*"', re.DOTALL)
CHILD = re.compile(r"^\s*(?:pub(?:\([^)]*\))?\s+)?mod (\w+);", re.MULTILINE)
USE = re.compile(r"(?P<visibility>\bpub(?:\([^)]*\))?\s+)?\buse\s+(?P<tree>[^;]+);")
PATH = re.compile(r"(?<![\w:])((?:crate|super|self|[a-z_]\w*)(?:::\w+)+)")


@dataclass
class File:
    """A source file: its module and what it names."""

    path: Path
    module: Module
    children: set[str] = field(default_factory=set)
    imports: set[Module] = field(default_factory=set)
    reexports: dict[str, Module] = field(default_factory=dict)


def flatten(tree: str) -> list[str]:
    """Returns the paths of a use tree: `a::{b, c::{d, e}}` becomes a::b, a::c::d, a::c::e."""
    tree = tree.strip()
    opening = tree.find("{")
    if opening < 0:
        return [re.sub(r"\s+as\s+\w+$", "", tree)] if tree else []
    prefix, inner = tree[:opening], tree[opening + 1 : tree.rindex("}")]
    parts, depth, start = [], 0, 0
    for at, character in enumerate(inner):
        depth += {"{": 1, "}": -1}.get(character, 0)
        if character == "," and depth == 0:
            parts.append(inner[start:at])
            start = at + 1
    parts.append(inner[start:])
    return [prefix + path for part in parts for path in flatten(part)]


def absolute(path: str, file: File) -> Module | None:
    """Returns a path from the crate's root; None for a path into another crate."""
    parts = path.replace(" ", "").split("::")
    if parts[0] == "crate":
        return tuple(parts[1:])
    module = list(file.module)
    if parts[0] in ("self", "super"):
        while parts and parts[0] in ("self", "super"):
            if parts.pop(0) == "super":
                if not module:
                    return None
                module.pop()
        return tuple(module + parts)
    return tuple(module + parts) if parts[0] in file.children else None


def read(path: Path, module: Module) -> File:
    """Reads which items of other files a file names."""
    text = path.read_text()
    text = STRING.sub('""', COMMENT.sub("", TESTS.sub("", text)))
    file = File(path, module, set(CHILD.findall(text)))
    for match in USE.finditer(text):
        for name in flatten(match["tree"]):
            target = absolute(name, file)
            if target is None:
                continue
            if match["visibility"]:
                file.reexports[target[-1] if target else ""] = target
            else:
                file.imports.add(target)
    for name in PATH.findall(USE.sub("", text)):
        target = absolute(name, file)
        if target is not None:
            file.imports.add(target)
    return file


def crate(root: Path) -> dict[Module, File]:
    """Reads all files of the crate whose lib.rs or main.rs is in a directory."""
    files: dict[Module, File] = {}
    start = root / "lib.rs" if (root / "lib.rs").exists() else root / "main.rs"
    pending: list[tuple[Path, Module]] = [(start, ())]
    while pending:
        path, module = pending.pop()
        file = read(path, module)
        files[module] = file
        below = path.parent if path.name in ("lib.rs", "main.rs", "mod.rs") else path.with_suffix("")
        for child in file.children:
            for candidate in (below / f"{child}.rs", below / child / "mod.rs"):
                if candidate.exists():
                    pending.append((candidate, (*module, child)))
    return files


def defining(target: Module, files: dict[Module, File]) -> Module | None:
    """Returns the module of the file that defines an item."""
    for _ in range(8):
        module = target
        while module not in files:
            module = module[:-1]
        rest = target[len(module) :]
        followed = files[module].reexports.get(rest[0]) if rest else None
        if followed is None:
            return module
        target = (*followed, *rest[1:])
    return None


def circles(files: dict[Module, File]) -> list[list[Module]]:
    """Returns the groups of more than one file that reach each other by imports."""
    edges = {
        module: {
            to
            for target in file.imports
            if (to := defining(target, files)) is not None and to != module
        }
        for module, file in files.items()
    }

    def reached(start: Module) -> set[Module]:
        seen: set[Module] = set()
        pending = [start]
        while pending:
            for to in edges[pending.pop()]:
                if to not in seen:
                    seen.add(to)
                    pending.append(to)
        return seen

    reach = {module: reached(module) for module in files}
    groups = {
        frozenset(other for other in reach[module] if module in reach[other])
        for module in files
        if module in reach[module]
    }
    return sorted(sorted(group) for group in groups)


def roots() -> list[Path]:
    """Returns the source directories of all crates of the workspace."""
    return sorted([*(TOP / "crates").glob("*/src"), TOP / "tests/doubles/src"])


def main() -> int:
    found = False
    for root in [Path(argument) for argument in sys.argv[1:]] or roots():
        files = crate(root)
        for group in circles(files):
            found = True
            names = ", ".join(str(files[module].path.relative_to(root)) for module in group)
            print(f"{root}: these files import each other: {names}")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
