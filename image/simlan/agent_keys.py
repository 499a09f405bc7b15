"""Identifies and authenticates agents by their RSA keys, as brep does, with openssl(1)."""

from __future__ import annotations

import base64
import binascii
import hashlib
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


def fingerprint(public: Path) -> str:
    """Returns the SHA-256 sum of a public key in DER."""
    command = ["openssl", "pkey", "-pubin", "-in", str(public), "-outform", "DER"]
    return hashlib.sha256(subprocess.check_output(command)).hexdigest()


@dataclass(frozen=True)
class Keys:
    """Files with public keys, by fingerprint."""

    agents: Mapping[str, Path]
    """Keys of agents that build every package."""

    bots: Mapping[str, Path]
    """Keys of custom bots, which build the packages that name their key."""

    @classmethod
    def read(cls, directory: Path) -> Keys:
        """Reads the files *.pem of `directory` and `directory`/bots."""
        agents, bots = (
            {fingerprint(path): path for path in sorted(place.glob("*.pem"))}
            for place in (directory, directory / "bots")
        )
        return cls(agents, bots)


def is_signature(public: Path, signature: str, challenge: str) -> bool:
    """Returns true if `signature`, in base64, is the one of `challenge` (RSA, PKCS#1 v1.5)."""
    try:
        encoded = base64.b64decode(signature, validate=True)
    except binascii.Error:
        return False
    command = ["openssl", "pkeyutl", "-verifyrecover", "-pubin", "-inkey", str(public)]
    found = subprocess.run(command, input=encoded, capture_output=True)
    return found.returncode == 0 and found.stdout == challenge.encode()
