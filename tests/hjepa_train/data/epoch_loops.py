"""Epochs of a mixture in the loops that people write, for each way to bound one: where does the next begin?

python -m tests.hjepa_train.data.epoch_loops           # the table of docs/library.md
python -m tests.hjepa_train.data.epoch_loops --after   # the same, the loop saying what it trained on
"""

import argparse
import contextlib
import itertools
import json
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, final

import torch
from torch.utils.data import DataLoader

from hjepa_shards import BuildOptions, build
from hjepa_train import MixtureDataset, lightning_callback
from tests.hjepa_shards.loader.test_loader import mix

Spans = list[list[tuple[int, int]]]
"""Of each epoch, of each batch that was trained on: its first position and the next one."""
GLOBAL_BATCH = 12
EPOCH, LEFT = 6, 3
"""Batches of an epoch that the dataset ends, and of one that the loop leaves."""
LOOPS: dict[str, dict[str, Any]] = {
    "DataLoader, 0 workers": {"num_workers": 0},
    "DataLoader, 1 worker": {"num_workers": 1},
    "DataLoader, 1 persistent worker": {"num_workers": 1, "persistent_workers": True},
    "DataLoader, 3 workers": {"num_workers": 3},
    "DataLoader, 3 persistent workers": {"num_workers": 3, "persistent_workers": True},
    "StatefulDataLoader, 0 workers": {"num_workers": 0},
    "StatefulDataLoader, 3 workers": {"num_workers": 3},
    "StatefulDataLoader, 3 persistent workers": {"num_workers": 3, "persistent_workers": True},
    "Lightning, 0 workers": {"num_workers": 0},
    "Lightning, 2 workers": {"num_workers": 2},
    "Lightning, 2 persistent workers": {"num_workers": 2, "persistent_workers": True},
    "Lightning, StatefulDataLoader, 2 workers": {"num_workers": 2},
}
WHOLE, CUT, BOTH, STEPS = "`num_batches`", "left early", "`num_batches`, left before", "`max_steps`, then again"
SAVED, SAVED_EARLY = "state at its end", "state where it was left"
BOUNDS = (WHOLE, CUT, BOTH, STEPS, SAVED, SAVED_EARLY)


def dataset(shards: Path, num_batches: int | None, **more: Any) -> MixtureDataset:
    return MixtureDataset(mix(shards), seed=5, global_batch=GLOBAL_BATCH, num_batches=num_batches, **more)


