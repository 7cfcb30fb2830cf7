"""How fast a mixture is delivered on this machine, beside what the decoder alone makes of the same bytes.

Loader and decoder alternate, because other work on a machine comes and goes; medians are compared. Nothing takes the
batches: a trainer that is slower waits for nothing.
"""

import os
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from hjepa_shards.base.thread_map import num_cores
from hjepa_shards.images.decode import decode
from hjepa_shards.loader.loader import open_loader, open_readers
from hjepa_shards.loader.stage_times import WORK, Stage
from hjepa_shards.mixture.mixture import Mixture

TARGETS = {"an M1 Max": 200, "an A100": 1_000}
"""The project's targets: images a second that it wants training to reach there, for no model in particular."""
_WARM_UP = 3
_TASK = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderSpeed:
    """Images a second."""

    threads: int
    images: int
    """Of each measurement."""
    loader: float
    """Median, pages in memory."""
    decoder: float
    """Median of decoding the same images alone, as large as they are."""
    cold: float | None
    """The first images after the kernel was told to forget the shards; None where they are far away."""
    stages: Mapping[Stage, float]
    """Share of the threads' working time."""
    limit: str
    """What limits the loader, in a line."""

    @property
    def share(self) -> float:
        """Of the decoder's speed."""
        return self.loader / self.decoder


def bench_loader(
    mixture: Mixture,
    *,
    batch: int = 64,
    images: int = 2048,
    rounds: int = 5,
    say: Callable[[str], None] = lambda what: None,
) -> LoaderSpeed:
    """Images a second of `mixture` on this machine, beside the decoder's alone.

    batch: images of a batch.  images: of one measurement; some are taken twice where the mixture repeats them.
    rounds: measurements of each, which alternate; their medians count.  say: receives what is being measured.
    ShardError, InputError as the loader raises them.
    """
    threads = mixture.config.threads or num_cores()
    batches = max(1, images // batch)
    say("from a cold cache")
    cold = _loader(mixture, batch, batches, warm_up=0)[0] if _forget(mixture) else None
    held = _stored(mixture, batches * batch)
    loader, decoder = [], []
    limit, stages = "", dict.fromkeys(WORK, 0.0)
    for number in range(rounds):
        say(f"round {number + 1} of {rounds}")
        decoder.append(_decoder(held, threads))
        speed, limit, times = _loader(mixture, batch, batches, warm_up=_WARM_UP)
        loader.append(speed)
        for stage in WORK:
            stages[stage] += times[stage]
    total = sum(stages.values())
    return LoaderSpeed(
        threads=threads,
        images=batches * batch,
        loader=statistics.median(loader),
        decoder=statistics.median(decoder),
        cold=cold,
        stages={stage: seconds / total for stage, seconds in stages.items()},
        limit=limit,
    )


def _loader(mixture: Mixture, batch: int, batches: int, warm_up: int) -> tuple[float, str, Mapping[Stage, float]]:
    """(images a second, what limits it, seconds by stage)"""
    with open_loader(mixture, seed=0, global_batch=batch) as loader:
        for _ in range(warm_up):
            next(loader)
        began = time.perf_counter()
        for _ in range(batches):
            next(loader)
        took_s = time.perf_counter() - began
        stats = loader.stats()
    return batches * batch / took_s, stats.limit, stats.stages


def _stored(mixture: Mixture, images: int) -> list[tuple[bytes, int, int]]:
    """(bytes, colour, orientation) of the first images of a run."""
    planned = mixture.make_plan(0).samples(0, images)
    readers = open_readers(mixture)
    held = []
    try:
        for source, sample in zip(planned.source.tolist(), planned.sample.tolist(), strict=True):
            located = readers[source].locate(sample)
            data = readers[source].image_bytes(located)
            held.append((data, located.row.colour, located.row.orientation))
    finally:
        for reader in readers:
            reader.close()
    return held


def _decoder(held: list[tuple[bytes, int, int]], threads: int) -> float:
    tasks = [held[start : start + _TASK] for start in range(0, len(held), _TASK)]
    with ThreadPoolExecutor(threads) as pool:
        began = time.perf_counter()
        list(pool.map(lambda task: [decode(*image) for image in task], tasks))
        return len(held) / (time.perf_counter() - began)


def _forget(mixture: Mixture) -> bool:
    """Ask the kernel to forget the shards. Whether it was possible."""
    if not hasattr(os, "posix_fadvise") or not all(isinstance(location, Path) for location in mixture.places):
        return False
    for location, manifest in zip(mixture.places, mixture.manifests, strict=True):
        for shard in range(manifest.num_shards):
            descriptor = os.open(Path(location) / manifest.shard_name(shard), os.O_RDONLY)
            try:
                os.fdatasync(descriptor)
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            finally:
                os.close(descriptor)
    return True
