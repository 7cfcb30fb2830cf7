"""Third-party tars, header by header: every member, in memory that does not grow with what a header claims.

`tarfile` keeps all members, follows any number of nested headers, reads as many bytes of one as it claims, stops at
the first end mark and never ends at some sizes below zero; so the headers are read here: ustar, GNU (long names, sizes
above 8 GiB), pax. What is between headers is skipped, not read: ImageNet's 138 GB take seconds.

What stands after an end mark is looked at: another tar (`cat a.tar b.tar`) is read on, other bytes are remarked. A
hard link is the member that it names, if that comes before it. What is no plain file (a sparse one, another link, a
device) is a member with the reason why it cannot be read.
"""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, final
from zlib import adler32

from hjepa_shards.errors import InputError, ShardError

BLOCK_BYTES = 512
MAX_RECORD_BYTES = 1 << 20
"""Of a long name or of a pax header."""
MAX_RECORDS = 16
"""Such headers before one member."""

NO_END_MARK = "tars without an end mark (never closed, or cut short between two members)"
JOINED = "tars made of several joined ones, all of them read"
OTHER_BYTES = "tars with bytes after the end mark that are no tar, not read"

Remark = Callable[[str, int], None]
"""Receives what is odd about a tar that can be read, one of the three above, and the byte where."""

_END = bytes(BLOCK_BYTES)
_AT_ONCE = 1 << 20
_OCTAL = re.compile(rb"[0-7]+")
_REGULAR, _RECORDS, _WITHOUT_DATA = b"0\0" + b"7", b"LKxXg", b"123456"
_NO_FILES = b"5VD"
"""Folders, the name of a volume, GNU's lists of a folder."""
_SPARSE = "a sparse file, which cannot be read in place; write the tar again without --sparse"
_FETCH = "it was cut short: fetch it again (`wget -c` and `curl -C -` continue where they stopped)"
_NOT_TARS = (
    (b"\x1f\x8b", "a gzip file: unpack it with gunzip first"),
    (b"PK\x03\x04", "a zip file: unpack it"),
    (b"<", "a web page: the server sent an error in place of the file, fetch it again"),
    (b"{", "a text: the server sent an error in place of the file, fetch it again"),
)


class TarEntry(NamedTuple):
    """One member of a tar that is no folder."""

    name: str
    r"""As it is there; bytes that are not UTF-8 are \xNN."""
    offset: int
    """Of its first byte in the outermost file."""
    num_bytes: int
    header: int
    """Where its first header begins."""
    problem: str = ""
    """Why it cannot be read; '' where it can."""


def tar_entries(
    path: Path, start: int = 0, stop: int | None = None, remark: Remark | None = None
) -> Iterator[TarEntry]:
    """The members of the tar that fills bytes [start, stop) of a file (all of it, without a stop), in order.

    remark: receives what is odd; without one a missing end mark is an error, and the rest is passed over.
    ShardError where it is no tar or was cut short, InputError where it cannot be read.
    """
    try:
        with path.open("rb", buffering=0) as file:
            if hasattr(os, "posix_fadvise"):  # no reading ahead: the next header is a whole image away
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            tar = _Tar(file, path, start, os.fstat(file.fileno()).st_size if stop is None else stop)
            linked: dict[int, TarEntry] | None = None
            for entry, target in tar.members(remark):
                if target:
                    linked = tar.linked() if linked is None else linked
                    found = linked.get(entry.header)
                    yield found._replace(name=entry.name, header=entry.header) if found else entry
                else:
                    yield entry
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def entry_at(path: Path, header: int) -> TarEntry | None:
    """The member whose first header is there; None where there is a folder. ShardError, InputError as above."""
    try:
        with path.open("rb", buffering=0) as file:
            found, _, _ = _Tar(file, path, 0, os.fstat(file.fileno()).st_size).member_at(header)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    return found


@dataclass(slots=True)
class _Records:
    """What the headers before a member say of it."""

    name: bytes | None = None
    link: bytes | None = None
    num_bytes: int | None = None
    sparse: bool = False


