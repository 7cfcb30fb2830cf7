"""The sidecar index of a shard: one fixed-width row a sample, so that a sample is one `pread`.

    64-byte header   magic "HJSI", u16 version, u16 row bytes, u32 flags, u64 samples, u64 tar bytes,
                     16-byte digest of the keys, u32 crc32 of what comes before it, zeros
    80-byte rows     as in ROW below; the last four bytes are the crc32 of the row's first 76

Little-endian. Rows are read when they are used, and only then is their checksum tested. They are not mapped into
memory: a file that is cut short under a map ends the process.
"""

import hashlib
import os
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple, final

import numpy as np
from numpy.typing import NDArray
from zlib_ng.zlib_ng import crc32

from hjepa_shards.base.regular_files import regular_descriptor
from hjepa_shards.errors import SidecarError

VERSION = 1
HEADER_BYTES = 64
HAS_LABELS, HAS_TEXT, HAS_JSON = 1, 2, 4
"""Header flags: every sample of the shard has this member, or (flag not set) none has."""

Member = Literal["image", "text", "json"]
MEMBERS: tuple[Member, ...] = ("image", "text", "json")

_HEADER = struct.Struct("<4sHHIQQ16s")
_MAGIC = b"HJSI"
_PIECE_BYTES = 1 << 24

ROW = np.dtype(
    [
        ("image_offset", "<u8"),
        ("text_offset", "<u8"),
        ("json_offset", "<u8"),
        ("key_hash", "<u8"),
        ("image_bytes", "<u4"),
        ("image_crc32", "<u4"),
        ("text_bytes", "<u4"),
        ("text_crc32", "<u4"),
        ("json_bytes", "<u4"),
        ("json_crc32", "<u4"),
        ("width", "<u4"),
        ("height", "<u4"),
        ("label", "<i4"),
        ("codec", "u1"),
        ("colour", "u1"),
        ("orientation", "u1"),
        ("flags", "u1"),
        ("reserved", "<u4"),
        ("row_crc32", "<u4"),
    ]
)
PACKED_ROW = struct.Struct("<4Q8Ii4BII")
"""The same, to write one."""
assert ROW.itemsize == PACKED_ROW.size == 80


class Row(NamedTuple):
    """One sample's row: the fields of ROW."""

    image_offset: int
    text_offset: int
    json_offset: int
    key_hash: int
    image_bytes: int
    image_crc32: int
    text_bytes: int
    text_crc32: int
    json_bytes: int
    json_crc32: int
    width: int
    height: int
    label: int
    codec: int
    colour: int
    orientation: int
    flags: int
    reserved: int
    row_crc32: int

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of what is shown."""
        return self[10], self[11]

    def member(self, name: Member) -> tuple[int, int, int]:
        """Where it begins in the tar, its bytes, their CRC-32."""
        first = MEMBERS.index(name)
        return self[first], self[4 + 2 * first], self[5 + 2 * first]


_NEW_ROW = tuple.__new__
"""In half the time of Row._make, which counts the fields again."""


def key_hash(key: str) -> int:
    """64 bits of a key, to find a sample by name without parsing tar headers."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "little")


def digest_of_keys(keys: Iterable[str]) -> bytes:
    """16 bytes over the keys in order, each after its length."""
    digest = hashlib.blake2b(digest_size=16)
    for key in keys:
        body = key.encode()
        digest.update(len(body).to_bytes(4, "little") + body)
    return digest.digest()


def pack(rows: NDArray[Any], *, flags: int, tar_bytes: int, keys_digest: bytes) -> bytes:
    """The bytes of a sidecar. rows: ROW records whose `row_crc32` is filled in here."""
    rows = rows.copy()
    body = memoryview(rows.tobytes())
    for i in range(len(rows)):
        rows["row_crc32"][i] = crc32(body[i * ROW.itemsize : (i + 1) * ROW.itemsize - 4])
    head = _HEADER.pack(_MAGIC, VERSION, ROW.itemsize, flags, len(rows), tar_bytes, keys_digest)
    head += crc32(head).to_bytes(4, "little")
    return head.ljust(HEADER_BYTES, b"\0") + rows.tobytes()


