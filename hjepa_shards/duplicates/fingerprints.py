"""What duplicates are found by, of every sample of some splits: a digest of the pixels, a hash, a thumbnail.

One pass that decodes every image, small where its codec can. Digests, hashes and labels stay in memory (30 bytes a
sample); thumbnails (768 bytes) go to a temporary file. Nothing is kept for the next run, which costs the pass again.
"""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self, final

import numpy as np
from numpy.typing import NDArray

from hjepa_shards.base.thread_map import in_threads
from hjepa_shards.duplicates.perceptual_hash import (
    MIN_CONTRAST,
    MIN_SIDE,
    THUMBNAIL_SIDE,
    gray_of,
    hashes_of,
    reduction,
    small_pixels,
    squashed,
    thumbnails_of,
)
from hjepa_shards.errors import InputError
from hjepa_shards.loader.sample_reader import DAMAGE, SampleReader
from hjepa_shards.loader.shard_store import LocalStore
from hjepa_shards.shards.manifest import Manifest, load_manifest

_SAMPLES_A_TASK = 256
_THUMBNAIL_BYTES = 3 * THUMBNAIL_SIDE**2

Progress = Callable[[int, int], None]
"""Called with (done, in all)."""


@dataclass(frozen=True, slots=True)
class Split:
    """One of the splits looked at; its samples are [start, start + manifest.num_samples) of all."""

    folder: Path
    manifest: Manifest
    start: int

    @property
    def name(self) -> str:
        return f"{self.manifest.source}/{self.manifest.split}"


@final
class Fingerprints:
    """Arrays over all samples of `splits`, in their order. `close` removes the temporary file."""

    def __init__(self, splits: Sequence[Split]) -> None:
        self.splits = splits
        self._ends = np.cumsum([split.manifest.num_samples for split in splits])
        self.num_samples = int(self._ends[-1])
        self.digests = np.zeros((self.num_samples, 2), np.uint64)
        """Of the pixels and their shape; equal only for equal pictures."""
        self.hashes = np.zeros(self.num_samples, np.uint64)
        self.is_whole = np.zeros(self.num_samples, np.bool_)
        """False: damaged, so nothing is known of it."""
        self.is_telling = np.zeros(self.num_samples, np.bool_)
        """Large and varied enough for its hash to mean something."""
        self.labels = np.full(self.num_samples, -1, np.int32)
        self._file = _room_for(self.num_samples * _THUMBNAIL_BYTES)
        shape = (self.num_samples, THUMBNAIL_SIDE, THUMBNAIL_SIDE, 3)
        self.thumbnails: NDArray[np.uint8] = np.zeros((0, *shape[1:]), np.uint8)
        if self.num_samples:  # a map cannot be empty
            self.thumbnails = np.memmap(self._file, np.uint8, "r+", shape=shape)

    def split_number(self, sample: int) -> int:
        """Which of `splits` a sample is of."""
        return int(np.searchsorted(self._ends, sample, side="right"))

    def close(self) -> None:
        del self.thumbnails
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def open_splits(folders: Sequence[Path]) -> list[Split]:
    """The splits in `folders`, in that order. ManifestError where one has no manifest."""
    splits, start = [], 0
    for folder in folders:
        manifest = load_manifest(folder)
        splits.append(Split(folder, manifest, start))
        start += manifest.num_samples
    return splits


def fingerprints_of(splits: Sequence[Split], workers: int, progress: Progress | None = None) -> Fingerprints:
    """Read and decode every sample. Damaged ones are skipped (`is_whole`)."""
    prints = Fingerprints(splits)
    readers = [SampleReader(LocalStore(s.folder, s.manifest, len(splits)), s.manifest) for s in splits]
    reduced: list[int] = []
    done = 0

    def take(task: tuple[int, int, int]) -> tuple[int, list[int]]:
        number, start, stop = task
        return stop - start, _take(prints, splits[number].start, readers[number], range(start, stop))

    try:
        for num_samples, reduced_here in in_threads(take, _tasks(splits), workers):
            reduced += reduced_here
            done += num_samples
            if progress:
                progress(done, prints.num_samples)
        _look_closer(prints, readers, np.array(reduced, np.int64), workers)
    except BaseException:
        prints.close()
        raise
    finally:
        for reader in readers:
            reader.close()
    return prints


def _room_for(num_bytes: int) -> BinaryIO:
    """A temporary file of this many bytes. Checked first: a full disk under a memory map kills the process."""
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise InputError(
            f"{folder}: {num_bytes:,} bytes expected for thumbnails, {free:,} free; make room, or set TMPDIR to a "
            "folder on another disk"
        )
    file = tempfile.TemporaryFile()  # noqa: SIM115
    os.truncate(file.fileno(), num_bytes)
    return file


def _tasks(splits: Sequence[Split]) -> Iterator[tuple[int, int, int]]:
    """(number of the split, first sample, end)"""
    for number, split in enumerate(splits):
        for start in range(0, split.manifest.num_samples, _SAMPLES_A_TASK):
            yield number, start, min(start + _SAMPLES_A_TASK, split.manifest.num_samples)


def _take(prints: Fingerprints, offset: int, reader: SampleReader, samples: range) -> list[int]:
    """Fill in some samples of one split; gives those whose pixels were decoded at a fraction of their size."""
    small, whole, reduced = [], [], []
    for sample in samples:
        index = offset + sample
        try:
            located = reader.locate(sample)
            data = reader.image_bytes(located)
            header = (located.width, located.height, located.row.colour, located.row.orientation)
            pixels = small_pixels(data, *header)
        except DAMAGE:
            continue
        if reduction(data, *header) > 1:
            reduced.append(index)
        prints.digests[index] = _digest(pixels, located.row)
        prints.labels[index] = located.label
        prints.is_telling[index] = min(located.width, located.height) >= MIN_SIDE
        small.append(squashed(pixels))
        whole.append(index)
    if small:
        stack = np.stack(small)
        gray = gray_of(stack)
        prints.is_whole[whole] = True
        prints.hashes[whole] = hashes_of(gray)
        prints.is_telling[whole] &= gray.std(axis=(1, 2)) >= MIN_CONTRAST
        prints.thumbnails[whole] = thumbnails_of(stack)
    return reduced


def _look_closer(
    prints: Fingerprints, readers: Sequence[SampleReader], reduced: NDArray[np.int64], workers: int
) -> None:
    """Equal at a fraction of the size is not equal: digests of all pixels for those."""
    _, index, times = np.unique(prints.digests[reduced], axis=0, return_inverse=True, return_counts=True)
    suspects = reduced[times[index.reshape(-1)] > 1]

    def look(sample: int) -> tuple[int, Any]:
        number = prints.split_number(sample)
        reader = readers[number]
        located = reader.locate(sample - prints.splits[number].start)
        return sample, _digest(reader.pixels(located), located.row)

    for sample, digest in in_threads(look, suspects.tolist(), workers):
        prints.digests[sample] = digest


def _digest(pixels: NDArray[np.uint8], row: Any) -> NDArray[np.uint64]:
    digest = hashlib.blake2b(b"%d %d " % (row.width, row.height), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    return np.frombuffer(digest.digest(), np.uint64)
