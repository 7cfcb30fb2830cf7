"""One sample of an entry, checked and decoded: sidecar row, one `pread`, CRC-32, pixels.

What the bytes say is damage: a checksum that does not match after one more read, bytes that no decoder takes, a shard
cut short, a broken sidecar. All of it is raised as `Damage`; read errors are not (shard_store.py).
"""

import bisect
import contextlib
import json
from collections.abc import Sequence
from typing import NamedTuple, final

import numpy as np
from numpy.typing import NDArray
from zlib_ng.zlib_ng import crc32

from hjepa_shards.errors import ChecksumMismatch, DecodeError, ShardTruncated, SidecarError
from hjepa_shards.images.decode import decode
from hjepa_shards.loader.held_rows import HeldRows
from hjepa_shards.loader.shard_store import Store
from hjepa_shards.loader.stage_times import lap
from hjepa_shards.shards.manifest import Manifest
from hjepa_shards.shards.sidecar import HAS_JSON, HAS_TEXT, Member, Row, Sidecar

DAMAGE = (ChecksumMismatch, DecodeError, ShardTruncated, SidecarError)
"""The errors that mean: this sample's bytes are not what was written."""


class Located(NamedTuple):
    """A sample found: its shard and its sidecar row."""

    shard: int
    row: Row

    @property
    def width(self) -> int:
        return self.row.width

    @property
    def height(self) -> int:
        return self.row.height

    @property
    def num_bytes(self) -> int:
        """Of the image as it is stored."""
        return self.row.image_bytes

    @property
    def label(self) -> int:
        return self.row.label


def _located(shard: int, found: Row | Exception) -> Located | Exception:
    return Located(shard, found) if isinstance(found, Row) else found


@final
class SampleReader:
    """Samples of one entry by their index in manifest order. Safe to use from many threads."""

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self.store = store
        self.name = manifest.name
        self._rows = HeldRows()
        self._ends: list[int] = np.cumsum(manifest.shard_samples).tolist()

    def locate(self, sample: int) -> Located:
        """Find a sample; SidecarError if its row is damaged."""
        return self.locate_all([sample])[0]

    def locate_all(self, samples: Sequence[int]) -> list[Located]:
        """Find samples; SidecarError if the row of one is damaged."""
        located = []
        for found in self.locate_many(samples):
            if not isinstance(found, Located):
                raise found
            located.append(found)
        return located

    def locate_many(self, samples: Sequence[int]) -> list[Located | Exception]:
        """Find samples; one of DAMAGE in place of each that is damaged."""
        shards = [bisect.bisect_right(self._ends, sample) for sample in samples]
        distinct = set(shards)
        self.store.open_sidecars(distinct)
        sidecars: dict[int, Sidecar] = {}
        damaged: dict[int, Exception] = {}
        for shard in distinct:
            try:
                sidecars[shard] = self.store.sidecar(shard)
            except DAMAGE as error:
                damaged[shard] = error
        starts = {shard: self._ends[shard - 1] if shard else 0 for shard in distinct}
        numbered = zip(shards, samples, strict=True)
        rows = iter(self._rows.read(sidecars, [(s, sample - starts[s]) for s, sample in numbered if s in sidecars]))
        return [_located(shard, damaged.get(shard) or next(rows)) for shard in shards]

    def gather(self, located: Sequence[Located]) -> list[bytes | None]:
        """Stored images that are better requested at once than one by one; None: let `image_bytes` read it."""
        rows = [(found.shard, found.row.image_offset, found.num_bytes) for found in located]
        return self.store.read_many(rows)

    def image_bytes(self, located: Located, data: bytes | None = None) -> bytes:
        """The stored image. data: what `gather` has brought."""
        return self.member_bytes(located, "image", data)

    def member_bytes(self, located: Located, member: Member, data: bytes | None = None) -> bytes:
        """A member as it is stored, its checksum tested; read once more if it does not match.

        data: what was read of it already.
        """
        offset, num_bytes, expected = located.row.member(member)
        if data is None:
            data = self.store.read(located.shard, offset, num_bytes)
            lap("read")
        found = crc32(data)
        if found != expected:
            data = self.store.read_again(located.shard, offset, num_bytes)
            found = crc32(data)
        lap("verify")
        if found != expected:
            raise ChecksumMismatch(
                f"{self.name}, shard {located.shard}: {num_bytes} bytes at {offset} have crc32 {found:08x}, "
                f"{expected:08x} expected; run `hjepa-shards verify`"
            )
        return data

    def captions(self, located: Located) -> tuple[str, ...]:
        """All captions of a sample; ChecksumMismatch where they are not what was written."""
        sidecar = self.store.sidecar(located.shard)
        if sidecar.flags & HAS_JSON:
            with contextlib.suppress(ValueError):  # third-party tars may hold any json
                content = json.loads(self.member_bytes(located, "json"))
                if isinstance(content, dict) and isinstance(content.get("captions"), list):
                    return tuple(map(str, content["captions"]))
        if sidecar.flags & HAS_TEXT:
            return (self.member_bytes(located, "text").decode("utf-8", "replace"),)
        return ()

    def pixels(self, located: Located, data: bytes | None = None, shrink: int = 1) -> NDArray[np.uint8]:
        """RGB [H, W, 3], upright, as large as the sidecar says, or smaller (decode.py).

        data: what `gather` has brought.
        """
        row = located.row
        pixels = decode(self.image_bytes(located, data), row.colour, row.orientation, shrink)
        lap("decode")
        found = pixels.shape[:2]
        if found != (row.height, row.width) and found != (-(-row.height // shrink), -(-row.width // shrink)):
            raise DecodeError(
                f"{self.name}, shard {located.shard}: {located.width} x {located.height} pixels expected, "
                f"{pixels.shape[1]} x {pixels.shape[0]} found; run `hjepa-shards verify`"
            )
        return pixels

    def close(self) -> None:
        self.store.close()
