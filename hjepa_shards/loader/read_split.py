"""A split once, in manifest order: evaluation does not use the plan."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from hjepa_shards.base.thread_map import num_cores
from hjepa_shards.errors import InputError
from hjepa_shards.images.crop import central_crops
from hjepa_shards.images.decode import crop_into
from hjepa_shards.loader.batch import Batch
from hjepa_shards.loader.remote_store import store_at
from hjepa_shards.loader.sample_reader import Located, SampleReader
from hjepa_shards.shards.location import Place, manifest_at
from hjepa_shards.storage.shard_cache import CacheConfig, shard_cache


def read_split(
    place: Place,
    *,
    image_size: int,
    batch: int,
    crop_share: float = 1.0,
    limit: int | None = None,
    samples: Sequence[int] | NDArray[np.int64] | None = None,
    rank: int = 0,
    world: int = 1,
    threads: int = 0,
    cache: CacheConfig | None = None,
) -> Iterator[Batch]:
    """A split once, in manifest order, for evaluation: central square crops, resized to [n, R, R, 3].

    place: the split's folder or URL; cache: for a URL.  image_size: R, in pixels.  batch: n.  crop_share: of the
    shorter side.  limit: only the first samples.  samples: only these, by their numbers and in this order, instead.
    threads: 0 is one a core.
    rank, world: rank r of R takes samples [rN/R, (r+1)N/R) of N; all ranks give the same number of batches, padded with
    `valid` False. A damaged sample is a ShardError and stops it: an evaluation is not to be approximate.
    """
    manifest = manifest_at(place)
    chosen = np.arange(min(manifest.num_samples, limit or manifest.num_samples))
    if samples is not None:
        chosen = np.asarray(samples, np.int64)
        if len(chosen) and not 0 <= chosen.min() <= chosen.max() < manifest.num_samples:
            raise InputError(
                f"samples: numbers from 0 to {manifest.num_samples - 1:,} expected, {chosen.min():,} to "
                f"{chosen.max():,} found"
            )
    num = len(chosen)
    start, stop = rank * num // world, (rank + 1) * num // world
    most = -(-num // world)
    if batch < 1:
        raise InputError(f"batch: a positive number expected, {batch} found")
    with (
        closing(SampleReader(store_at(place, manifest, shard_cache(cache)), manifest)) as reader,
        ThreadPoolExecutor(threads or num_cores(), thread_name_prefix="hjepa-decode") as pool,
    ):
        for first in range(start, start + most, batch):
            places = np.arange(first, min(first + batch, start + most))
            valid = places < stop
            numbers = chosen[np.where(valid, places, start)]
            images = np.empty((len(numbers), image_size, image_size, 3), np.uint8)
            located = reader.locate_all(numbers.tolist())
            jobs = list(zip(located, reader.gather(located), images, strict=True))
            list(pool.map(lambda job: _centre(reader, job[0], job[1], job[2], crop_share), jobs))
            yield Batch(
                images=images,
                labels=np.array([found.label for found in located], np.int64),
                entries=np.zeros(len(numbers), np.int64),
                samples=numbers,
                positions=numbers,
                valid=valid,
                position=first,
                next_position=first + len(numbers),
                proof=0,
            )


def _centre(
    reader: SampleReader, located: Located, data: bytes | None, slot: NDArray[np.uint8], crop_share: float
) -> None:
    """Decode one sample into its slot."""
    size = (np.array([located.width]), np.array([located.height]))
    crop_into(slot, reader.pixels(located, data), central_crops(*size, share=crop_share)[0])
