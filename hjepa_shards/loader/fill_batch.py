"""The samples of a batch -> crops of them in its memory: located, read together, decoded, cropped.

A damaged sample is replaced by rule (DAMAGE in sample_reader.py, `Plan.replacement`): attempt a = 1..16 looks at a
keyed index of the same window. The replacement is a function of position and bytes alone.
"""

import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from functools import reduce
from typing import final

import numpy as np
from numpy.typing import NDArray

from hjepa_shards.errors import TooMuchDamage
from hjepa_shards.images.crop import AugmentationConfig, random_crops
from hjepa_shards.images.decode import crop_into, fitted
from hjepa_shards.loader.png_batch import Job, show_pngs
from hjepa_shards.loader.sample_reader import DAMAGE, Located, SampleReader
from hjepa_shards.loader.stage_times import lap
from hjepa_shards.mixture.sample_order import Plan, Planned

_ATTEMPTS = 16
_READ_AT_ONCE = 1 << 20
"""Bytes of images that a thread holds as they are stored. What is far away is requested all at once."""

Crops = tuple[Sequence[Sequence[int]], int]
"""One a view, and how much smaller the image may be decoded for all of them (decode.py)."""


@final
@dataclass(kw_only=True, slots=True)
class Draft:
    """A batch being filled by several threads; each task writes its own rows."""

    position: int
    plan: Plan
    planned: Planned
    images: NDArray[np.uint8]
    """[n, views, R, R, 3]"""
    sources: list[int] = field(init=False)
    wanted: list[int] = field(init=False)
    """The sample planned for each row."""
    samples: list[int] = field(init=False)
    """The sample that is shown."""
    labels: list[int] = field(init=False)
    num_bytes: list[int] = field(init=False)
    damage: list[tuple[str, int, str]] = field(default_factory=list)
    """(entry, sample, what is wrong with it)"""
    tasks: list[Future[None]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.sources, self.wanted = self.planned.source.tolist(), self.planned.sample.tolist()
        self.samples, self.labels, self.num_bytes = ([0] * len(self.wanted) for _ in range(3))

    def report(self, entry: int, sample: int, error: Exception) -> None:
        self.damage.append((self.plan.entries[entry].name, sample, str(error)))

    def note(self, row: int, sample: int, located: Located) -> None:
        """It is shown in this row."""
        found = located.row
        self.samples[row], self.labels[row], self.num_bytes[row] = sample, found.label, found.image_bytes


@final
class Filler:
    """Fills rows of drafts. Safe to use from many threads."""

    def __init__(
        self, readers: Sequence[SampleReader], image_size: int, augmentation: AugmentationConfig, lock: threading.Lock
    ) -> None:
        """lock: of plans, which keep a few windows."""
        self._readers = readers
        self._image_size, self._augmentation = image_size, augmentation
        self._lock = lock
        self._read_at_once = sys.maxsize if any(reader.store.is_far for reader in readers) else _READ_AT_ONCE

    def fill(self, draft: Draft, start: int, stop: int) -> None:
        """Rows [start, stop). TooMuchDamage where a sample and all its replacements are damaged."""
        lap("idle")
        rows = range(start, stop)
        located = self._locate(draft, rows)
        crops = self._crops(draft, rows, located)
        for piece in _pieces(located, self._read_at_once):
            self._fill_piece(draft, rows[piece], located[piece], crops[piece])

    def _fill_piece(self, draft: Draft, rows: range, located: Sequence[Located | None], crops: Sequence[Crops]) -> None:
        gathered = self._gather(draft, rows, located)
        lap("read")
        num_views, side = draft.images.shape[1:3]
        jobs = [
            Job(data, found.row, views, row * num_views) if found and data else None
            for row, found, (views, _), data in zip(rows, located, crops, gathered, strict=True)
        ]
        shown = show_pngs(jobs, draft.images.reshape(-1, side, side, 3))
        for row, found, crop, data, is_shown in zip(rows, located, crops, gathered, shown, strict=True):
            sample = draft.wanted[row]
            if found and is_shown:
                draft.note(row, sample, found)
            elif not (found and self._show(draft, row, sample, found, crop, data)):
                self._show_replacement(draft, row)

    def _locate(self, draft: Draft, rows: range) -> list[Located | None]:
        """None where the index of its shard is damaged."""
        located: list[Located | None] = [None] * len(rows)
        for entry in set(draft.sources[rows.start : rows.stop]):
            mine = [row for row in rows if draft.sources[row] == entry]
            found = self._readers[entry].locate_many([draft.wanted[row] for row in mine])
            for row, one in zip(mine, found, strict=True):
                if isinstance(one, Located):
                    located[row - rows.start] = one
                else:
                    draft.report(entry, draft.wanted[row], one)
        return located

    def _crops(self, draft: Draft, rows: range, located: Sequence[Located | None]) -> list[Crops]:
        """Any where the sample could not be located."""
        positions = draft.planned.position[rows.start : rows.stop]
        sizes = [found.row.size if found else (1, 1) for found in located]
        widths, heights = np.array(sizes, np.int64).T
        views, shrinks = [], []
        for view in range(draft.images.shape[1]):
            crops = random_crops(draft.plan.seed, positions, widths, heights, self._augmentation, view)
            crops, shrink = fitted(crops, self._image_size)
            views.append(crops.tolist())
            shrinks.append(shrink)
        return list(zip(zip(*views, strict=True), reduce(np.minimum, shrinks).tolist(), strict=True))

    def _gather(self, draft: Draft, rows: range, located: Sequence[Located | None]) -> list[bytes | None]:
        """Images as they are stored; None for those that are to be read by themselves."""
        gathered: list[bytes | None] = [None] * len(rows)
        for entry in set(draft.sources[rows.start : rows.stop]):
            mine = [(i, found) for i, found in enumerate(located) if found and draft.sources[rows[i]] == entry]
            for (i, _), data in zip(mine, self._readers[entry].gather([found for _, found in mine]), strict=True):
                gathered[i] = data
        return gathered

    def _show(
        self, draft: Draft, row: int, sample: int, located: Located, crops: Crops, data: bytes | None = None
    ) -> bool:
        """Put a sample's crops into their places. False where its bytes are damaged."""
        entry, (views, shrink) = draft.sources[row], crops
        try:
            pixels = self._readers[entry].pixels(located, data, shrink)
        except DAMAGE as error:
            draft.report(entry, sample, error)
            return False
        is_smaller = pixels.shape[0] < located.height
        for slot, crop in zip(draft.images[row], views, strict=True):
            crop_into(slot, pixels, [side // shrink for side in crop] if is_smaller else crop)
        draft.note(row, sample, located)
        lap("resize")
        return True

    def _show_replacement(self, draft: Draft, row: int) -> None:
        """The first of the sample's replacements that is not damaged."""
        entry, draw = draft.sources[row], int(draft.planned.draw[row])
        for attempt in range(1, _ATTEMPTS + 1):
            with self._lock:
                sample = draft.plan.replacement(entry, draw, attempt)
            [located] = self._readers[entry].locate_many([sample])
            if not isinstance(located, Located):
                draft.report(entry, sample, located)
                continue
            [crops] = self._crops(draft, range(row, row + 1), [located])
            if self._show(draft, row, sample, located, crops):
                return
        *_, (name, _, reason) = draft.damage
        raise TooMuchDamage(
            f"{name}: sample {draft.wanted[row]} and its {_ATTEMPTS} replacements are all damaged, the last because "
            f"{reason.partition('; run')[0]}; run `hjepa-shards verify`"
        )


def _pieces(located: Sequence[Located | None], most: int) -> Iterator[slice]:
    """Parts that are read at once."""
    start = held = 0
    for i, found in enumerate(located):
        num_bytes = found.num_bytes if found else 0
        if i > start and held + num_bytes > most:
            yield slice(start, i)
            start, held = i, 0
        held += num_bytes
    yield slice(start, len(located))
