"""The files in an uncompressed tar, found by their headers alone: what is between them is skipped, not read.

ImageNet's training tar has 138 GB and 1.28 million headers, inside a thousand inner tars. `tarfile` would take ten
times as long and keep a kilobyte for each, so the plain header, which nearly all are, is read here; whatever else a tar
may hold (long names, pax records, folders) is left to `tarfile`, one header at a time.
"""

import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple
from zlib import adler32

from hjepa_shards.errors import InputError, ShardError
from hjepa_shards.shards.tar import BLOCK_BYTES, member_bytes
from hjepa_shards.sources.formats.class_folders import proper_text

_END = bytes(BLOCK_BYTES)
_MAX_RECORD_BYTES = 1 << 20
_REGULAR = b"0\0"
_OCTAL = re.compile(rb"[0-7]+")
_FETCH = "it was cut short: fetch it again (`wget -c` and `curl -C -` continue where they stopped)"
_NOT_TARS = (
    (b"\x1f\x8b", "a gzip file: unpack it with gunzip first"),
    (b"PK\x03\x04", "a zip file: unpack it"),
    (b"<", "a web page: the server sent an error in place of the file, fetch it again"),
    (b"{", "a text: the server sent an error in place of the file, fetch it again"),
)


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
    try:
        with path.open("rb", buffering=0) as file:
            if hasattr(os, "posix_fadvise"):  # no reading ahead: the next header is a whole image away
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            yield from _members(file, path, start, os.fstat(file.fileno()).st_size if stop is None else stop)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def _members(file: BinaryIO, path: Path, start: int, stop: int) -> Iterator[TarMember]:
    offset = start
    while True:
        header = os.pread(file.fileno(), BLOCK_BYTES, offset)
        if offset + BLOCK_BYTES > stop or len(header) < BLOCK_BYTES:
            raise ShardError(f"{path}: a header or the end mark of a tar expected at byte {offset:,}, none; {_FETCH}")
        if header == _END:
            return
        member = _plain(header, offset)
        following = offset + member_bytes(member.num_bytes) if member else 0
        if member is None:
            member, following = _by_tarfile(file, path, start, offset)
        if following > stop:
            name = member.name if member else "a header"
            raise ShardError(f"{path}: {name} should end at byte {following:,}, the tar ends at {stop:,}; {_FETCH}")
        if member:
            yield member
        offset = following


def _plain(header: bytes, offset: int) -> TarMember | None:
    """A regular file with a short name and an octal size; None for all else."""
    name, size, checksum = header[:100].rstrip(b"\0"), header[124:136].strip(b" \0"), header[148:156].strip(b" \0")
    if header[156] not in _REGULAR or header[345] or b"\0" in name or name[-1:] in (b"", b"/"):
        return None
    if not _OCTAL.fullmatch(size) or not _OCTAL.fullmatch(checksum):
        return None
    total = int(checksum, 8) + sum(header[148:156]) - 8 * ord(" ")
    if adler32(header) & 0xFFFF != (total + 1) % 65521:  # what `sum` takes ten times as long for
        return None
    return TarMember(_relative(name.decode("utf-8", "backslashreplace")), offset + BLOCK_BYTES, int(size, 8))


def _by_tarfile(file: BinaryIO, path: Path, start: int, offset: int) -> tuple[TarMember | None, int]:
    """What `tarfile` makes of the header at `offset` (None: no regular file), and where the next one is."""
    file.seek(offset)
    try:
        with tarfile.open(fileobj=_SmallReads(file), mode="r:") as tar:  # type: ignore[arg-type]  # reads and seeks, all that a tar needs
            info, following = tar.next(), tar.offset
    except (tarfile.TarError, ValueError, EOFError, OverflowError, RecursionError):
        info, following = None, offset
    if info is None or info.size < 0 or following <= offset:
        raise ShardError(_not_a_tar(file, path, start, offset))
    if not info.isreg() or info.issparse():
        return None, following
    return TarMember(_relative(proper_text(info.name)), info.offset_data, info.size), following


class _SmallReads:
    """A file for `tarfile`, which reads as many bytes of a name or a pax record as its header claims: here a few."""

    def __init__(self, file: BinaryIO) -> None:
        self.seek, self.tell, self._file = file.seek, file.tell, file

    def read(self, num_bytes: int) -> bytes:
        if not 0 <= num_bytes <= _MAX_RECORD_BYTES:
            raise tarfile.ReadError(f"a record of {num_bytes:,} bytes")
        return self._file.read(num_bytes)


def _not_a_tar(file: BinaryIO, path: Path, start: int, offset: int) -> str:
    first = os.pread(file.fileno(), BLOCK_BYTES, offset)
    if offset != start:
        return f"{path}: a header of a tar expected at byte {offset:,}, {first[:16]!r} found; fetch it again"
    what = next((what for magic, what in _NOT_TARS if first.lstrip().startswith(magic)), "no tar: fetch it again")
    return f"{path}: a tar expected at byte {offset:,}, {first[:40]!r} found; this is {what}"


def _relative(name: str) -> str:
    return name.removeprefix("./").lstrip("/")


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
