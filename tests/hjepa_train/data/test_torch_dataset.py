"""The mixture in other people's loops: the same batches for any number of workers, resumed where training was."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from hjepa_shards import SplitView, open_loader
from hjepa_shards.errors import InputError
from hjepa_train import MixtureDataset
from tests.hjepa_shards.loader.test_loader import mix

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes"),
    pytest.mark.filterwarnings("ignore:.set_vital. is deprecated"),  # torchdata 0.11 with torch 2.15
]
GLOBAL_BATCH = 12
NUM_BATCHES = 9


def dataset(shards: Path, num_batches: int | None = NUM_BATCHES, **more: Any) -> MixtureDataset:
    return MixtureDataset(mix(shards), seed=5, global_batch=GLOBAL_BATCH, num_batches=num_batches, **more)


def row(batch: dict[str, Any]) -> tuple[int, str, bytes]:
    return batch["next_position"], batch["proof"], batch["images"].numpy().tobytes()


@pytest.fixture(scope="module")
def expected(shards: Path) -> list[tuple[int, str, bytes]]:
    with open_loader(mix(shards), seed=5, global_batch=GLOBAL_BATCH) as loader:
        batches = (next(loader) for _ in range(NUM_BATCHES))
        return [(batch.next_position, f"{batch.proof:032x}", batch.images.tobytes()) for batch in batches]


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_a_data_loader_gives_the_loaders_batches_for_any_number_of_workers(
    shards: Path, expected: list[Any], num_workers: int
) -> None:
    loader = DataLoader(dataset(shards), batch_size=None, num_workers=num_workers)
    assert [row(batch) for batch in loader] == expected


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_a_state_is_that_of_the_batch_that_training_holds_however_many_are_ahead(
    shards: Path, expected: list[Any], num_workers: int
) -> None:
    first = dataset(shards)
    state = {}
    for number, batch in enumerate(DataLoader(first, batch_size=None, num_workers=num_workers)):
        if number == 3:
            state = json.loads(json.dumps(first.state_dict(batch)))
            break
    rest = DataLoader(dataset(shards, NUM_BATCHES - 4, state=state), batch_size=None, num_workers=num_workers)
    assert [row(batch) for batch in rest] == expected[4:]


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_torchdatas_stateful_loader_resumes_it(shards: Path, expected: list[Any], num_workers: int) -> None:
    stateful = pytest.importorskip("torchdata.stateful_dataloader")
    first = stateful.StatefulDataLoader(dataset(shards, None), batch_size=None, num_workers=num_workers)
    batches = iter(first)
    seen = [row(next(batches)) for _ in range(4)]
    state = first.state_dict()
    del batches
    second = stateful.StatefulDataLoader(dataset(shards, None), batch_size=None, num_workers=num_workers)
    second.load_state_dict(state)
    again = iter(second)
    seen += [row(next(again)) for _ in range(NUM_BATCHES - 4)]
    assert seen == expected


def test_it_says_what_it_is(shards: Path) -> None:
    assert repr(dataset(shards, 9)) == (
        "<MixtureDataset of digits, photos, scattered: 9 batches, global batch 12, rank 0 of 1, seed 5>"
    )


def test_a_state_cannot_be_loaded_in_the_middle(shards: Path) -> None:
    running = dataset(shards)
    batches = iter(running)
    next(batches)
    with pytest.raises(InputError, match="before the iteration"):
        running.load_state_dict(running.state_dict())
    batches.close()  # type: ignore[attr-defined]


def test_ranks_share_a_global_batch(shards: Path, expected: list[Any]) -> None:
    parts = [next(iter(dataset(shards, 1, rank=rank, world=2))) for rank in range(2)]
    positions = torch.cat([part["positions"] for part in parts])
    assert sorted(positions.tolist()) == list(range(GLOBAL_BATCH))
    assert sum(int(part["proof"], 16) for part in parts) % 2**128 == int(expected[0][1], 16)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_map_style_loader_reads_a_split_as_a_list(shards: Path, num_workers: int) -> None:
    view = SplitView(shards / "digits" / "test")
    loader = DataLoader(view, batch_size=1, num_workers=num_workers, collate_fn=lambda samples: samples[0])  # type: ignore[arg-type]
    read = list(loader)
    assert [sample.label for sample in read] == [sample.label for sample in view]
    assert all(np.array_equal(one.image, other.image) for one, other in zip(read, view, strict=True))
    view.close()


@pytest.mark.filterwarnings("ignore")
def test_lightning_trains_on_it_and_continues_after_its_last_step(
    shards: Path, expected: list[Any], tmp_path: Path
) -> None:
    """Lightning holds a batch ahead, so the state is requested with the batch that was trained on."""
    lightning = pytest.importorskip("lightning")

    class Model(lightning.LightningModule):
        def __init__(self, data: MixtureDataset) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))
            self.data, self.rows, self.last = data, [], {}

        def training_step(self, batch: dict[str, Any], batch_idx: int) -> torch.Tensor:
            self.rows.append(row(batch))
            self.last = batch
            return self.weight * batch["images"].float().mean()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=1e-3)

        def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
            checkpoint["data"] = self.data.state_dict(self.last)

    def fit(model: Model, max_steps: int, **more: Any) -> Any:
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_steps=max_steps,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, DataLoader(model.data, batch_size=None), **more)
        return trainer

    path = tmp_path / "last.ckpt"
    first = Model(dataset(shards, None))
    fit(first, 4).save_checkpoint(path)
    state = torch.load(path, weights_only=False)["data"]
    second = Model(dataset(shards, None, state=state))
    fit(second, NUM_BATCHES, ckpt_path=str(path))
    assert first.rows + second.rows == expected
