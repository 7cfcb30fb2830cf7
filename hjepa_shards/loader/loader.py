"""Batches of a mixture: the plan says which samples, threads read, decode and crop them into preallocated memory.

Threads, not processes: decode, resize and checksums release the GIL. Nothing here has a state of its own: a batch is a
function of the plan and its position, so the state to save is that of the batch the trainer holds, however many are
being prepared after it.

Damaged samples are replaced (fill_batch.py). `damaged` is a report: it decides nothing but when there is too much of
it.
"""

import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from hjepa_shards.base.shown_text import counted, listed
from hjepa_shards.base.thread_map import num_cores
from hjepa_shards.errors import InputError, TooMuchDamage
from hjepa_shards.images.crop import AugmentationConfig
from hjepa_shards.loader.batch import Batch
from hjepa_shards.loader.fill_batch import Draft, Filler
from hjepa_shards.loader.remote_store import store_at
from hjepa_shards.loader.sample_reader import SampleReader
from hjepa_shards.loader.shard_prefetch import Prefetcher
from hjepa_shards.loader.stage_times import LoaderStats, StageTimes, Traffic
from hjepa_shards.mixture.mixture import Mixture
from hjepa_shards.mixture.resume_state import load_state, plan_state, resume
from hjepa_shards.mixture.sample_order import Plan, add_proofs, order_proof, slice_size
from hjepa_shards.mixture.source_counts import exact_weights
from hjepa_shards.mixture.source_shares import source_shares
from hjepa_shards.storage.shard_cache import shard_cache

_TASK_SAMPLES = (8, 64)
"""Least and most samples of a task: they are located, cropped and read together, and every thread should have one."""
_PREFETCH = 2
"""Batches being prepared while the trainer holds one."""
_MAX_REPORTED = 1000
"""Damaged samples of an entry that a state lists."""
_DAMAGE_SHARE, _DAMAGE_LEAST = 1e-3, 10
"""A run stops when more than this share of an entry (and at least this many samples) turns out damaged."""


