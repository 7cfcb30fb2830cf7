"""The tar format, both ways: members appended with fixed metadata, members of anybody's tar found.

Written headers are plain ustar with time, owner and mode fixed, so that equal samples are equal bytes. Names are short
enough for ustar by construction (`sample.MAX_KEY_BYTES`).
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from hjepa_shards.shards.tar_headers import BLOCK_BYTES, Remark, tar_entries

__all__ = ["BLOCK_BYTES", "Member", "TarWriter", "is_sample", "member_bytes", "scan", "split_name"]


def member_bytes(num_bytes: int) -> int:
    """What a member of this many bytes takes of a tar: a header, and whole blocks."""
    return BLOCK_BYTES + -(-num_bytes // BLOCK_BYTES) * BLOCK_BYTES


class TarWriter:
    """Appends members to a binary file; `close` writes the end of the archive but leaves the file open.

    Size and sha256 of all that was written are known without reading it again.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.num_bytes = 0
        self.sha256 = hashlib.sha256()

    def add(self, name: str, data: bytes) -> int:
        """Append one member. Returns the offset of its first data byte."""
        self._write(_header(name, len(data)))
        offset = self.num_bytes
        self._write(data)
        self._write(bytes(-len(data) % BLOCK_BYTES))
        return offset

    def close(self) -> None:
        self._write(bytes(2 * BLOCK_BYTES))

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self.sha256.update(data)
        self.num_bytes += len(data)


_MODE_AND_OWNER = b"0000644\0" + 2 * b"0000000\0"
_TIME = b"%011o\0" % 0
_KIND_AND_REST = b"0".ljust(101, b"\0") + b"ustar\x0000".ljust(255, b"\0")
_FIXED_SUM = sum(_MODE_AND_OWNER + _TIME + 8 * b" " + _KIND_AND_REST)


def _header(name: str, num_bytes: int) -> bytes:
    """What `tarfile` makes of it, in a tenth of its time."""
    named, sized = name.encode(), b"%011o\0" % num_bytes
    assert (len(named) <= 100, len(sized)) == (True, 12), f"{name}: {num_bytes} bytes"
    checksum = b"%06o\0 " % (_FIXED_SUM + sum(named) + sum(sized))
    return b"".join((named.ljust(100, b"\0"), _MODE_AND_OWNER, sized, _TIME, checksum, _KIND_AND_REST))


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One file in a tar."""

    key: str
    """Name up to the first dot after the last slash, as webdataset cuts it."""
    extension: str
    """What follows that dot, lower case."""
    offset: int
    num_bytes: int
    problem: str = ""
    """Why it cannot be read (a sparse file, a link to nothing); '' where it can."""


def split_name(name: str) -> tuple[str, str]:
    """Key and extension (lower case) of a member's name, cut as webdataset does: at the first dot of its last part."""
    folder, slash, base = name.rpartition("/")
    stem, _, extension = base.partition(".")
    return f"{folder}{slash}{stem}", extension.lower()


def is_sample(member: Member) -> bool:
    """Whether webdataset takes it for a part of a sample: not without an extension, nor hidden (`._x.jpg`)."""
    return bool(member.extension and member.key.rpartition("/")[2])


def scan(path: Path, remark: Remark | None = None) -> Iterator[Member]:
    """The files of an uncompressed tar, in order. ShardError where it is not one or is cut short.

    remark: receives what is odd about it: no end mark, or what stands after one.
    """
    for name, offset, num_bytes, _, problem in tar_entries(path, remark=remark or _passed_over):
        key, extension = split_name(name)
        yield Member(key=key, extension=extension, offset=offset, num_bytes=num_bytes, problem=problem)


def _passed_over(kind: str, offset: int) -> None:
    pass
