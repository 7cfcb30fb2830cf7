"""What a built split looks like, from its own files: sidecar rows of all samples, pixels of a few.

Sidecars are read shard by shard; above two million samples only as many whole shards as hold that many, in a keyed
order, so memory and time stay flat whatever the size of the data. Samples to show are a keyed choice too: two reports
of the same shards show the same images.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from zlib_ng.zlib_ng import crc32

from hjepa_shards.base.keyed_random import derive_key, permutation, philox_words
from hjepa_shards.images.thumbnail import thumbnail
from hjepa_shards.loader.sample_reader import DAMAGE, Located, SampleReader
from hjepa_shards.loader.shard_store import LocalStore
from hjepa_shards.shards.manifest import Manifest
from hjepa_shards.shards.raw_sample import decode_key
from hjepa_shards.shards.sample_keys import key_in_header
from hjepa_shards.shards.sidecar import ROW, Member
from hjepa_shards.shards.tar import BLOCK_BYTES

MAX_ROWS = 2_000_000
_FIELDS = ["image_bytes", "text_bytes", "width", "height", "label", "codec", "colour", "orientation"]
_COLUMNS = np.dtype([(name, ROW[name]) for name in _FIELDS])
"""Without the gaps that a choice of fields keeps: a third of the memory."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Sidecar rows of a split, all of them or those of some shards."""

    table: NDArray[Any]
    """[rows] with the fields of _FIELDS."""
    num_shards: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Shown:
    """One sample, small enough for a page."""

    index: int
    """In manifest order."""
    name: str
    """In the raw data; '' where the tar does not say it."""
    label: int
    width: int
    height: int
    captions: tuple[str, ...]
    image: bytes
    """A PNG or JPEG of at most 144 pixels a side; empty where the sample is damaged."""
    damage: str
    """What is wrong with it, '' where nothing is."""


@final
class Survey:
    """An opened split to look at; a context manager."""

    def __init__(self, folder: Path, manifest: Manifest) -> None:
        self.folder, self.manifest = folder, manifest
        self._store = LocalStore(folder, manifest)
        self._reader = SampleReader(self._store, manifest)

    def __enter__(self) -> "Survey":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._reader.close()

    def rows(self, most: int = MAX_ROWS) -> Rows:
        """The rows of all shards, or of the first shards in a keyed order that hold at most `most` samples."""
        shards = list(range(self.manifest.num_shards))
        if self.manifest.num_samples > most:
            order = permutation(derive_key(0, "survey", self.manifest.name), len(shards))
            held = np.cumsum(self.manifest.shard_samples[order])
            shards = sorted(order[: max(1, int(np.searchsorted(held, most, side="right")))].tolist())
        parts = [self._store.sidecar(shard).checked_rows()[_FIELDS].astype(_COLUMNS) for shard in shards]
        return Rows(np.concatenate([np.empty(0, _COLUMNS), *parts]), len(shards))

    def choose(self, count: int) -> list[int]:
        """At most `count` samples, a keyed random choice without repetition."""
        total = self.manifest.num_samples
        key = derive_key(0, "contact sheet", self.manifest.name)
        if total <= 8 * count:
            return permutation(key, total)[:count].tolist()
        drawn = (philox_words(key, 4 * count) % np.uint64(total)).astype(np.int64)
        return list(dict.fromkeys(drawn.tolist()))[:count]

    def show(self, sample: int) -> Shown:
        """A sample decoded and shrunk. What is damaged is shown as such."""
        try:
            located = self._reader.locate(sample)
        except DAMAGE as error:
            return _damaged(sample, error)
        image, damage = b"", ""
        try:
            image = thumbnail(Image.fromarray(self._reader.pixels(located)))
        except DAMAGE as error:
            damage = str(error)
        return Shown(
            index=sample,
            name=self._name(located),
            label=located.label,
            width=located.width,
            height=located.height,
            captions=self._captions(located),
            image=image,
            damage=damage,
        )

    def _name(self, located: Located) -> str:
        """From the tar header before the image, if it is the header of that key."""
        offset = located.row.image_offset - BLOCK_BYTES
        try:
            key = key_in_header(self._store.read(located.shard, max(0, offset), BLOCK_BYTES), located.row)
        except DAMAGE:
            return ""
        if key is None:
            return ""  # a longer name in an extended header, in a third-party tar
        return str(self.manifest.renamed[key][0]) if key in self.manifest.renamed else decode_key(key)

    def _captions(self, located: Located) -> tuple[str, ...]:
        text = self._member(located, "json")
        try:
            content = json.loads(text) if text else None
        except ValueError:
            content = None
        captions = content.get("captions") if isinstance(content, dict) else None
        if isinstance(captions, list) and captions:
            return tuple(caption for caption in captions if isinstance(caption, str))
        first = self._member(located, "text").decode("utf-8", "replace")
        return (first,) if first else ()

    def _member(self, located: Located, member: Member) -> bytes:
        """The bytes of a text beside the image; nothing where they are not the ones written."""
        offset, num_bytes, expected = located.row.member(member)
        try:
            data = self._store.read(located.shard, offset, num_bytes)
        except DAMAGE:
            return b""
        return data if crc32(data) == expected else b""


def _damaged(sample: int, error: Exception) -> Shown:
    return Shown(index=sample, name="", label=-1, width=0, height=0, captions=(), image=b"", damage=str(error))


def counts_by(values: NDArray[Any], names: Sequence[str]) -> dict[str, int]:
    """How often each code occurs, under its name, the commonest first."""
    counts = np.bincount(values, minlength=len(names))
    found = {names[code] if code < len(names) else f"code {code}": int(n) for code, n in enumerate(counts) if n}
    return dict(sorted(found.items(), key=lambda item: -item[1]))