@final
class Training:
    """Epochs of one dataset in one kind of loop, and then of others that continue it.

    tell: the loop says what it trained on, by `after` or Lightning's callback.
    """

    def __init__(self, shards: Path, loop: str, num_batches: int | None, *, tell: bool) -> None:
        self.shards, self.loop, self.num_batches, self.tell = shards, loop, num_batches, tell
        self.epochs: Spans = []
        self.num_warned = 0
        self._begin()

    def train(self, num_epochs: int, batches: int | None = None, *, saved: Any = None, by_steps: bool = False) -> None:
        """batches: after which each epoch is left.  saved: of `save`.  by_steps: Lightning's max_steps."""
        with self._counted():
            if "Lightning" in self.loop:
                self._fit(num_epochs, batches, saved, by_steps)
                return
            if saved is not None:
                self._owner.load_state_dict(saved)
            for _ in range(num_epochs):
                self.epochs.append([])
                for number, batch in enumerate(self.loader, 1):
                    self.epochs[-1].append(_span(batch))
                    if self.tell:
                        self.data.after(batch)
                    if number == batches:
                        break

    def resume(self, num_epochs: int, batches: int | None = None) -> None:
        """Save, and train with another dataset and loader."""
        with tempfile.TemporaryDirectory() as folder:
            if "Lightning" in self.loop:
                saved: Any = Path(folder) / "saved.ckpt"
                self._trainer.save_checkpoint(saved)
            else:
                with self._counted():
                    saved = self._owner.state_dict()
                saved = saved if "Stateful" in self.loop else json.loads(json.dumps(saved))
            self._begin()
            self.train(num_epochs, batches, saved=saved)

    def verdict(self) -> str:
        """In words: the batches of an epoch are in order, and each begins where the one before it ended."""
        epochs = self.epochs
        inside = all(one[1] == other[0] for epoch in epochs for one, other in itertools.pairwise(epoch))
        begins, ends = [epoch[0][0] for epoch in epochs], [0, *(epoch[-1][1] for epoch in epochs[:-1])]
        if not inside:
            found = "out of order"
        elif begins == ends:
            found = "continues"
        else:
            found = "repeats" if any(begin < end for begin, end in zip(begins, ends, strict=True)) else "skips"
        return found + (", warns" if self.num_warned else "")

    def _begin(self) -> None:
        self.data = dataset(self.shards, self.num_batches)
        kind: Any = DataLoader
        if "Stateful" in self.loop:
            from torchdata.stateful_dataloader import StatefulDataLoader

            kind = StatefulDataLoader
        with self._counted():
            self.loader = kind(self.data, batch_size=None, **LOOPS[self.loop])
        self._owner: Any = self.loader if "Stateful" in self.loop else self.data

    @contextlib.contextmanager
    def _counted(self) -> Iterator[None]:
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            yield
        self.num_warned += sum("MixtureDataset" in str(warning.message) for warning in found)

    def _fit(self, num_epochs: int, batches: int | None, saved: Any, by_steps: bool) -> None:
        import lightning

        epochs = self.epochs

        class Model(lightning.LightningModule):
            def __init__(self) -> None:
                super().__init__()
                self.weight = torch.nn.Parameter(torch.zeros(()))

            def on_train_epoch_start(self) -> None:
                epochs.append([])

            def training_step(self, batch: dict[str, Any], _: int) -> torch.Tensor:
                epochs[-1].append(_span(batch))
                return self.weight * batch["images"].float().mean()

            def configure_optimizers(self) -> torch.optim.Optimizer:
                return torch.optim.SGD(self.parameters(), lr=1e-3)

        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        bounded: dict[str, Any] = {"max_epochs": num_epochs + (len(epochs) if saved else 0)}
        if by_steps:
            bounded = {"max_steps": batches}
        elif batches:
            bounded["limit_train_batches"] = batches
        self._trainer = lightning.Trainer(
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[lightning_callback(self.data)] if self.tell else [],
            **bounded,
        )
        self._trainer.fit(Model(), self.loader, ckpt_path=saved)


def _span(batch: Any) -> tuple[int, int]:
    return int(batch["positions"].min()), int(batch["next_position"])


def cell(shards: Path, loop: str, bound: str, *, tell: bool) -> str:
    """What came of two or three epochs; empty where there is no such loop."""
    training = Training(shards, loop, EPOCH if bound in (WHOLE, BOTH, SAVED) else None, tell=tell)
    batches = None if bound in (WHOLE, SAVED) else LEFT
    if bound == STEPS:
        if "Lightning" not in loop:
            return ""
        for _ in range(3):
            training.train(1, batches, by_steps=True)
    elif bound in (SAVED, SAVED_EARLY):
        if "Lightning" in loop and not tell:
            return "not saved"
        training.train(1, batches)
        training.resume(1, batches)
    else:
        training.train(3, batches)
    assert [len(epoch) for epoch in training.epochs] == [batches or EPOCH] * len(training.epochs)
    return training.verdict()


def table(shards: Path, show: Callable[[str], None], *, tell: bool) -> None:
    show(" | ".join(["| loop", *BOUNDS]) + " |")
    show("|---" * (len(BOUNDS) + 1) + "|")
    for loop in LOOPS:
        show(" | ".join([f"| {loop}", *(cell(shards, loop, bound, tell=tell) for bound in BOUNDS)]) + " |")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--after", action="store_true")
    tell = parser.parse_args().after
    with tempfile.TemporaryDirectory() as folder:
        shards = Path(folder)
        options = BuildOptions(samples_per_shard=48, limit=200)
        for name in ("digits", "scattered", "photos"):
            build(name, raw=None, out=shards, splits=("train",), options=options)
        table(shards, lambda line: print(line, flush=True), tell=tell)


if __name__ == "__main__":
    main()