@final
class _Tar:
    """An open tar. `start` and `stop`: where it is in the file."""

    def __init__(self, file: BinaryIO, path: Path, start: int, stop: int) -> None:
        self._descriptor = file.fileno()
        self.path, self.start, self.stop = path, start, stop

    def members(self, remark: Remark | None) -> Iterator[tuple[TarEntry, str]]:
        """Each member, and what a hard link names."""
        offset = first = self.start
        while True:
            header = self._read(offset, min(BLOCK_BYTES, self.stop - offset))
            if len(header) < BLOCK_BYTES:
                if remark is None or offset == self.start or header:
                    raise self._cut_short(f"a header or the end mark of a tar expected at byte {offset:,}, none")
                remark(NO_END_MARK, offset)
                return
            if header == _END:
                following = self._after(offset)
                if following is None:
                    return
                if not _is_header(self._read(following, BLOCK_BYTES)):
                    if remark is not None:
                        remark(OTHER_BYTES, following)
                    return
                if remark is not None and first == self.start:
                    remark(JOINED, following)
                offset = first = following
                continue
            plain = _plain(header, offset)
            if plain is not None:
                found, target, following = plain, "", plain.offset + _whole(plain.num_bytes)
            else:
                found, target, following = self.member_at(offset)
            if following > self.stop:
                name = found.name if found else "a header"
                raise self._cut_short(f"{name} should end at byte {following:,}, the tar ends at {self.stop:,}")
            if found:
                yield found, target
            offset = following

    def linked(self) -> dict[int, TarEntry]:
        """What each hard link leads to, by its header: memory for the links and what they name, not for all members."""
        wanted = {target for _, target in self.members(_ignored) if target}
        latest: dict[str, TarEntry] = {}
        linked: dict[int, TarEntry] = {}
        for entry, target in self.members(_ignored):
            found = latest.get(target) if target else entry
            if target and found:
                linked[entry.header] = found
            if found and relative(entry.name) in wanted:
                latest[relative(entry.name)] = found
        return linked

    def member_at(self, first: int) -> tuple[TarEntry | None, str, int]:
        """The member whose headers begin at `first` (None: a folder), what a hard link names, where the next begins."""
        records, offset = _Records(), first
        for _ in range(MAX_RECORDS + 1):
            header = self._header(offset, first)
            kind, num_bytes = header[156:157], self._size(header, offset)
            offset += BLOCK_BYTES
            if kind not in _RECORDS:
                return self._member(header, kind, num_bytes, records, first, offset)
            if num_bytes > MAX_RECORD_BYTES:
                raise ShardError(
                    f"{self.path}: a long name or pax header of at most {MAX_RECORD_BYTES:,} bytes expected at byte "
                    f"{offset - BLOCK_BYTES:,}, one of {num_bytes:,} found; write the tar again"
                )
            if offset + _whole(num_bytes) > self.stop:
                raise self._cut_short(
                    f"a header should end at byte {offset + _whole(num_bytes):,}, the tar ends at {self.stop:,}"
                )
            self._add_record(kind, self._read(offset, num_bytes), records, offset)
            offset += _whole(num_bytes)
        raise ShardError(
            f"{self.path}: at most {MAX_RECORDS} long names or pax headers before a member expected at byte {first:,}, "
            "more found; write the tar again"
        )

    def _member(
        self, header: bytes, kind: bytes, num_bytes: int, records: _Records, first: int, offset: int
    ) -> tuple[TarEntry | None, str, int]:
        name = _text(records.name if records.name is not None else _name(header, kind))
        num_bytes = num_bytes if records.num_bytes is None else records.num_bytes
        if kind in _WITHOUT_DATA:
            num_bytes = 0
        if kind == b"S":
            offset = self._after_map(header, offset)
        following = offset + _whole(num_bytes)
        target, problem = "", ""
        if kind == b"1":
            target = relative(_text(records.link if records.link is not None else _field(header[157:257])))
            problem = f"a hard link to {target[:200]}, which is not before it in the tar"
        elif kind == b"2":
            problem = "a symbolic link, which is not followed"
        elif kind == b"S" or records.sparse:
            problem = _SPARSE
        elif kind in _NO_FILES or (kind == b"\0" and name.endswith("/")):
            return None, "", following
        elif kind not in _REGULAR:
            problem = "a device or a pipe" if kind in _WITHOUT_DATA else f"a member of the unknown type {kind!a}"
        return TarEntry(name, offset, num_bytes, first, problem), target, following

    def _add_record(self, kind: bytes, data: bytes, records: _Records, offset: int) -> None:
        if kind == b"L":
            records.name = _field(data) if records.name is None else records.name
        elif kind == b"K":
            records.link = _field(data) if records.link is None else records.link
        elif kind != b"g":  # which says the same of all members: times, a comment
            for key, value in self._pax(data, offset):
                if key == b"GNU.sparse.name" or (key == b"path" and not records.sparse):
                    records.name = value
                elif key == b"linkpath":
                    records.link = value
                elif key == b"size":
                    if not value.isdigit() or len(value) > 18:
                        raise self._no_header(offset, f"a pax header with size {value[:20]!r}")
                    records.num_bytes = int(value)
                records.sparse |= key.startswith(b"GNU.sparse.")

    def _pax(self, data: bytes, offset: int) -> Iterator[tuple[bytes, bytes]]:
        """The records `<length> <key>=<value>\\n` of a pax header."""
        at = 0
        while at < len(data) and data[at]:
            digits, space, _ = data[at : at + 20].partition(b" ")
            end = at + int(digits) if space and digits.isdigit() else -1
            body = data[at + len(digits) + 1 : max(end - 1, 0)]
            if not at < end <= len(data) or data[end - 1] != ord("\n") or b"=" not in body:
                raise self._no_header(offset, f"a pax header with {data[at : at + 20]!r}")
            key, _, value = body.partition(b"=")
            yield key, value
            at = end

    def _after_map(self, header: bytes, offset: int) -> int:
        """Where the data of GNU's old kind of sparse file begins: after more blocks of its map."""
        more = header[482]
        while more:
            block = self._read(offset, BLOCK_BYTES)
            offset += BLOCK_BYTES
            if len(block) < BLOCK_BYTES or offset > self.stop:
                raise self._cut_short(f"the map of a sparse file expected until byte {offset:,}, less found")
            more = block[504]
        return offset

    def _after(self, offset: int) -> int | None:
        """The first block from `offset` on that is not all zeros."""
        while offset < self.stop:
            chunk = self._read(offset, min(_AT_ONCE, self.stop - offset))
            if not chunk:
                return None
            at = len(chunk) - len(chunk.lstrip(b"\0"))
            if at < len(chunk):
                return offset + at // BLOCK_BYTES * BLOCK_BYTES
            offset += len(chunk)
        return None

    def _header(self, offset: int, first: int) -> bytes:
        header = self._read(offset, BLOCK_BYTES)
        if offset + BLOCK_BYTES > self.stop or len(header) < BLOCK_BYTES:
            raise self._cut_short(f"a header of a tar expected at byte {offset:,}, none")
        if not _is_header(header):
            at_start = offset == first == self.start
            raise (
                ShardError(_not_a_tar(self.path, offset, header))
                if at_start
                else self._no_header(offset, repr(header[:16]))
            )
        return header

    def _size(self, header: bytes, offset: int) -> int:
        field = header[124:136]
        if field[0] & 0x80:
            num_bytes = int.from_bytes(field, "big", signed=True) if field[0] == 0xFF else _base_256(field)
        else:
            text = _field(field).strip()
            num_bytes = int(text or b"0", 8) if _OCTAL.fullmatch(text or b"0") else -1
        if not 0 <= num_bytes < 1 << 62:
            raise self._no_header(offset, f"one with the size {field!r}")
        return num_bytes

    def _read(self, offset: int, num_bytes: int) -> bytes:
        return os.pread(self._descriptor, num_bytes, offset) if num_bytes > 0 else b""

    def _no_header(self, offset: int, found: str) -> ShardError:
        return ShardError(f"{self.path}: a header of a tar expected at byte {offset:,}, {found} found; fetch it again")

    def _cut_short(self, what: str) -> ShardError:
        return ShardError(f"{self.path}: {what}; {_FETCH}")


