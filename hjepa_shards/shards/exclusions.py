"""Samples to be excluded on request: JSON lines {"source", "split", "key", "reason"}.

`duplicates --out` and `verify --deep --out` write them, `build --exclude` reads them.

Keys are those of the whole raw split, before anything is excluded from it, so the samples that stay keep theirs.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from hjepa_shards.base.atomic_files import write_atomically
from hjepa_shards.errors import InputError

_FIELDS = ("source", "split", "key", "reason")


def write_exclusions(path: Path, exclusions: Iterable[Mapping[str, str | None]]) -> None:
    """One line a sample.  exclusions: the four fields of each."""
    lines = [json.dumps(exclusion, ensure_ascii=False) for exclusion in exclusions]
    write_atomically(path, "".join(f"{line}\n" for line in lines).encode())


def read_exclusions(path: Path, source: str, split: str) -> dict[str, str]:
    """Key -> reason of the lines that are about this split. InputError for a file or line that is none of the kind."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: a list of exclusions expected, it cannot be read: {error}") from error
    reasons: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if line.strip():
            found = _fields(path, number, line)
            if found["source"] == source and found["split"] == split:
                reasons.setdefault(found["key"], found["reason"])
    return reasons


def _fields(path: Path, number: int, line: str) -> dict[str, str]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not all(isinstance(found.get(field), str) for field in _FIELDS):
        raise InputError(
            f"{path}, line {number}: a JSON object with the texts {', '.join(_FIELDS)} expected, {line[:60]!r} found"
        )
    return found
