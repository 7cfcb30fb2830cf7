"""evaluated.jsonl: the parts of evaluations that are finished, so that a killed evaluation continues where it was.

A part is one probe of one kind of features. It is known again by a digest of all that decides it: the weights, the
images, the settings, the protocol. The file appears whole after each part; what a kill can lose is the part under way.
"""

import contextlib
import hashlib
import json
from pathlib import Path
from typing import Any, final

from hjepa_shards.base.atomic_files import write_atomically
from hjepa_shards.base.regular_files import read_regular

_MOST_BYTES, _MOST = 1 << 28, 2**53
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
        lines: list[bytes] = []
        with contextlib.suppress(OSError):
            lines = read_regular(path, _MOST_BYTES).splitlines()
        for line in lines:
            with contextlib.suppress(ValueError, KeyError, TypeError, RecursionError):
                part = json.loads(line)
                values = dict(part["values"])
                if all(map(_is_plain, values.values())):
                    self._parts[part["key"], part["probe"]] = values

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


def _is_plain(value: Any, depth: int = 4) -> bool:
    """A finite number, a text, or a few of them."""
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return depth > 0 and all(_is_plain(one, depth - 1) for one in inner)
    return isinstance(value, str) or (type(value) in (int, float) and abs(value) < _MOST)
