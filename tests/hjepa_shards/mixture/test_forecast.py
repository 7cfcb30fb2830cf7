"""What a run will see, against the plan played through."""

from pathlib import Path

import numpy as np
import pytest

from hjepa_shards.config import parse
from hjepa_shards.errors import InputError
from hjepa_shards.mixture.forecast import forecast
from hjepa_shards.mixture.mixture import DataConfig, Mixture, load_mixture
from tests.hjepa_shards.stand_in import save_stand_in


@pytest.fixture
def root(tmp_path: Path) -> Path:
    save_stand_in(tmp_path, "big", [300, 300, 250])
    save_stand_in(tmp_path, "small", [10, 15])
    save_stand_in(tmp_path, "never", [40])
    return tmp_path


def mix(root: Path, weights: dict[str, float], **more: object) -> Mixture:
    sources = [{"name": name, "weight": weight} for name, weight in weights.items()]
    content = {"root": str(root), "strategy": "weighted", "sources": sources, **more}
    return load_mixture(parse(DataConfig, content, "test"), "test")


def test_counts_are_those_of_the_plan_played_to_the_end(root: Path) -> None:
    mixture = mix(root, {"big": 0.5, "small": 0.5, "never": 0}, epoch_samples=500)
    found = forecast(mixture, epochs=2, global_batch=48, ranks=4)
    assert (found.steps, found.samples) == (21, 1008)  # 1,000 positions, rounded up to whole batches
    planned = mixture.make_plan(0).samples(0, found.samples)
    for index, entry in enumerate(found.entries):
        drawn = planned.sample[planned.source == index]
        assert entry.draws == len(drawn)
        assert entry.repeats == len(drawn) - len(np.unique(drawn))
        assert entry.never_seen == entry.samples - len(np.unique(drawn))
        assert entry.passes == pytest.approx(len(drawn) / entry.samples)


def test_what_surprises_is_said(root: Path) -> None:
    mixture = mix(root, {"big": 0.5, "small": 0.5, "never": 0}, epoch_samples=500, order={"lanes": 2})
    said = "\n".join(forecast(mixture, epochs=2, global_batch=48, ranks=3).warnings)
    assert "never has weight 0" in said
    assert "big: 346 of 850 samples are never seen" in said
    assert "small is repeated 10.1 times an epoch" in said
    assert "2 lanes do not divide 3 ranks" in said


def test_a_full_concat_epoch_repeats_nothing_and_leaves_nothing_out(root: Path) -> None:
    sources = [{"name": "big"}, {"name": "small"}]
    content = {"root": str(root), "strategy": "concat", "sources": sources}
    found = forecast(load_mixture(parse(DataConfig, content, "t"), "t"), epochs=1, global_batch=25)
    assert [(e.draws, e.repeats, e.never_seen) for e in found.entries] == [(850, 0, 0), (25, 0, 0)]
    assert found.warnings == ()


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"epochs": -1}, {"global_batch": 0}, {"ranks": 0}])
def test_numbers_below_one_are_refused(root: Path, wrong: dict[str, int]) -> None:
    numbers = {"epochs": 1, "global_batch": 8, "ranks": 1} | wrong
    with pytest.raises(InputError, match="a positive number expected"):
        forecast(mix(root, {"big": 1}), **numbers)


def test_ranks_that_do_not_divide_the_batch_are_refused(root: Path) -> None:
    with pytest.raises(InputError, match="nearest is 9"):
        forecast(mix(root, {"big": 1}), epochs=1, global_batch=8, ranks=3)
