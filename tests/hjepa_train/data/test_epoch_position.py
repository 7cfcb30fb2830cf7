"""In any loop the next epoch, and a resumed run, begins where training was; where that is not known, one warning."""

import copy
import pickle
import time
import warnings
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset

from hjepa_shards import open_loader
from hjepa_shards.errors import InputError
from hjepa_train import MixtureDataset, lightning_callback
from tests.hjepa_shards.loader.test_loader import mix
from tests.hjepa_train.data.epoch_loops import EPOCH, GLOBAL_BATCH, LEFT, LOOPS, Training, dataset

pytestmark = [
    pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes"),
    pytest.mark.filterwarnings("ignore:.set_vital. is deprecated"),  # torchdata 0.11 with torch 2.15
]
UNTOLD = [loop for loop in LOOPS if "Stateful" not in loop and loop != "Lightning, 2 persistent workers"]


def need(loop: str) -> None:
    if "Stateful" in loop:
        pytest.importorskip("torchdata.stateful_dataloader")
    if "Lightning" in loop:
        pytest.importorskip("lightning")


@pytest.mark.parametrize("loop", LOOPS)
def test_each_epoch_and_each_resumed_run_begins_where_training_was(shards: Path, loop: str) -> None:
    """Left early twice, resumed there; ended by the dataset, resumed there; left where the rest was fetched already."""
    need(loop)
    training = Training(shards, loop, EPOCH, tell=True)
    training.train(2, LEFT)
    training.resume(1)
    training.resume(1, EPOCH - 1)
    training.train(1)
    assert [len(epoch) for epoch in training.epochs] == [LEFT, LEFT, EPOCH, EPOCH - 1, EPOCH]
    assert training.verdict() == "continues"


@pytest.mark.parametrize("loop", UNTOLD)
def test_a_whole_epoch_needs_no_word_and_one_left_early_is_warned_of_once(shards: Path, loop: str) -> None:
    need(loop)
    training = Training(shards, loop, EPOCH, tell=False)
    training.train(2)
    assert training.verdict() == "continues"
    for batches in (LEFT, EPOCH - 1, None):
        training.train(1, batches)
    assert training.verdict() == ("continues" if loop == "DataLoader, 0 workers" else "continues, warns")
    assert training.num_warned == (loop != "DataLoader, 0 workers")


@pytest.mark.parametrize("loop", ["Lightning, 0 workers", "Lightning, 2 workers"])
@pytest.mark.parametrize("tell", [True, False])
def test_lightnings_batch_ahead_comes_in_the_next_fit_if_the_callback_is_there(
    shards: Path, loop: str, tell: bool
) -> None:
    need(loop)
    training = Training(shards, loop, None, tell=tell)
    for _ in range(2):
        training.train(1, LEFT, by_steps=True)
    assert training.verdict() == ("continues" if tell else "skips, warns")


def test_the_state_of_a_whole_epoch_is_known_and_that_of_a_part_is_warned_of(shards: Path) -> None:
    data = dataset(shards, EPOCH)
    batches = iter(DataLoader(data, batch_size=None, num_workers=1))
    next(batches)
    with pytest.warns(UserWarning, match="MixtureDataset: .* dataset.after\\(batch\\)"):
        data.state_dict()
    *_, last = batches
    assert data.state_dict() == data.state_dict(last)
    assert data.state_dict()["position"] == EPOCH * GLOBAL_BATCH


def test_a_worker_started_afresh_shares_what_is_known(shards: Path) -> None:
    data = dataset(shards, None)
    loader = DataLoader(data, batch_size=None, num_workers=1, multiprocessing_context="forkserver")
    *_, last = islice(loader, 2)
    with pytest.warns(UserWarning, match="the data continues after position 24, the last that arrived"):
        second, third = islice(loader, 2)
    assert second["positions"].min() == last["next_position"]
    data.after(second)
    assert next(iter(loader))["positions"].min() == third["positions"].min()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda data: pickle.loads(pickle.dumps(data))])
def test_a_copy_is_a_dataset_of_its_own(shards: Path, copied: Any) -> None:
    data = dataset(shards, 2)
    *_, last = data
    other = copied(data)
    for of_other in other:
        assert of_other["next_position"] > last["next_position"]
    assert next(iter(data))["positions"].min() == last["next_position"]


class Pairs(IterableDataset[Any]):
    """What many training steps take."""

    def __init__(self, data: MixtureDataset) -> None:
        self.data = data

    def __iter__(self) -> Iterator[Any]:
        for batch in self.data:
            yield batch["positions"], batch["labels"]


