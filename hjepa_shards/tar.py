"""The tar format, both ways: members appended with fixed metadata, members of anybody's tar found.

Written headers are plain ustar with time, owner and mode fixed, so that equal samples are equal bytes. Names are short
enough for ustar by construction (`sample.encode_keys`).
"""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from hjepa_shards.errors import ShardError

BLOCK_BYTES = 512


class TarWriter:
    """Appends members to a binary file; `close` writes the end of the archive but leaves the file open."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.num_bytes = 0

    def add(self, name: str, data: bytes) -> int:
        """Append one member. Returns the offset of its first data byte."""
        header = tarfile.TarInfo(name)
        header.size, header.mode, header.mtime = len(data), 0o644, 0
        self._write(header.tobuf(tarfile.USTAR_FORMAT))
        offset = self.num_bytes
        self._write(data)
        self._write(bytes(-len(data) % BLOCK_BYTES))
        return offset

    def close(self) -> None:
        self._write(bytes(2 * BLOCK_BYTES))

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self.num_bytes += len(data)


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One file in a tar."""

    key: str
    """Name up to the first dot after the last slash, as webdataset cuts it."""
    extension: str
    """What follows that dot, lower case."""
    offset: int
    num_bytes: int


def scan(path: Path) -> Iterator[Member]:
    """The regular files of an uncompressed tar, in order. ShardError where it is not one or is cut short."""
    try:
        with tarfile.open(path, "r:") as tar:
            total = path.stat().st_size
            for info in tar:
                if info.isreg():
                    folder, slash, base = info.name.rpartition("/")
                    stem, _, extension = base.partition(".")
                    if info.offset_data + info.size > total:
                        raise ShardError(
                            f"{path}: {info.name} should end at byte {info.offset_data + info.size}, the file has "
                            f"{total}; it was cut short: fetch it again"
                        )
                    yield Member(
                        key=f"{folder}{slash}{stem}",
                        extension=extension.lower(),
                        offset=info.offset_data,
                        num_bytes=info.size,
                    )
            _check_end(path, tar.offset)
    except (tarfile.TarError, ValueError, EOFError) as error:
        raise ShardError(f"{path}: not a readable uncompressed tar ({error}); fetch it again or unpack it") from error


def _check_end(path: Path, offset: int) -> None:
    """tarfile stops in silence at a header that is none; only the end of the archive may stand there."""
    with path.open("rb") as file:
        file.seek(offset)
        if any(file.read(BLOCK_BYTES)):
            raise ShardError(f"{path}: a header expected at byte {offset}, something else found; fetch it again")
