"""A split once, in manifest order: evaluation does not use the plan."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hjepa_shards.batch import Batch
from hjepa_shards.crop import central_crops
from hjepa_shards.decode import crop_into
from hjepa_shards.errors import InputError
from hjepa_shards.manifest import load_manifest
from hjepa_shards.reader import SampleReader
from hjepa_shards.store import LocalStore
from hjepa_shards.threads import num_cores


def read_split(
    folder: Path,
    *,
    image_size: int,
    batch: int,
    crop_share: float = 1.0,
    limit: int | None = None,
    rank: int = 0,
    world: int = 1,
    threads: int = 0,
) -> Iterator[Batch]:
    """A split once, in manifest order, for evaluation: central square crops, resized to [n, R, R, 3].

    limit: only the first samples. Rank r of R takes samples [rN/R, (r+1)N/R); all ranks give the same number of
    batches, padded with `valid` False. A damaged sample stops it: an evaluation is not to be approximate.
    """
    manifest = load_manifest(folder)
    num = min(manifest.num_samples, limit or manifest.num_samples)
    start, stop = rank * num // world, (rank + 1) * num // world
    most = -(-num // world)
    if batch < 1:
        raise InputError(f"batch: a positive number expected, {batch} found")
    with (
        closing(SampleReader(LocalStore(folder, manifest), manifest)) as reader,
        ThreadPoolExecutor(threads or num_cores(), thread_name_prefix="hjepa-decode") as pool,
    ):
        for first in range(start, start + most, batch):
            samples = np.arange(first, min(first + batch, start + most))
            valid = samples < stop
            samples = np.where(valid, samples, start)
            images = np.empty((len(samples), image_size, image_size, 3), np.uint8)
            labels = list(
                pool.map(
                    lambda job: _centre(reader, job[0], job[1], crop_share),
                    zip(samples.tolist(), images, strict=True),
                )
            )
            yield Batch(
                images=images,
                labels=np.array(labels, np.int64),
                entries=np.zeros(len(samples), np.int64),
                samples=samples,
                positions=samples,
                valid=valid,
                position=first,
                next_position=first + len(samples),
                proof=0,
            )


def _centre(reader: SampleReader, sample: int, slot: NDArray[np.uint8], crop_share: float) -> int:
    """Decode one sample into its slot; returns its label."""
    located = reader.locate(sample)
    size = (np.array([located.width]), np.array([located.height]))
    crop_into(slot, reader.pixels(located), central_crops(*size, share=crop_share)[0])
    return located.label
