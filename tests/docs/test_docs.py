"""What the documentation says of itself and of the rest of the tree."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).resolve().parents[2]
DOCS = TOP / "docs"
PAGES = sorted([*DOCS.glob("*.md"), TOP / "README.md"])
MANUALS = sorted((DOCS / "man").iterdir())

# Pages of others that ours name are in sections that Debian has; ours are here.
OURS = re.compile(r"\b((?:org\.build2\.)?buildos[a-z-]*(?:\.\w+)?)\((\d)\)")


def anchor(heading: str) -> str:
    """As GitHub makes it of a heading."""
    kept = re.sub(r"[^\w\- ]", "", heading.strip().lower())
    return kept.replace(" ", "-")


def links(page: Path) -> Iterator[str]:
    text = re.sub(r"^    .*$", "", page.read_text(), flags=re.MULTILINE)
    yield from re.findall(r"\]\(([^)\s]+)\)", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_link_is_dead(page: Path) -> None:
    dead = []
    for link in links(page):
        if "://" in link:
            continue
        path, _, fragment = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists():
            dead.append(link)
        elif fragment and target.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            if fragment not in map(anchor, headings):
                dead.append(link)
    assert dead == []


@pytest.mark.parametrize("page", [*PAGES, *MANUALS], ids=lambda page: page.name)
def test_manual_pages_that_are_named_exist(page: Path) -> None:
    text = re.sub(r"\.Xr (\S+) (\d)", r"\1(\2)", page.read_text())
    named = {f"{name}.{section}" for name, section in OURS.findall(text)}
    assert named - {manual.name for manual in MANUALS} == set()


def test_every_manual_page_is_packaged() -> None:
    packaged = {
        Path(line).name
        for listing in (TOP / "debian").glob("*.manpages")
        for line in listing.read_text().split()
    }
    assert packaged == {manual.name for manual in MANUALS}


@pytest.mark.parametrize("generator", ["generate-journal-messages", "generate-dbus-manuals"])
def test_what_is_made_of_other_files_is_up_to_date(generator: str) -> None:
    assert subprocess.run([DOCS / generator, "--check"]).returncode == 0
