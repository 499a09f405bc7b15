"""A machine in which a task of the stand-in agent runs: it reports what it reads at its start, waits,
and reports it again."""

from __future__ import annotations

import re
from collections.abc import Mapping

from update_farm import PORT, Farm

NAME = "box"
DIRECTORY = f"/build/machines/default/{NAME}"

# The stand-in runs it in a snapshot of the revision, with the snapshot as root directory.
_TEST = """\
#!/busybox sh
report() {{
    set -- $1 $(/busybox cat /version) $(/busybox sha256sum /disk.img)
    echo $1 $2 $3
}}
report start
echo >/started
until /busybox wget -q -O /answer {url} 2>/errors; do
    /busybox sleep 1
done
report end
"""

_PUBLISH = """
machine {name}
cp -f bin/busybox desk/{name}/busybox
cat >desk/{name}/test <<'END'
{test}END
chmod +x desk/{name}/test
[ -e desk/{name}/disk.img ] || head -c {size} /dev/urandom >desk/{name}/disk.img
dd if=/dev/urandom of=desk/{name}/disk.img bs=1M count=3 conv=notrunc 2>/dev/null
echo {version} >desk/{name}/version
publish {name} >/dev/null
sha256sum desk/{name}/disk.img
"""

STARTED = f"ls -d {DIRECTORY}/{NAME}-*-tap*/started"
"""Succeeds on a host while a task runs in the machine."""

SNAPSHOTS = f"ls {DIRECTORY} | grep -e -tap || true"


class TaskMachine:
    """The machine at a desk."""

    def __init__(self, farm: Farm, size: int):
        """`size` is that of its disk in bytes."""
        self._farm = farm
        self._size = size
        self._gate = farm.tree / "channel/go"

    def publish(self, version: str) -> str:
        """Publishes a revision; returns what a task in it reports from its start to its end."""
        url = f"http://{self._farm.lan.address}:{PORT}/channel/{self._gate.name}"
        test = _TEST.format(url=url)
        digest = self._farm.desk(
            _PUBLISH.format(name=NAME, size=self._size, test=test, version=version)
        ).split()[0]
        assert re.fullmatch("[0-9a-f]{64}", digest)
        self._farm.sign()
        return f"start {version} {digest}\nend {version} {digest}"

    def release(self) -> None:
        """Lets tasks end."""
        self._gate.touch()


def report(result: Mapping[str, str]) -> str:
    """Returns what a task has reported in its result."""
    assert result["status"] == "success", result
    return result["test-installed-log"]
