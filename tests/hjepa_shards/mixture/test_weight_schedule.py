"""Weights that follow epochs: exact, the same from any position, near what was written."""

from pathlib import Path

import numpy as np
import pytest

from hjepa_shards.errors import InputError
from hjepa_shards.mixture.mixture import Mixture
from hjepa_shards.mixture.resume_state import resume
from hjepa_shards.mixture.weight_schedule import STAIR, make_staircase
from tests.hjepa_shards.mixture.test_resume_state import SEED, mix, rows, saved
from tests.hjepa_shards.stand_in import save_stand_in

EPOCH = 100_000
RISING = {"a": {0: 0.1, 2: 0.7, 5: 0}, "b": 0.3}


@pytest.fixture
def rising(tmp_path: Path) -> Mixture:
    for name in RISING:
        save_stand_in(tmp_path, name, [1000, 1000])
    return mix(tmp_path, RISING, epoch_samples=EPOCH)


def test_a_stair_has_the_weights_of_its_beginning() -> None:
    staircase = make_staircase([{1: 0, 3: 1}, 1], STAIR)
    assert staircase
    found = [staircase.weights(position) for position in (0, STAIR, 2 * STAIR - 1, 2 * STAIR, 3 * STAIR, 99 * STAIR)]
    assert found == [(0, 1), (0, 1), (0, 1), (333333, 666667), (1, 1), (1, 1)]
    assert staircase.end > 3 * STAIR
    assert make_staircase([0.5, 0.5], STAIR) is None


def test_a_weight_too_small_for_a_stair_is_drawn_all_the_same() -> None:
    staircase = make_staircase([{0: 1e-9, 1: 0}, 1], STAIR)
    assert staircase
    assert [staircase.weights(position) for position in (0, STAIR)] == [(1, 1_000_000), (0, 1)]


def test_every_source_has_what_its_weights_ask_for_after_every_stair(rising: Mixture) -> None:
    plan, epochs = rising.make_plan(SEED), np.arange(0, 700_001, STAIR) / EPOCH
    a, b = np.interp(epochs, [0, 2, 5], [0.1, 0.7, 0]), 0.3
    expected = np.cumsum(STAIR * a / (a + b))[:-1]
    found = [plan.counts(stair * STAIR)[0] for stair in range(1, len(epochs))]
    assert np.abs(found - expected).max() < 1
    drawn = plan.samples(0, 700_000).source
    assert [int((drawn[: stair * STAIR] == 0).sum()) for stair in range(1, len(epochs))] == found
    assert not (drawn[9 * STAIR :] == 0).any()


def test_a_run_resumes_exactly_on_any_stair(rising: Mixture) -> None:
    whole = rising.make_plan(SEED)
    stop = 400_000
    for position in (0, 1, STAIR - 1, STAIR, STAIR + 1, 3 * STAIR - 7, 5 * STAIR, 399_000):
        again = resume(saved(rising.make_plan(SEED), position), rising, SEED)
        for first in range(position, stop, 90_000):  # batches across the stairs
            end = min(first + 1000, stop)
            assert rows(again.samples(first, end)) == rows(whole.samples(first, end))
        assert again.counts(stop) == whole.counts(stop)


def test_other_knots_are_refused_and_continue_where_accepted(rising: Mixture) -> None:
    state = saved(rising.make_plan(SEED), 150_000)
    root = Path(rising.config.root)
    constant = mix(root, {"a": 0.1, "b": 0.3}, epoch_samples=EPOCH)
    with pytest.raises(InputError, match=r"weights: .*'2', '7/10'.* saved, .* here \(--accept-mixture"):
        resume(state, constant, SEED)
    again = resume(state, constant, SEED, accept_mixture=True)
    assert (again.segment.start, again.segment.weights, again.staircase) == (150_000, (1, 3), None)
    back = resume(saved(again, 160_000), rising, SEED, accept_mixture=True)
    assert back.segment.weights == rising.weights_at(160_000)
    assert back.counts(300_000)[0] > again.counts(300_000)[0]


def test_wrong_weights_are_refused(rising: Mixture) -> None:
    root = Path(rising.config.root)
    with pytest.raises(InputError, match=r"weights: at least one above 0 expected at any time, none is at epoch 4"):
        mix(root, {"a": {0: 1, 4: 0}, "b": {0: 1, 2: 0}})
    for wrong in ({0: -1}, {-1: 1}, {"x": 1}, {}, {0: "y"}):
        with pytest.raises(InputError, match=r"sources\.0\.weight"):
            mix(root, {"a": wrong, "b": 1})
    with pytest.raises(InputError, match="weights that follow epochs cannot be set as well"):
        rising.make_plan(SEED).reweighed(10, (1, 1))
