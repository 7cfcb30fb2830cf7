"""A mixture for other training loops: PyTorch's DataLoader, torchdata's StatefulDataLoader, Lightning.

    dataset = MixtureDataset(load_mixture_file(Path("mix.yaml")), seed=0, global_batch=256, rank=rank, world=world)
    loader = StatefulDataLoader(dataset, batch_size=None, num_workers=1)

A loader decodes in threads, so one worker is as fast as many: the first one does all the work and the others end at
once. That keeps the order, and with it every promise about shares and resuming, for any number of workers.
"""

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, final

import torch
from torch.utils.data import IterableDataset, get_worker_info

from hjepa_shards import Batch, Loader, Mixture, open_loader, plan_state
from hjepa_shards.base.shown_text import counted, listed
from hjepa_shards.errors import InputError
from hjepa_train.data.own_transform import Transform, transformed


@final
class MixtureDataset(IterableDataset[dict[str, Any]]):
    """Batches of one rank, without end; give it to a DataLoader with `batch_size=None`.

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
        self._running: tuple[Loader, Batch] | None = None

    def __iter__(self) -> Iterator[dict[str, Any]]:
        worker = get_worker_info()
        if worker is not None and worker.id > 0:
            return
        with open_loader(
            self.mixture,
            seed=self.seed,
            global_batch=self.global_batch,
            rank=self.rank,
            world=self.world,
            state=self._state,
        ) as loader:
            for batch in islice(loader, self.num_batches):
                self._running = loader, batch
                yield self._as_tensors(batch)
            self._state = self.state_dict()
            self._running = None

    def state_dict(self, batch: Mapping[str, Any] | None = None) -> dict[str, Any]:
        """From which another dataset continues: after `batch`, or after the one delivered last in this process.

        With workers this process has delivered nothing: name the batch that training holds, or let StatefulDataLoader
        ask the worker.
        """
        if batch is not None:
            plan = self.mixture.make_plan(self.seed)
            return plan_state(plan, int(batch["next_position"]), int(batch["proof"], 16), {})
        if self._running:
            loader, last = self._running
            return loader.state_dict(last)
        return self._state or {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue after the state at the next iteration. InputError while one is under way."""
        if self._running:
            raise InputError("load_state_dict: before the iteration expected, not in the middle of it")
        self._state = dict(state) or None

    def __repr__(self) -> str:
        names = listed([entry.name for entry in self.mixture.entries])
        num = "endless" if self.num_batches is None else counted(self.num_batches, "batch", "batches")
        return (
            f"<MixtureDataset of {names}: {num}, global batch {self.global_batch:,}, rank {self.rank} of {self.world}, "
            f"seed {self.seed}>"
        )

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
        return tensors | {"next_position": batch.next_position, "proof": f"{batch.proof:032x}"}
