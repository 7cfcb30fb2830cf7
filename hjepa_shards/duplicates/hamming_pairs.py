"""All pairs of 64-bit hashes within a distance, without looking at all pairs.

Two hashes that differ in at most d bits differ in at most d // 4 in one of their four bands of 16 bits (pigeonhole). So
for each band they are sorted by it, and each is compared with those whose band differs in that few bits: with d = 11
that is 137 of 65,536 bands.

Where a band repeats too often (pictures alike in their lowest frequencies), a hash is compared with the 1,024 nearest
in the order of the whole hash, and of those within the distance the first 64 are kept: work and memory stay bounded,
and `Pairs.cut` says how often this happened.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hjepa_shards.base.thread_map import in_threads

MAX_DISTANCE = 15
MAX_COMPARED = 1024
"""Hashes of one band that a hash is compared with."""
MAX_KEPT = 64
"""Of these, pairs that are kept."""

_BANDS, _BAND_BITS = 4, 16
_CHUNK = 1 << 19  # comparisons at a time, a few tens of MB a thread


@dataclass(frozen=True, slots=True)
class Pairs:
    """first < second; arrays of one element a pair, in that order."""

    first: NDArray[np.int64]
    second: NDArray[np.int64]
    distance: NDArray[np.int64]
    cut: int
    """Comparisons and pairs skipped by the bounds, an upper limit."""


def near_pairs(
    hashes: NDArray[np.uint64],
    flip: int,
    max_distance: int,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> Pairs:
    """Pairs of which one hash and the other `^ flip` differ in at most `max_distance` bits (up to 15).

    progress: called with (hashes done, hashes in all), counting parts of the work on all of them.
    """
    assert 0 <= max_distance <= MAX_DISTANCE
    masks = [mask for mask in range(1 << _BAND_BITS) if mask.bit_count() <= max_distance // _BANDS]
    found, cut, done = [], 0, 0
    for number in range(_BANDS):
        band = _Band(hashes, flip, number)
        for pairs, skipped in in_threads(lambda mask, band=band: band.search(mask, max_distance), masks, workers):
            found.append(pairs)
            cut += skipped
            done += 1
            if progress:
                progress(len(hashes) * done // (_BANDS * len(masks)), len(hashes))
    pairs = np.unique(np.concatenate(found), axis=0) if found else np.zeros((0, 3), np.int64)
    return Pairs(pairs[:, 0], pairs[:, 1], pairs[:, 2], cut)


class _Band:
    """The hashes, rotated so that one band is in front, in order."""

    def __init__(self, hashes: NDArray[np.uint64], flip: int, number: int) -> None:
        rotated = _rotate(hashes, number * _BAND_BITS)
        self._flip = _rotate(np.array([flip], np.uint64), number * _BAND_BITS)[0]
        self._order = np.argsort(rotated, kind="stable")
        self._keys = rotated[self._order]
        self._bands = (self._keys >> np.uint64(64 - _BAND_BITS)).astype(np.int64)
        self._starts = np.searchsorted(self._bands, np.arange((1 << _BAND_BITS) + 1))

    def search(self, mask: int, max_distance: int) -> tuple[NDArray[np.int64], int]:
        """[pairs, 3]: first, second, distance of those whose bands differ by `mask`; and how many were skipped."""
        wanted = self._bands ^ (mask ^ int(self._flip >> np.uint64(64 - _BAND_BITS)))
        indices = np.nonzero(self._bands <= wanted)[0]  # the others are found from the other side
        start = self._starts[wanted[indices]]
        stop = self._starts[wanted[indices] + 1]
        start = np.where(self._bands[indices] == wanted[indices], np.maximum(start, indices + 1), start)
        some = start < stop
        indices, start, stop = indices[some], start[some], stop[some]
        crowded = np.nonzero(stop - start > MAX_COMPARED)[0]
        skipped = 0
        if len(crowded):
            skipped = int((stop - start)[crowded].sum()) - MAX_COMPARED * len(crowded)
            probe = self._keys[indices[crowded]] ^ self._flip ^ (np.uint64(mask) << np.uint64(64 - _BAND_BITS))
            middle = np.searchsorted(self._keys, probe)
            low = np.clip(middle - MAX_COMPARED // 2, start[crowded], stop[crowded] - MAX_COMPARED)
            start[crowded], stop[crowded] = low, low + MAX_COMPARED
        found = [np.zeros((0, 3), np.int64)]
        for part in _chunks(indices, start, stop):
            pairs, dropped = self._compare(*part, max_distance)
            found.append(pairs)
            skipped += dropped
        return np.concatenate(found), skipped

    def _compare(
        self, indices: NDArray[np.int64], start: NDArray[np.int64], stop: NDArray[np.int64], max_distance: int
    ) -> tuple[NDArray[np.int64], int]:
        """Each hash in `indices` with those in its [start, stop): as `search`."""
        counts = stop - start
        one = np.repeat(indices, counts)
        other = np.arange(len(one)) + np.repeat(start - (np.cumsum(counts) - counts), counts)
        distance = np.bitwise_count(self._keys[one] ^ self._keys[other] ^ self._flip)
        close = np.nonzero(distance <= max_distance)[0]
        rank = np.arange(len(close)) - np.searchsorted(one[close], one[close])
        kept = close[rank < MAX_KEPT]
        pair = np.stack([self._order[one[kept]], self._order[other[kept]]], axis=1)
        pairs = np.column_stack([pair.min(axis=1), pair.max(axis=1), distance[kept]]).astype(np.int64)
        return pairs, len(close) - len(kept)


def _chunks(
    indices: NDArray[np.int64], start: NDArray[np.int64], stop: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]]:
    """The same in parts of about `_CHUNK` comparisons."""
    ends = np.cumsum(stop - start)
    cuts = np.searchsorted(ends, np.arange(0, int(ends[-1]) if len(ends) else 0, _CHUNK)[1:])
    yield from zip(np.split(indices, cuts), np.split(start, cuts), np.split(stop, cuts), strict=True)


def _rotate(hashes: NDArray[np.uint64], bits: int) -> NDArray[np.uint64]:
    left, right = np.uint64(bits), np.uint64((64 - bits) % 64)
    return hashes if bits == 0 else (hashes << left) | (hashes >> right)