@final
class Sidecar:
    """An open sidecar. Opening reads the header only; a file that cannot be read is an OSError."""

    def __init__(self, path: Path, url: str = "") -> None:
        """url: where the file came from, for errors."""
        self.path = url or path
        self._advice = "upload it again" if url else f"run `hjepa-shards verify {path.parent}`"
        self._descriptor = regular_descriptor(path, os.O_RDONLY)
        size = os.fstat(self._descriptor).st_size
        self._check_header(os.pread(self._descriptor, HEADER_BYTES, 0), size)

    def __del__(self) -> None:
        """Closed when the last holder drops it: a thread may still read what another has dropped."""
        descriptor, self._descriptor = getattr(self, "_descriptor", -1), -1
        if descriptor >= 0:
            os.close(descriptor)

    def __len__(self) -> int:
        return self.num_samples

    def place_of(self, i: int) -> tuple[int, int, int]:
        """Descriptor, offset and bytes of row i; `parse` makes it of what is read there."""
        return self._descriptor, HEADER_BYTES + i * ROW.itemsize, ROW.itemsize

    def row(self, i: int) -> Row:
        """Row i, checked. SidecarError if its bytes are not the ones written, OSError where they cannot be read."""
        descriptor, offset, num_bytes = self.place_of(i)
        return self.parse(i, os.pread(descriptor, num_bytes, offset))

    def parse(self, i: int, packed: bytes) -> Row:
        """Row i from its bytes. SidecarError if they are not the ones written, or lead out of the shard."""
        if len(packed) != ROW.itemsize:
            raise SidecarError(f"{self.path}: the file ends before row {i}: it was cut short; {self._advice}")
        row: Row = _NEW_ROW(Row, PACKED_ROW.unpack(packed))
        if crc32(packed[:-4]) != row[18]:
            raise SidecarError(f"{self.path}: row {i} does not match its checksum; {self._advice}")
        end = self.tar_bytes  # the first of each is where a member begins, the other its bytes
        if row[0] + row[4] > end or row[1] + row[6] > end or row[2] + row[8] > end:
            raise SidecarError(
                f"{self.path}: row {i}: members within the {self.tar_bytes:,} bytes of the shard expected, one beyond "
                f"them found; {self._advice}"
            )
        return row

    def checked_rows(self) -> np.recarray[Any, Any]:
        """All rows, each checked: columns by name, and rows with the attributes of Row."""
        data = self.all_rows()
        for i in range(self.num_samples):
            self.parse(i, data[i * ROW.itemsize : (i + 1) * ROW.itemsize])
        return np.frombuffer(data, ROW).view(np.recarray)

    def all_rows(self) -> bytes:
        """The bytes of all rows, fewer where the file was cut short; `parse` makes rows of them."""
        at, stop, pieces = HEADER_BYTES, HEADER_BYTES + self.num_samples * ROW.itemsize, []
        while piece := os.pread(self._descriptor, min(stop - at, _PIECE_BYTES), at):
            pieces.append(piece)
            at += len(piece)
        return b"".join(pieces)

    def _check_header(self, head: bytes, size: int) -> None:
        if len(head) < HEADER_BYTES or head[:4] != _MAGIC:
            raise SidecarError(f"{self.path}: a sidecar begins with {_MAGIC!r}, {head[:4]!r} found; {self._advice}")
        _, version, row_bytes, self.flags, self.num_samples, self.tar_bytes, self.keys_digest = _HEADER.unpack(
            head[: _HEADER.size]
        )
        if version != VERSION or row_bytes != ROW.itemsize:
            raise SidecarError(
                f"{self.path}: sidecar version {VERSION} with rows of {ROW.itemsize} bytes expected, version "
                f"{version} with {row_bytes} found; use the hjepa-shards that wrote it, or index the tars again"
            )
        crc = int.from_bytes(head[_HEADER.size : _HEADER.size + 4], "little")
        if crc != crc32(head[: _HEADER.size]) or any(head[_HEADER.size + 4 :]):
            raise SidecarError(f"{self.path}: the header does not match its checksum; {self._advice}")
        expected = HEADER_BYTES + self.num_samples * ROW.itemsize
        if size != expected:
            raise SidecarError(
                f"{self.path}: {expected} bytes expected for {self.num_samples} samples, {size} found; {self._advice}"
            )
