"""The files in an uncompressed tar that a published dataset consists of: found by their headers, read in place.

A tar without an end mark was cut short, for its authors closed it. Of third-party tars `webdataset` takes more, and
says what is odd about them.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from hjepa_shards.errors import InputError, ShardError
from hjepa_shards.shards.tar_headers import relative, tar_entries


class TarMember(NamedTuple):
    """One regular file in a tar."""

    name: str
    offset: int
    """Of its first byte in the outermost file."""
    num_bytes: int


def tar_members(path: Path, start: int = 0, stop: int | None = None) -> Iterator[TarMember]:
    """The regular files of the tar that fills bytes [start, stop) of a file (all of it, without a stop), in order.

    ShardError where it is no tar or was cut short, InputError where it cannot be read.
    """
    for name, offset, num_bytes, _, problem in tar_entries(path, start, stop):
        if not problem:
            yield TarMember(relative(name), offset, num_bytes)


def read_member(path: Path, member: str, offset: int, num_bytes: int) -> bytes:
    """The bytes of a member that was listed before. InputError, or ShardError where the tar has become shorter."""
    try:
        with path.open("rb", buffering=0) as file:
            data = os.pread(file.fileno(), num_bytes, offset)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(data) != num_bytes:
        raise ShardError(
            f"{path}: {num_bytes:,} bytes of {member} expected at {offset:,}, {len(data):,} found; it has changed "
            "since it was listed: run the same command again"
        )
    return data
