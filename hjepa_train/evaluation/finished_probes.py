"""evaluated.jsonl: the parts of evaluations that are finished, so that a killed evaluation continues where it was.

A part is one probe of one kind of features. It is known again by a digest of all that decides it: the weights, the
images, the settings, the protocol. The file appears whole after each part; what a kill can lose is the part under way.
"""

import hashlib
import json
from pathlib import Path
from typing import Any, final

from hjepa_shards.base.atomic_files import write_atomically

PROTOCOL = 2
"""Raised when a probe changes, so that numbers of the old one are not taken for those of the new. 1 compared numbers of
classes, 2 compares their names."""


def digest(facts: dict[str, Any]) -> str:
    """Of what decides a part; plain JSON values."""
    text = json.dumps({"protocol": PROTOCOL, **facts}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


@final
class Finished:
    """The finished parts in one file. Lines that cannot be read are computed again, not an error."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._parts: dict[tuple[str, str], dict[str, Any]] = {}
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
            try:
                part = json.loads(line)
                self._parts[part["key"], part["probe"]] = dict(part["values"])
            except (ValueError, KeyError, TypeError):
                continue

    def get(self, key: str, probe: str) -> dict[str, Any] | None:
        """The numbers of a part, None where it is not finished."""
        return self._parts.get((key, probe))

    def put(self, key: str, probe: str, values: dict[str, Any]) -> None:
        self._parts[key, probe] = values
        lines = [
            json.dumps({"key": key, "probe": probe, "values": values}) + "\n"
            for (key, probe), values in self._parts.items()
        ]
        write_atomically(self._path, "".join(lines).encode())
