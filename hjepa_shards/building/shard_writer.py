"""One shard: a slice of samples encoded, written as tar + sidecar, and its journal record.

The record is written last, so a shard without one is not finished, whatever else is there. Everything in it is a
function of (samples, settings, encoder): the same slice gives the same bytes on any machine.
"""

import hashlib
import json
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, final

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from zlib_ng.zlib_ng import crc32

from hjepa_shards.base.regular_files import open_regular
from hjepa_shards.building.shard_columns import Slice, Texts
from hjepa_shards.errors import DecodeError
from hjepa_shards.images.encode import Encoded, EncodeSettings, encode, moments_of, reason_of
from hjepa_shards.shards.raw_sample import RawSample
from hjepa_shards.shards.sidecar import HAS_JSON, HAS_LABELS, HAS_TEXT, PACKED_ROW, ROW, digest_of_keys, key_hash, pack
from hjepa_shards.shards.tar import TarWriter
from hjepa_shards.sources.base import RawSplit
from hjepa_shards.storage.build_output import JOURNAL, Target

__all__ = [
    "JOURNAL",
    "Members",
    "Statistics",
    "add_statistics",
    "num_measured",
    "raw_token",
    "record_name",
    "sha256_of",
    "write_shard",
]

MEASURED_FIRST, MEASURED_EVERY = 16, 256
"""Of images that are kept as they are, a shard's first 16 and then one in 256 are decoded, for channel statistics."""

_COPY_BYTES = 1 << 20

Report = Callable[[int, int], None]
"""Called with (samples, raw bytes) that were done since the last call."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Members:
    """What every sample of a split is made of."""

    image: Annotated[str, Field(pattern=r"^[a-z0-9]+$")]
    """Extension of the image member: jpg, png or webp."""
    labels: bool
    captions: bool

    def extensions(self) -> list[str]:
        return [self.image] + ["cls"] * self.labels + ["txt", "json"] * self.captions

    def flags(self) -> int:
        return HAS_LABELS * self.labels | (HAS_TEXT | HAS_JSON) * self.captions


def record_name(shard_name: str) -> str:
    """The journal record of a shard, relative to its folder."""
    return f"{JOURNAL}/{Path(shard_name).stem}.json"


def write_shard(
    target: Target,
    shard_name: str,
    raw: RawSplit,
    samples: Slice,
    members: Members,
    settings: EncodeSettings,
    report: Report,
) -> None:
    """Encode `samples`, in order, into the shard `shard_name`, its sidecar and its record."""
    exclusions: list[dict[str, Any]] = []
    raw_digest = hashlib.blake2b(digest_size=16)
    statistics = Statistics()
    remarks: Counter[str] = Counter()
    num_decoded = 0
    with target.new_file(shard_name) as file:
        shard = _ShardFile(TarWriter(file), members)
        for index, (key, sample) in enumerate(samples.keyed()):
            num_bytes = 0
            try:
                image = raw.read(sample)
                num_bytes, checksum = _size_and_checksum(image)
                raw_digest.update(_token(num_bytes, checksum))
                encoded = encode(image, settings)
                moments, is_decoded = encoded.moments, encoded.is_decoded
                if moments is None and (index < MEASURED_FIRST or index % MEASURED_EVERY == 0):
                    moments, is_decoded = moments_of(encoded.data), True
            except DecodeError as error:
                exclusions.append({"name": sample.name, "index": sample.index, "reason": reason_of(error)})
            else:
                shard.add(key, sample, encoded, checksum if encoded.data is image else crc32(encoded.data))
                statistics.add(encoded.info.width, encoded.info.height, moments)
                remarks.update(encoded.remarks)
                num_decoded += is_decoded
            report(1, num_bytes)
        shard.tar.close()
    keys_digest = digest_of_keys(shard.keys)
    index = pack(
        np.frombuffer(shard.rows, ROW),
        flags=members.flags(),
        tar_bytes=shard.tar.num_bytes,
        keys_digest=keys_digest,
    )
    target.write(f"{shard_name}.index", index)
    record = {
        "samples": len(shard.keys),
        "bytes": shard.tar.num_bytes,
        "sha256": shard.tar.sha256.hexdigest(),
        "index_sha256": hashlib.sha256(index).hexdigest(),
        "keys_digest": keys_digest.hex(),
        "raw_digest": raw_digest.hexdigest(),
        "exclusions": exclusions,
        "statistics": statistics.as_dict(),
    }
    if remarks:
        record["remarks"] = dict(remarks)
    also_decoded = num_decoded - num_measured(len(shard.keys) + len(exclusions))
    if settings.pixels == "keep" and also_decoded:
        record["also_decoded"] = also_decoded
    target.write(record_name(shard_name), json.dumps(record, sort_keys=True).encode())


def num_measured(num_samples: int) -> int:
    """How many images of so many in a shard are decoded for statistics where they are kept."""
    return min(num_samples, MEASURED_FIRST) + max(0, (num_samples - 1) // MEASURED_EVERY)


def raw_token(raw: RawSplit, sample: RawSample) -> tuple[bytes, int]:
    """What a sample adds to its shard's `raw_digest`, and its number of raw bytes; nothing where it has no image."""
    try:
        num_bytes, checksum = _size_and_checksum(raw.read(sample))
    except DecodeError:
        return b"", 0
    return _token(num_bytes, checksum), num_bytes


