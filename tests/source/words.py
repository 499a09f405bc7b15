#!/usr/bin/python3
"""Finds words that docs/style.md refuses, in code, units and documents.

    tests/source/words.py [PATH]...

Without a path, all files that git tracks. Prints `FILE:LINE: WORD: text` and exits
with 1 if there is one. A line with `words: allow` in it, or below a line with
`words: allow-next`, is skipped; both need a reason behind them.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

TOP = Path(__file__).resolve().parent.parent.parent

# Texts that are quoted from elsewhere, made by a tool, or about the words themselves.
EXEMPT = re.compile(
    r"^(LICENSE|Cargo\.lock|debian/copyright\.in|docs/style\.md|docs/figures\.svg"
    r"|tests/source/(words|test_words)\.py)$"
)

# Each pattern with what to write instead.
REFUSED = {
    r"wish(es|ed|ing)?": "desired",
    r"mend(s|ed|ing)?": "fix",
    r"(un)?told|tells?|telling": "log, report, publish, pass",
    r"who(so)?m?ever": "name the actor",
    r"whosever": "name the actor",
    r"somebody(?:'s)?|someone(?:'s)?": "name the actor",
    r"nobody(?:'s)?": "name the actor",
    r"in force": "active, applies",
    r"stands(?! (?:in )?for)": "applies, is",
    r"(?-i:is none)": "is not, does not exist",
    r"has it not": "does not have it",
    r"another one": "changed, a different NAME",
    r"that is what": "say it directly",
    r"of whom": "say it directly",
    r"for ever": "indefinitely, or a limit",
    r"know of": "know about",
    r"(?-i:not none)": "not one",
}
PATTERN = re.compile(
    "|".join(rf"(?P<w{index}>(?<![\w-])(?:{word})(?!\w))" for index, word in enumerate(REFUSED)),
    re.IGNORECASE,
)
# Parts of identifiers: snake_case and CamelCase.
IDENTIFIER = re.compile(
    r"(?:(?<![A-Za-z])(?:wish|wished|told|tell|tells|mend|mended|whoever|nobody|somebody)(?=_|\b))"
    r"|(?:_(?:wish|wished|told|tell|tells|mend|mended|whoever|nobody|somebody)(?![a-z]))"
    r"|(?:(?<=[a-z])(?:Wish|Told|Tell|Mend|Nobody|Somebody)(?![a-z]))"
)


def offences(text: str) -> list[tuple[int, str, str]]:
    """Returns line number, word and advice of each refused word in a text."""
    found = []
    skip = False
    lines = text.splitlines()
    for number, line in enumerate(lines, start=1):
        allowed = skip or "words: allow" in line
        skip = "words: allow-next" in line
        if allowed:
            continue
        for match in PATTERN.finditer(line):
            index = int(str(match.lastgroup)[1:])
            found.append((number, match.group(), list(REFUSED.values())[index]))
        for match in IDENTIFIER.finditer(line):
            word = match.group().strip("_").lower()
            if not any(n == number and w.lower() == word for n, w, _ in found):
                found.append((number, word, "part of a name"))
        if number < len(lines):
            found += broken_phrase(number, line, lines[number])
    return found


def broken_phrase(number: int, line: str, following: str) -> list[tuple[int, str, str]]:
    """Finds a phrase whose words are split over two lines."""
    head = line.rstrip().rsplit(None, 1)[-1:] or [""]
    tail = re.sub(r"^[\s/#!*;.\"\\-]+", "", following).split(None, 1)[:1] or [""]
    joined = f"{head[0]} {tail[0]}"
    for word, advice in REFUSED.items():
        if " " in word and re.fullmatch(rf"(?:{word})[.,;:)]?", joined, re.IGNORECASE):
            return [(number, joined, advice)]
    return []


def tracked() -> list[Path]:
    """Returns all text files that git tracks."""
    listing = subprocess.run(
        ["git", "-C", str(TOP), "ls-files", "-z"], check=True, capture_output=True, text=True
    ).stdout
    return [TOP / name for name in listing.split("\0") if name and not EXEMPT.match(name)]


def files_below(arguments: list[str]) -> list[Path]:
    """Returns the files that the arguments name, directories with all below them."""
    files = []
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            files += sorted(p for p in path.rglob("*") if p.is_file() and "__pycache__" not in p.parts)
        else:
            files.append(path)
    return files


def check(paths: list[Path]) -> list[str]:
    """Returns a line for each refused word in the files."""
    report = []
    for path in paths:
        if not path.is_file() or path.is_symlink():
            continue
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        name = path.resolve()
        shown = name.relative_to(TOP) if name.is_relative_to(TOP) else path
        if EXEMPT.match(str(shown)):
            continue
        lines = text.splitlines()
        for number, word, advice in offences(text):
            report.append(f"{shown}:{number}: {word} ({advice}): {lines[number - 1].strip()[:100]}")
    return report


def main() -> int:
    report = check(files_below(sys.argv[1:]) if len(sys.argv) > 1 else tracked())
    for line in report:
        print(line)
    if report:
        print(f"{len(report)} refused words; docs/style.md says why.", file=sys.stderr)
    return 1 if report else 0


if __name__ == "__main__":
    sys.exit(main())