def _plain(header: bytes, offset: int) -> TarEntry | None:
    """A regular file with a short name and an octal size, which nearly all are; None for all else."""
    name, size, checksum = header[:100].rstrip(b"\0"), header[124:136].strip(b" \0"), header[148:156].strip(b" \0")
    if header[156] not in b"0\0" or header[345] or b"\0" in name or name[-1:] in (b"", b"/"):
        return None
    if not _OCTAL.fullmatch(size) or not _OCTAL.fullmatch(checksum):
        return None
    total = int(checksum, 8) + sum(header[148:156]) - 8 * ord(" ")
    if adler32(header) & 0xFFFF != (total + 1) % 65521:  # what `sum` takes ten times as long for
        return None
    return TarEntry(_text(name), offset + BLOCK_BYTES, int(size, 8), offset)


def _is_header(header: bytes) -> bool:
    """Whether its checksum, over bytes with or without a sign, is right."""
    checksum = _field(header[148:156]).strip()
    if len(header) < BLOCK_BYTES or not _OCTAL.fullmatch(checksum):
        return False
    rest = header[:148] + b" " * 8 + header[156:]
    unsigned = sum(rest)
    return int(checksum, 8) in (unsigned, unsigned - 256 * sum(byte > 127 for byte in rest))


def _base_256(field: bytes) -> int:
    return int.from_bytes(field[1:], "big") if field[0] == 0x80 else -1


def _name(header: bytes, kind: bytes) -> bytes:
    name, prefix = _field(header[:100]), _field(header[345:500])
    return prefix + b"/" + name if prefix and kind not in b"SMND" else name


def _field(data: bytes) -> bytes:
    """Up to the first zero."""
    return data.partition(b"\0")[0]


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


def _whole(num_bytes: int) -> int:
    """What this many bytes take of a tar: whole blocks."""
    return -(-num_bytes // BLOCK_BYTES) * BLOCK_BYTES


def _ignored(kind: str, offset: int) -> None:
    pass


def relative(name: str) -> str:
    """A member's name without `./` or `/` before it."""
    return name.removeprefix("./").lstrip("/")


def _not_a_tar(path: Path, offset: int, first: bytes) -> str:
    what = next((what for magic, what in _NOT_TARS if first.lstrip().startswith(magic)), "no tar: fetch it again")
    return f"{path}: a tar expected at byte {offset:,}, {first[:40]!r} found; this is {what}"