def _token(num_bytes: int, checksum: int) -> bytes:
    return b"%d %d " % (num_bytes, checksum)


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with open_regular(path) as file:
        while chunk := file.read(_COPY_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _size_and_checksum(image: bytes | NDArray[np.uint8]) -> tuple[int, int]:
    """Bytes and crc32 of a raw image. A digest of each would cost half as much again as the shard's sha256."""
    data = image if isinstance(image, bytes) else np.ascontiguousarray(image).data
    return len(image) if isinstance(image, bytes) else image.nbytes, crc32(data)


@final
class _ShardFile:
    """The members of one shard and the sidecar rows that find them again."""

    def __init__(self, tar: TarWriter, members: Members) -> None:
        self.tar = tar
        self.members = members
        self.keys = Texts()
        self.rows = bytearray()
        """ROW records, packed: a shard of tiny images has a hundred thousand."""

    def add(self, key: str, sample: RawSample, encoded: Encoded, checksum: int) -> None:
        """checksum: crc32 of the encoded image."""
        info = encoded.info
        image_offset = self.tar.add(f"{key}.{self.members.image}", encoded.data)
        if self.members.labels:
            self.tar.add(f"{key}.cls", b"%d" % sample.label)
        text = json_text = b""
        text_offset = json_offset = 0
        if self.members.captions:
            text = next(iter(sample.captions), "").encode()
            json_text = json.dumps({"captions": list(sample.captions)}, ensure_ascii=False).encode()
            text_offset = self.tar.add(f"{key}.txt", text)
            json_offset = self.tar.add(f"{key}.json", json_text)
        self.keys.append(key)
        self.rows += PACKED_ROW.pack(
            *(image_offset, text_offset, json_offset, key_hash(key)),
            *(len(encoded.data), checksum, len(text), crc32(text)),
            *(len(json_text), crc32(json_text), info.width, info.height, sample.label),
            *(info.codec, info.colour, info.orientation, 0, 0, 0),
        )


@final
class Statistics:
    """Sizes and channel moments of a set of images, in integers, so that sums over shards are exact."""

    def __init__(self) -> None:
        self._widths, self._heights = array("I"), array("I")
        self._moments = np.zeros((3, 3), dtype=np.int64)

    def add(self, width: int, height: int, moments: NDArray[np.int64] | None) -> None:
        """moments: as of `Encoded`, None where they were not measured."""
        self._widths.append(width)
        self._heights.append(height)
        if moments is not None:
            self._moments += moments

    def as_dict(self) -> dict[str, Any]:
        return {
            "images": len(self._widths),
            "width": [min(self._widths, default=0), max(self._widths, default=0), sum(self._widths)],
            "height": [min(self._heights, default=0), max(self._heights, default=0), sum(self._heights)],
            "channel_moments": self._moments.tolist(),
        }


def add_statistics(parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The statistics of several shards together. width, height: [smallest, largest, sum]."""
    filled = [part for part in parts if part["images"]]
    total: dict[str, Any] = {"images": sum(part["images"] for part in filled)}
    for side in ("width", "height"):
        columns = [part[side] for part in filled] or [[0, 0, 0]]
        total[side] = [
            min(c[0] for c in columns),
            max(c[1] for c in columns),
            sum(c[2] for c in columns),
        ]
    moments = sum((np.array(part["channel_moments"]) for part in filled), np.zeros((3, 3), dtype=np.int64))
    total["channel_moments"] = moments.tolist()
    return total
