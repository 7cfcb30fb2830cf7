"""The keys of samples, read from tar headers on demand, for reports: in training a sample is its index.

A member's header ends where its bytes begin, so a key costs one read of 512 bytes, and the row's key hash shows whether
it is the right one. Names too long for such a header (GNU and pax tars of other people) cost one pass over the tar.
"""

import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from hjepa_shards.base.regular_files import open_regular
from hjepa_shards.errors import InputError, ShardError
from hjepa_shards.shards.sidecar import key_hash
from hjepa_shards.shards.tar import BLOCK_BYTES, scan, split_name


def keys_of(tar: Path, rows: Iterable[Any]) -> list[str | None]:
    """The key of each sidecar row of a shard; None where the tar no longer has it."""
    rows = list(rows)
    try:
        with open_regular(tar) as file:
            keys = [_read_key(file, row) for row in rows]
    except OSError:
        return [None] * len(rows)
    if None in keys:
        wanted = {int(row.key_hash) for row, key in zip(rows, keys, strict=True) if key is None}
        found = _scanned(tar, wanted)
        keys = [key or found.get(int(row.key_hash)) for row, key in zip(rows, keys, strict=True)]
    return keys


def key_in_header(header: bytes, row: Any) -> str | None:
    """The key of a sidecar row in the tar header before its image; None where the header is not of that key."""
    try:
        key, _ = split_name(tarfile.TarInfo.frombuf(header, "utf-8", "backslashreplace").name)
    except (tarfile.HeaderError, ValueError):
        return None
    return key if key_hash(key) == int(row.key_hash) else None


def _read_key(file: BinaryIO, row: Any) -> str | None:
    offset = int(row.image_offset) - BLOCK_BYTES
    if offset < 0:
        return None
    try:
        file.seek(offset)
        return key_in_header(file.read(BLOCK_BYTES), row)
    except OSError:
        return None


def _scanned(tar: Path, wanted: set[int]) -> dict[int, str]:
    """Key hash -> key of the wanted samples, as far as the tar can be read."""
    found: dict[int, str] = {}
    try:
        for member in scan(tar):
            hashed = key_hash(member.key)
            if hashed in wanted:
                found[hashed] = member.key
    except (ShardError, InputError):
        pass
    return found