@pytest.mark.parametrize("persistent", [False, True])
def test_batches_that_come_without_their_position_are_not_repeated_silently(shards: Path, persistent: bool) -> None:
    """They cannot be seen to arrive, so the worker warns: here as an error, which passes through to the loop."""
    data = Pairs(dataset(shards, None))
    loader = DataLoader(data, batch_size=None, num_workers=1, persistent_workers=persistent)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "MixtureDataset")
        seen = [position for positions, _ in islice(loader, 3) for position in positions.tolist()]
        with pytest.raises(UserWarning, match="MixtureDataset: an epoch was left"):
            next(iter(loader))
    assert sorted(seen) == list(range(3 * GLOBAL_BATCH))
    positions, _ = next(iter(loader))
    assert positions.min() >= 3 * GLOBAL_BATCH


class Slow(IterableDataset[Any]):
    """Begins after the process that trains has emptied the queue."""

    def __init__(self, data: MixtureDataset) -> None:
        self.data = data

    def __iter__(self) -> Iterator[Any]:
        time.sleep(0.3)
        return iter(self.data)


def test_batches_that_a_loader_throws_away_before_an_epoch_have_not_arrived(shards: Path) -> None:
    loader = DataLoader(Slow(dataset(shards, None)), batch_size=None, num_workers=1, persistent_workers=True)
    *_, last = islice(loader, 2)
    with pytest.warns(UserWarning, match="MixtureDataset: an epoch was left"):
        assert next(iter(loader))["positions"].min() == last["next_position"]


def test_batches_of_batches_and_a_last_one_that_is_dropped(shards: Path) -> None:
    data = dataset(shards, 5)
    loader = DataLoader(data, batch_size=2, drop_last=True, num_workers=1)
    for end in (4, 8):
        *_, group = loader
        data.after(group)
        assert group["next_position"].tolist() == [(end - 1) * GLOBAL_BATCH, end * GLOBAL_BATCH]
    assert data.state_dict()["position"] == 8 * GLOBAL_BATCH


def test_what_training_cannot_be_after_is_refused(shards: Path) -> None:
    data = dataset(shards, 2)
    first, second = data
    ahead = list(islice(dataset(shards, None), 5))[-1]
    with pytest.raises(InputError, match="from 0 to 24; one that ends at 60 found"):
        data.after(ahead)
    next(iter(data))
    with pytest.raises(InputError, match="from 24 to 36; one that ends at 12 found; call it before the next epoch"):
        data.after(first)
    data.after(second)
    with pytest.raises(InputError, match="next_position and proof; \\['images'\\] found"):
        data.after({"images": second["images"]})
    with pytest.raises(InputError, match="next_position and proof; list found"):
        data.state_dict([second])  # type: ignore[arg-type]
    with pytest.raises(InputError, match="a state_dict of a MixtureDataset or Loader expected, \\['step'\\] found"):
        data.load_state_dict({"step": 3})


def test_weights_that_a_state_brings_are_those_of_later_states(shards: Path) -> None:
    with open_loader(mix(shards), seed=5, global_batch=GLOBAL_BATCH) as loader:
        next(loader)
        loader.set_weights({"digits": 1, "photos": 0, "scattered": 0})
        state = loader.state_dict(next(loader))
        expected = [next(loader).samples.tolist() for _ in range(4)]
    data = dataset(shards, 2, state=state)
    batches = list(data)
    rest = dataset(shards, None, state=data.state_dict(batches[-1]))
    seen = [batch["samples"].tolist() for batch in (*batches, *islice(data, 1), *islice(rest, 1, 2))]
    assert seen == expected


def test_the_ranks_proofs_of_later_epochs_add_up(shards: Path) -> None:
    with open_loader(mix(shards), seed=5, global_batch=GLOBAL_BATCH) as loader:
        *_, expected = (batch.proof for batch in islice(loader, 4))
    ranks = [dataset(shards, 2, rank=rank, world=2) for rank in range(2)]
    last = [[list(data) for _ in range(2)][-1][-1] for data in ranks]
    assert sum(int(batch["proof"], 16) for batch in last) % 2**128 == expected


def test_with_the_callback_a_batch_that_was_fetched_and_not_trained_on_comes_again(shards: Path) -> None:
    pytest.importorskip("lightning")
    data = dataset(shards, None)
    lightning_callback(data).setup(None, None, "fit")
    for _ in range(2):
        assert next(iter(data))["positions"].min() == 0


def test_the_callbacks_state_counts_and_not_the_one_a_loader_brings_for_the_batch_it_fetched(shards: Path) -> None:
    pytest.importorskip("lightning")
    data = dataset(shards, None)
    trained_on, fetched = (data.state_dict(batch) for batch in islice(dataset(shards, None), 2))
    lightning_callback(data).load_state_dict(trained_on)
    data.load_state_dict(fetched)
    assert next(iter(data))["positions"].min() == trained_on["position"]


def test_a_callback_needs_lightning_and_says_so(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install lightning"):
        lightning_callback(dataset(shards, None))


def test_generators_of_one_process_do_not_warn(shards: Path) -> None:
    data = dataset(shards, None)
    rows = [batch["positions"] for _ in range(3) for batch in islice(data, 2)]
    assert sorted(torch.cat(rows).tolist()) == list(range(6 * GLOBAL_BATCH))
