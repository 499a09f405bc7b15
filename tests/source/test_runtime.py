"""The image has the programs that bbot-agent calls."""

import re
from pathlib import Path

TOP = Path(__file__).resolve().parents[2]


def test_image_has_dependencies_of_bbot_runtime():
    control = (TOP / "debian/control").read_text()
    fields = control.split("\nPackage: buildos-bbot-runtime\n")[1].split("\nSuggests:")[0]
    depends = set(re.findall(r"^ ([a-z0-9-]+),$", fields, re.MULTILINE))
    lines = (TOP / "image/packages").read_text().splitlines()
    image = {line.split("#")[0].strip() for line in lines}
    assert {"curl", "openssl", "tftpd-hpa"} <= depends
    assert depends - image == set()
