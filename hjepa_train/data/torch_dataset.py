"""A mixture for other training loops: PyTorch's DataLoader, torchdata's StatefulDataLoader, Lightning.

    dataset = MixtureDataset(load_mixture_file(Path("mix.yaml")), seed=0, global_batch=256, rank=rank, world=world)
    loader = StatefulDataLoader(dataset, batch_size=None, num_workers=1)

A loader decodes in threads, so one worker is as fast as many: the first one does all the work and the others end at
once. That keeps the order, and with it every promise about shares and resuming, for any number of workers.

Each iteration begins where training is, in whatever process it runs (epoch_position.py).
"""

import os
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, final

import torch
from torch.utils.data import IterableDataset, get_worker_info

from hjepa_shards import Batch, Mixture, open_loader, plan_state
from hjepa_shards.base.shown_text import counted, listed
from hjepa_shards.errors import InputError
from hjepa_train.data.epoch_position import EpochPosition, Mark
from hjepa_train.data.own_transform import Transform, transformed

_MAX_REPORTED = 1000
"""Damaged samples of an entry that a state lists."""


@final
class MixtureDataset(IterableDataset[dict[str, Any]]):
    """Batches of one rank, without end; give it to a DataLoader with `batch_size=None`.

    Each iteration continues after the one before it. A loop that leaves an epoch early while workers fetch ahead calls
    `after` with each batch; without that a warning says once where the next epoch begins.

    A batch: images uint8 [n, R, R, 3], or what `transform` makes of them; labels, entries, samples and positions
    int64 [n]; next_position; proof (hex).
    """

    def __init__(
        self,
        mixture: Mixture,
        *,
        seed: int,
        global_batch: int,
        rank: int = 0,
        world: int = 1,
        num_batches: int | None = None,
        state: Mapping[str, Any] | None = None,
        transform: Transform | None = None,
    ) -> None:
        """Rank `rank` of `world` of `mixture`'s order under `seed`, in batches of global_batch / world images.

        num_batches: it ends after this many, counted from where it begins.  state: of `state_dict`.
        transform: called with each image of a batch, an RGB PIL.Image of image_size, cropped as the mixture says; what
        it returns is collated as a DataLoader does, tensors to `images` [n, ...]. Its random numbers are those of the
        image's position (own_transform.py): the same for any number of ranks, workers and interruptions.
        """
        self.mixture, self.num_batches, self.transform = mixture, num_batches, transform
        self.seed, self.global_batch, self.rank, self.world = seed, global_batch, rank, world
        self._state = dict(state) if state else None
        self.position = EpochPosition(self._mark_of(self._state))
        self._last: Mark | None = None
        """After the batch that this process produced last; None where it produces none."""
        self._running: tuple[int, int] | None = None
        self._damaged: dict[str, dict[int, str]] = {}
        self._plan: Any = None
        """Of the mixture or, where a state was given, of that: weights and generations may be others there."""

    def __getstate__(self) -> dict[str, Any]:
        """For a worker: without what this process runs."""
        return self.__dict__ | {"_plan": None, "_running": None}

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        if worker is not None and worker.id > 0:
            return iter(())
        iteration, mark = self.position.begin(self._epoch())
        self._last = mark
        return self._batches(iteration, mark)

    def after(self, batch: Mapping[str, Any]) -> None:
        """Training is after `batch`, one of the iteration under way: the next one begins there.

        For loops that leave an epoch early while a DataLoader's workers fetch ahead: call it in the process that
        trains, with each batch after its step. InputError for what is no batch of this iteration.
        """
        mark = _mark_after(batch)
        first, last = self.position.after(mark)
        if not first <= mark.position <= last:
            raise InputError(
                f"after: a batch of this epoch expected, that ends at a position from {first:,} to {last:,}; one that "
                f"ends at {mark.position:,} found; call it before the next epoch begins, on the dataset of the batch"
            )

    def state_dict(self, batch: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """From which another dataset continues: after `batch`, or where the next iteration of this one begins.

        With workers that is known at the end of `num_batches`, or where `after` was called: else name the batch that
        training holds, or let StatefulDataLoader ask the worker. InputError for what is no batch of a dataset.
        """
        worker = get_worker_info()
        if batch is not None:
            mark = _mark_after(batch)
        elif worker is not None:
            if self._last is None:
                return {}
            mark = self._last
        else:
            mark, known = self.position.where(self._epoch())
            if not known:
                self.position.warn(mark)
        return self._state_at(mark)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after the state at the next iteration. InputError while one is under way in this process."""
        worker = get_worker_info()
        if worker is not None and worker.id > 0:
            return
        if self._running and self._running[0] == os.getpid():
            raise InputError("load_state_dict: before the iteration expected, not in the middle of it")
        if self.position.load(self._mark_of(state)):
            self._state = dict(state) or None
            self._damaged, self._plan = {}, None

    def __repr__(self) -> str:
        names = listed([entry.name for entry in self.mixture.entries])
        num = "endless" if self.num_batches is None else counted(self.num_batches, "batch", "batches")
        return (
            f"<MixtureDataset of {names}: {num}, global batch {self.global_batch:,}, rank {self.rank} of {self.world}, "
            f"seed {self.seed}>"
        )

    def _batches(self, iteration: int, start: Mark) -> Iterator[dict[str, Any]]:
        self._running = os.getpid(), iteration
        try:
            with open_loader(
                self.mixture,
                seed=self.seed,
                global_batch=self.global_batch,
                rank=self.rank,
                world=self.world,
                state=self._state_at(start),
            ) as loader:
                self._damaged = loader.damaged
                before = start.proof if self.rank else 0  # a loader counts what is in a state as rank 0's
                for batch in islice(loader, self.num_batches):
                    mark = Mark(batch.next_position, (before + batch.proof) % 2**128)
                    tensors = self._as_tensors(batch)
                    tensors["proof"] = self.position.proof_of(iteration, mark)
                    self.position.produced(iteration, mark)
                    self._last = mark
                    yield tensors
        finally:
            if self._running == (os.getpid(), iteration):
                self._running = None

    def _epoch(self) -> int | None:
        """Positions of an iteration."""
        return None if self.num_batches is None else self.num_batches * self.global_batch

    def _state_at(self, mark: Mark) -> dict[str, Any]:
        if self._state and mark == self._mark_of(self._state):
            return dict(self._state)
        if self._plan is None and self._state:
            with open_loader(self.mixture, seed=self.seed, global_batch=self.world, state=self._state) as loader:
                self._plan = loader.plan
        elif self._plan is None:
            self._plan = self.mixture.make_plan(self.seed)
        damaged = {name: sorted(samples)[:_MAX_REPORTED] for name, samples in self._damaged.items()}
        return plan_state(self._plan, mark.position, mark.proof, damaged)

    def _mark_of(self, state: Mapping[str, Any] | None) -> Mark:
        if not state:
            return Mark(0, 0)
        try:
            return Mark(int(state["position"]), int(state["proof"], 16) if self.rank == 0 else 0)
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(
                f"state: a state_dict of a MixtureDataset or Loader expected, {sorted(state)} found"
            ) from error

    def _as_tensors(self, batch: Batch) -> dict[str, Any]:
        """A copy: the loader fills its buffers again."""
        arrays = {
            "images": batch.images,
            "labels": batch.labels,
            "entries": batch.entries,
            "samples": batch.samples,
            "positions": batch.positions,
        }
        tensors: dict[str, Any] = {name: torch.from_numpy(array.copy()) for name, array in arrays.items()}
        if self.transform is not None:
            tensors["images"] = transformed(batch.images, batch.positions, self.transform, seed=self.seed)
        return tensors | {"next_position": batch.next_position}


def _mark_after(batch: Mapping[str, Any]) -> Mark:
    """After a batch, or the last of several that a DataLoader collated."""
    try:
        position, proof = batch["next_position"], batch["proof"]
    except (KeyError, TypeError, IndexError) as error:
        found = sorted(map(str, batch)) if isinstance(batch, Mapping) else type(batch).__name__
        raise InputError(
            f"batch: one of a MixtureDataset expected, with next_position and proof; {found} found"
        ) from error
    last = proof if isinstance(proof, str) else proof[-1]
    return Mark(int(torch.as_tensor(position).flatten()[-1]), int(last, 16))
