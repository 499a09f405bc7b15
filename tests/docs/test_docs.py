"""Tests the documentation: links, manual pages, and generated files."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit

import pytest

TOP = Path(__file__).resolve().parents[2]
DOCS = TOP / "docs"
PAGES = sorted([*DOCS.glob("*.md"), TOP / "README.md", TOP / "image" / "README.md"])
MANUALS = sorted((DOCS / "man").iterdir())

# Matches references to buildos's manual pages.
REFERENCE = re.compile(r"\b((?:org\.build2\.)?buildos[a-z-]*(?:\.\w+)?)\((\d)\)")


def anchor(heading: str) -> str:
    """Returns the anchor that GitHub makes for a heading."""
    kept = re.sub(r"[^\w\- ]", "", heading.strip().lower())
    return kept.replace(" ", "-")


def links(page: Path) -> Iterator[str]:
    text = re.sub(r"^    .*$", "", page.read_text(), flags=re.MULTILINE)
    yield from re.findall(r"\]\(([^)\s]+)\)", text)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(TOP)))
def test_page_has_no_dead_link(page: Path) -> None:
    dead = []
    for link in links(page):
        if "://" in link:
            if not urlsplit(link).netloc:
                dead.append(link)
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


class Anchors(HTMLParser):
    """Collects the ids and the links of an HTML page."""

    def __init__(self, text: str):
        super().__init__()
        self.ids: Counter[str] = Counter()
        self.links: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id":
                self.ids[value or ""] += 1
            elif name in ("href", "src"):
                self.links.add(value or "")


def test_html_page_has_no_dead_link_and_no_duplicate_id(tmp_path: Path) -> None:
    page = tmp_path / "build" / "docs" / "index.html"
    subprocess.run([DOCS / "generate-html", page], check=True)
    anchors = Anchors(page.read_text())
    assert [name for name, count in anchors.ids.items() if count > 1] == []
    for link in anchors.links:
        if link.startswith("#"):
            assert link.removeprefix("#") in anchors.ids, link
        elif "://" in link:
            # The test has no network: only the form of the link is checked.
            assert urlsplit(link).scheme in ("http", "https") and urlsplit(link).netloc, link
        elif not link.startswith("data:image/"):
            assert (TOP / "build" / "docs" / link).resolve().exists(), link
    for manual in MANUALS:
        assert manual.name in anchors.ids


@pytest.mark.parametrize("page", [*PAGES, *MANUALS], ids=lambda page: str(page.relative_to(TOP)))
def test_named_manual_pages_exist(page: Path) -> None:
    text = re.sub(r"\.Xr (\S+) (\d)", r"\1(\2)", page.read_text())
    named = {f"{name}.{section}" for name, section in REFERENCE.findall(text)}
    assert named - {manual.name for manual in MANUALS} == set()


def test_every_manual_page_is_packaged() -> None:
    packaged = {
        Path(line).name
        for listing in (TOP / "debian").glob("*.manpages")
        for line in listing.read_text().split()
    }
    assert packaged == {manual.name for manual in MANUALS}


@pytest.mark.parametrize("generator", ["generate-journal-messages", "generate-dbus-manuals"])
def test_generated_files_are_up_to_date(generator: str) -> None:
    assert subprocess.run([DOCS / generator, "--check"]).returncode == 0
