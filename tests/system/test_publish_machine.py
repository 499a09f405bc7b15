"""Publishes revisions of a machine on btrfs, and receives them as a host would.

The desk is the root of a host, with two file systems on loop devices: one has the machine, the
other receives.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from buildroot import Root

SETUP = """
set -eu
# btrfs(8) reads there which version of streams the kernel has.
mount -t sysfs sysfs /sys
for name in desk host; do
    truncate --size=600M $name.disk
    mkfs.btrfs --quiet $name.disk
    mkdir $name
    mount -o loop $name.disk $name
done
buildosctl publish init www >/dev/null
btrfs --quiet subvolume create desk/box
publish() { buildosctl publish machine --tree www --name box desk/box 2>&1 || echo "status $?"; }
# Prints the digest of the list of the whole stream, then those of the increments.
lists() { sed -n 's/.*pieces = "\\([0-9a-f]*\\)".*/\\1/p' www/desk/stable.toml; }
id() { sed -n 's/^id = "\\(.*\\)"/\\1/p' $1/desk/stable.toml; }
# Verifies each piece before a byte of it is used.
receive() {
    while read -r piece; do
        echo "$piece  www/objects/$piece" | sha256sum --check --quiet
        cat www/objects/$piece
    done <www/objects/$1 | zstd --decompress --quiet --stdout | btrfs --quiet receive host
}
"""

Run = Callable[[str], str]


@pytest.fixture
def run(root: Root, tmp_path: Path) -> Run:
    """Runs a script at a desk with the file systems, and returns its output."""
    def run(script: str) -> str:
        return root.output(
            ["sh", "-c", SETUP + script],
            binds={"/work/desk": tmp_path},
            directory="/work/desk",
        ).decode()

    return run


def sizes(directory: Path) -> list[int]:
    """Returns the sizes of the streams in the draft: whole, then the increments."""
    text = (directory / "www/desk/stable.toml").read_text()
    whole = re.findall(r"^whole = { size = (\d+)", text, re.MULTILINE)
    increments = text.split("[[machine.increment]]")[1:]
    rest = [re.search(r"^size = (\d+)", part, re.MULTILINE) for part in increments]
    return [int(size) for size in [*whole, *(match[1] for match in rest if match)]]


def test_revisions_are_received_whole_and_by_increments(run: Run, tmp_path: Path) -> None:
    output = run("""
head -c 100000000 /dev/urandom >desk/box/disk.img
mkdir -p desk/box/var/lib/dpkg
printf 'Package: gcc\\nStatus: install ok installed\\nVersion: 14.1\\n\\n' >desk/box/var/lib/dpkg/status
ln -s disk.img desk/box/link
publish
receive "$(lists | sed -n 1p)"
echo "== 2"
head -c 20000000 /dev/urandom | dd of=desk/box/disk.img conv=notrunc status=none
sed -i 's/14.1/14.2/' desk/box/var/lib/dpkg/status
touch desk/box/new
publish
receive "$(lists | sed -n 2p)"
echo "== 3"
rm desk/box/link
publish
receive "$(lists | sed -n 3p)"
diff -r desk/box host/3 && echo same
test ! -e desk/.buildos-published/box/1 && test -e desk/.buildos-published/box/2 && echo kept
echo "== again"
publish
echo "== id"
id www
# The id is that of the files, on whatever file system they are.
buildosctl publish init other >/dev/null
buildosctl publish machine --tree other --name copy host/3 >/dev/null
id other
""")
    first, second, third, again, ids = re.split(r"^== \w+\n", output, flags=re.MULTILINE)
    assert "box revision 1" in first and "from revision" not in first
    assert "~ disk.img (95.3 MiB)" in second and "+ new (0 B)" in second
    assert "~ gcc 14.2, was 14.1" in second and "from revision 1" in second
    assert "- link (8 B)" in third
    assert "from revision 2" in third and "from revision 1" in third
    assert third.endswith("same\nkept\n")
    assert again == "box has the files of revision 3: nothing to publish\n"
    mine, theirs = ids.split()
    assert mine == theirs
    whole, from_second, from_first = sizes(tmp_path)
    assert whole > 100_000_000
    assert from_second < 100_000 and 20_000_000 < from_first < 1.05 * 20_000_000
    pieces = [path.stat().st_size for path in (tmp_path / "www/objects").iterdir()]
    assert max(pieces) == 16 * 1024 * 1024


def test_directory_that_changes_is_refused_and_leaves_nothing(run: Run, tmp_path: Path) -> None:
    output = run("""
head -c 30000000 /dev/urandom >desk/box/disk.img
while :; do echo x >>desk/box/log; done &
writer=$!
while ! test -e desk/box/log; do :; done
publish
kill $writer
wait $writer || true
ls www/desk/machines/box desk/.buildos-published/box
echo "== quiet"
publish
""")
    changing, quiet = output.split("== quiet\n")
    assert "desk/box changed while it was read (log)" in changing and "status 1" in changing
    assert changing.endswith("desk/.buildos-published/box:\n\nwww/desk/machines/box:\n")
    assert "box revision 1" in quiet


def test_what_is_no_machine_is_refused(run: Run) -> None:
    output = run("""
mkdir desk/plain
for directory in desk/plain desk/none desk/box; do
    buildosctl publish machine --tree www --name box $directory 2>&1 || true
done
btrfs --quiet subvolume create desk/box/inner
publish
rmdir desk/box/inner
mkfifo desk/box/fifo
publish
""")
    plain, none, empty, inner, *rest = output.splitlines()
    assert "desk/plain is not a btrfs subvolume" in plain
    assert "cannot find desk/none" in none
    assert "desk/box is empty" in empty
    assert "desk/box/inner is a mount point or a subvolume" in inner
    assert rest[0] == "status 1" and "box revision 1" in rest[1]


def test_interrupted_publication_is_repeated(run: Run) -> None:
    output = run("""
echo 1 >desk/box/file
publish >/dev/null
echo 2 >desk/box/file
# What a kill leaves: a snapshot without a record, and half of an object.
btrfs --quiet subvolume snapshot -r desk/box desk/.buildos-published/box/2
printf half >www/objects/half.new
echo 3 >desk/box/file
publish
cat desk/.buildos-published/box/2/file
rm -f www/objects/*
publish
buildosctl publish show www
""")
    assert "box revision 2" in output and "\n3\n" in output
    assert "nothing to publish" in output
    assert "missing: machine box: cannot read www/objects/" in output