@final
class Loader:
    """Endless batches of a mixture, from a position on."""

    def __init__(
        self,
        plan: Plan,
        readers: Sequence[SampleReader],
        *,
        position: int,
        proof: int,
        damaged: Mapping[str, Mapping[int, str]],
        global_batch: int,
        rank: int,
        world: int,
        image_size: int,
        augmentation: AugmentationConfig,
        threads: int,
        allocate: Callable[[tuple[int, ...]], NDArray[np.uint8]] | None = None,
        stops_alone: bool = True,
    ) -> None:
        self.plan = plan
        self.damaged = {name: dict(samples) for name, samples in damaged.items()}
        self._readers = readers
        self._rank, self._world, self._global_batch = rank, world, global_batch
        self._stops_alone = stops_alone
        self._position, self._proof = position, proof
        self._first = self._last = (position, proof)
        """Where this loader began; where the batch ends that was delivered last."""
        num = slice_size(global_batch, world)
        shape = (num, augmentation.views, image_size, image_size, 3)
        self._ring = deque(allocate(shape) if allocate else np.empty(shape, np.uint8) for _ in range(_PREFETCH + 1))
        if not all(images.shape == shape and images.flags.c_contiguous for images in self._ring):
            raise InputError(f"allocate: arrays {shape} without gaps expected")
        least, most = _TASK_SAMPLES
        self._task_samples = max(least, min(most, -(-_PREFETCH * num // threads)))
        self._times, self._threads = StageTimes(), threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="hjepa-decode", initializer=self._times.enroll)
        self._images = self._bytes = 0
        self._waited_s = 0.0
        self._plan_lock = threading.Lock()  # the plan keeps a few windows; threads ask it for replacements
        self._filler = Filler(readers, image_size, augmentation, self._plan_lock)
        self._pending: deque[Draft] = deque()
        self._prefetcher = Prefetcher(plan, [reader.store for reader in readers], rank=rank, world=world)

    def __repr__(self) -> str:
        names = listed([entry.name for entry in self.plan.entries])
        shape = list(self._ring[0].shape)
        return (
            f"<Loader of {names}: position {self._last[0]:,}, global batch {self._global_batch:,}, "
            f"rank {self._rank} of {self._world}, images {shape if shape[1] > 1 else [shape[0], *shape[2:]]}, "
            f"{counted(self._threads, 'thread', 'threads')}>"
        )

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next batch. TooMuchDamage above the limit; read errors come through."""
        while len(self._pending) < _PREFETCH:
            self._prepare()
        pending = self._pending.popleft()
        began = time.perf_counter()
        for future in pending.tasks:
            future.result()
        self._waited_s += time.perf_counter() - began
        self._prepare_after(pending)
        return self._deliver(pending)

    def state_dict(self, batch: Batch | None = None) -> dict[str, Any]:
        """Plain JSON from which a run continues after `batch` (None: where this loader began)."""
        position, proof = (batch.next_position, batch.proof) if batch else self._first
        damaged = {name: sorted(samples)[:_MAX_REPORTED] for name, samples in self.damaged.items()}
        return plan_state(self.plan, position, proof, damaged)

    def set_weights(self, weights: Mapping[str, float], *, after: Batch | None = None) -> None:
        """Draw by other weights from the first position after `after` on (None: the batch delivered last).

        weights: of every entry, in any unit; one of weight 0 rests. Every rank makes the same call at the same step.
        Batches delivered after `after`, into a prefetcher say, come again under the new weights: drop them there.
        InputError for other names, wrong numbers, and for a mixture whose weights follow epochs.
        """
        names = [entry.name for entry in self.plan.entries]
        if sorted(weights) != names:
            raise InputError(f"weights: one for each of {', '.join(names)} expected, {', '.join(weights)} found")
        position, proof = (after.next_position, after.proof) if after else self._last
        if position < self.plan.segment.start:
            raise InputError(f"weights: were set at position {self.plan.segment.start}, after this batch")
        plan = self.plan.reweighed(position, exact_weights([weights[name] for name in names]))
        self._drop_pending()
        self.plan = plan
        self._prefetcher.use(plan)
        self._position, self._proof = self._last = position, proof

    def merge_damage(self, reports: Iterable[Mapping[str, Mapping[int, str]]]) -> None:
        """Every rank passes the `damaged` of all ranks as `reports`: states list the union, and all stop at once.

        TooMuchDamage above the limit, with the same words on all ranks.
        """
        union: dict[str, dict[int, str]] = {}
        for report in reports:
            for name, samples in report.items():
                union.setdefault(name, {}).update(samples)
        self.damaged = {name: dict(sorted(samples.items())) for name, samples in sorted(union.items())}
        self._stop_if_damaged()

    def stats(self) -> LoaderStats:
        """What the threads did since this loader was opened, and what the run has had of each entry."""
        position, _ = self._last
        return LoaderStats(
            seconds=self._times.passed_s(),
            images=self._images,
            num_bytes=self._bytes,
            threads=self._threads,
            stages=self._times.totals(),
            waited_s=self._waited_s,
            traffic=sum((reader.store.traffic for reader in self._readers), Traffic()),
            sources=source_shares(self.plan, position, self.damaged),
        )

    def close(self) -> None:
        """Stop the threads and close the shards."""
        self._pool.shutdown(cancel_futures=True)
        self._prefetcher.close()
        for reader in self._readers:
            reader.close()

    def __enter__(self) -> "Loader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ---- preparing

    def _prepare(self) -> None:
        with self._plan_lock:
            self._prefetcher.advance(self._position)
            planned = self.plan.rank_batch(self._position, self._global_batch, self._rank, self._world)
        images = self._ring.popleft()
        num = len(planned.position)
        pending = Draft(position=self._position, plan=self.plan, planned=planned, images=images)
        pending.tasks = [
            self._pool.submit(self._filler.fill, pending, start, min(start + self._task_samples, num))
            for start in range(0, num, self._task_samples)
        ]
        self._pending.append(pending)
        self._position += self._global_batch

    def _prepare_after(self, delivered: Draft) -> None:
        """The buffer that the trainer gave back by asking again is filled next."""
        if self._ring:
            self._prepare()
        self._ring.append(delivered.images)

    def _drop_pending(self) -> None:
        """Give up what is being prepared; its buffers are filled first."""
        for pending in reversed(self._pending):
            for task in pending.tasks:
                task.cancel()
            wait(pending.tasks)
            self._ring.appendleft(pending.images)
        self._pending.clear()

    # ---- delivering

    def _deliver(self, pending: Draft) -> Batch:
        planned = pending.planned
        for name, sample, reason in pending.damage:
            self.damaged.setdefault(name, {})[sample] = reason
        if self._stops_alone:
            self._stop_if_damaged()
        names, samples = [entry.name for entry in self.plan.entries], np.array(pending.samples)
        proof = order_proof(planned.position, [names[entry] for entry in pending.sources], samples)
        self._proof = add_proofs(self._proof, proof)
        self._last = (pending.position + self._global_batch, self._proof)
        self._images, self._bytes = self._images + len(samples), self._bytes + sum(pending.num_bytes)
        return Batch(
            images=pending.images if pending.images.shape[1] > 1 else pending.images[:, 0],
            labels=np.array(pending.labels),
            entries=planned.source,
            samples=samples,
            positions=planned.position,
            valid=np.ones(len(pending.wanted), np.bool_),
            position=pending.position,
            next_position=pending.position + self._global_batch,
            proof=self._proof,
        )

    def _stop_if_damaged(self) -> None:
        for entry in self.plan.entries:
            found = self.damaged.get(entry.name, {})
            limit = max(_DAMAGE_LEAST, int(_DAMAGE_SHARE * entry.num_samples))
            if len(found) > limit:
                sample, reason = next(iter(found.items()))
                reason, _, _ = reason.partition("; run")
                raise TooMuchDamage(
                    f"{entry.name}: {len(found)} damaged samples found, {limit} allowed; sample {sample}: {reason}; "
                    "run `hjepa-shards verify`"
                )


def open_readers(mixture: Mixture) -> list[SampleReader]:
    """One an entry. `close` them."""
    cache = shard_cache(mixture.config.cache)
    with contextlib.ExitStack() as opened:  # all of them, or none is left open
        readers = []
        for place, manifest in zip(mixture.places, mixture.manifests, strict=True):
            readers.append(SampleReader(store_at(place, manifest, cache, len(mixture.places)), manifest))
            opened.callback(readers[-1].close)
        opened.pop_all()
    return readers


def open_loader(
    mixture: Mixture,
    *,
    seed: int,
    global_batch: int,
    rank: int = 0,
    world: int = 1,
    state: Mapping[str, Any] | None = None,
    accept_mixture: bool = False,
    accept_content: bool = False,
    allocate: Callable[[tuple[int, ...]], NDArray[np.uint8]] | None = None,
    stops_alone: bool = True,
) -> Loader:
    """Batches of `mixture` for one rank, from the start or from where `state` (a `state_dict`) left off.

    seed: of the order and of all crops.  global_batch: samples of all ranks together.  rank, world: which of how many.
    accept_mixture, accept_content: continue from a state of other weights or sources, of other pixels.
    allocate: shape -> memory for a batch's images, page-locked say; called three times.  stops_alone: False where the
    ranks report to each other what is damaged (`merge_damage`) and stop together.
    ResumeMismatch where the state is of another mixture, InputError where `world` does not divide `global_batch`.
    """
    slice_size(global_batch, world)  # before anything is opened
    if state is None:
        plan, position, proof, damaged = mixture.make_plan(seed), 0, 0, {}
    else:
        saved = load_state(dict(state), "loader state")
        plan = resume(saved, mixture, seed, accept_mixture=accept_mixture, accept_content=accept_content)
        position, proof = saved.position, int(saved.proof, 16) if rank == 0 else 0
        damaged = {name: dict.fromkeys(samples, "found before") for name, samples in saved.damaged.items()}
    readers = open_readers(mixture)
    with contextlib.ExitStack() as opened:
        for reader in readers:
            opened.callback(reader.close)
        loader = Loader(
            plan,
            readers,
            position=position,
            proof=proof,
            damaged=damaged,
            global_batch=global_batch,
            rank=rank,
            world=world,
            image_size=mixture.config.image_size,
            augmentation=mixture.config.augmentation,
            threads=mixture.config.threads or num_cores(),
            allocate=allocate,
            stops_alone=stops_alone,
        )
        opened.pop_all()
    return loader
