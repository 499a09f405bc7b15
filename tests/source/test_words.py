"""The check of words finds what docs/style.md refuses, and the tree has no such word."""

import pytest

import words


@pytest.mark.parametrize(
    ("line", "word"),
    [
        ("/// What is wished for.", "wished"),
        ("# Mend the table", "Mend"),
        ("A server that was told the name", "told"),
        ("tells by ARP", "tells"),
        ("Whoever has the network", "Whoever"),
        ("Somebody's change", "Somebody's"),
        ("the configuration in force", "in force"),
        ("A static name stands until", "stands"),
        ("what is none is refused", "is none"),
        ("The lease is another one now", "another one"),
        ("That is what agentd does", "That is what"),
        ("nobody is told", "nobody"),
        ("the kernel, of whom", "of whom"),
        ("waits for ever", "for ever"),
        ("fn tell_name(&mut self)", "tell"),
        ("let is_told = true;", "told"),
        ("struct LeaseWish {", "wish"),
    ],
)
def test_refused_word_is_found(line, word):
    assert word in [found for _, found, _ in words.offences(line)]


@pytest.mark.parametrize(
    "line",
    [
        "A stand-in for timesyncd",
        "BOOTIF= stands for the NIC",
        "if name is None or other is not None:",
        "fn intellectual(amended: bool)",
        "the desired state that applies",
    ],
)
def test_ordinary_line_passes(line):
    assert words.offences(line) == []


def test_phrase_over_two_comment_lines_is_found():
    found = words.offences("/// the configuration in\n/// force, read back\n")
    assert [(number, word) for number, word, _ in found] == [(1, "in force,")]


def test_line_marked_as_allowed_is_skipped():
    text = 'user = "nobody"  # words: allow, a user of Debian\n# words: allow-next, the same\nx = "nobody"\n'
    assert words.offences(text) == []


def test_report_names_file_line_and_advice(tmp_path):
    path = tmp_path / "page.md"
    path.write_text("fine\nas wished\n")
    assert words.check([path]) == [f"{path}:2: wished (desired): as wished"]


def test_tree_has_no_refused_word():
    assert words.check(words.tracked()) == []
