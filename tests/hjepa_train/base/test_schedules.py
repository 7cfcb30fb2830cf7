import math
from typing import Any

import pytest

from hjepa_train.base.schedules import (
    decay_by_length,
    initial_share,
    largest_momentum,
    learning_rate,
    momentum,
    weight_decay,
)


def test_learning_rate_rises_linearly_and_falls_as_a_half_cosine_to_zero() -> None:
    rates = [learning_rate(step, 100, peak=2.0, warmup_steps=10) for step in range(101)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[9] == pytest.approx(2.0)
    assert rates[10] == pytest.approx(2.0)
    assert rates[55] == pytest.approx(1.0)
    assert rates[40] == pytest.approx(1 + math.cos(math.pi / 3))
    assert rates[100] == pytest.approx(0.0)
    assert rates[99] > 0


@pytest.mark.parametrize("warmup_steps", [0, 5])
def test_runs_that_are_all_or_no_warmup_have_rates(warmup_steps: int) -> None:
    assert all(learning_rate(step, 5, peak=1.0, warmup_steps=warmup_steps) > 0 for step in range(5))


def test_the_other_shapes_end_where_they_should() -> None:
    def rates(steps: list[int], **shape: Any) -> list[float]:
        return [learning_rate(step, 100, peak=2.0, warmup_steps=10, **shape) for step in steps]

    assert rates([4, 10, 55, 100], shape="cosine", end=0.5) == pytest.approx([1.0, 2.0, 1.25, 0.5])
    assert rates([4, 10, 55, 100], shape="linear", end=0.5) == pytest.approx([1.0, 2.0, 1.25, 0.5])
    assert rates([32, 77], shape="linear") == pytest.approx([2 * (1 - 22 / 90), 2 * (1 - 67 / 90)])
    assert rates([4, 10, 99], shape="constant") == pytest.approx([1.0, 2.0, 2.0])
    steps = rates([10, 59, 60, 87, 88], shape="step", step_at=(0.6, 0.875), factor=0.1, end=0.05)
    assert steps == pytest.approx([2.0, 2.0, 0.2, 0.2, 0.05]), "0.02 is below the end"
    assert rates([9, 10], shape="step", step_at=(0.05,), factor=0.5) == pytest.approx([2.0, 1.0]), "after the warm-up"


def test_weight_decay_goes_from_start_to_end_by_a_half_cosine() -> None:
    assert weight_decay(0, 50_000, start=0.04, end=0.4) == pytest.approx(0.04)
    assert weight_decay(12_500, 50_000, start=0.04, end=0.4) == pytest.approx(0.22 - 0.18 * math.cos(math.pi / 4))
    assert weight_decay(50_000, 50_000, start=0.04, end=0.4) == pytest.approx(0.4)


def test_the_weight_decay_of_earlier_versions_is_by_length() -> None:
    assert decay_by_length(49_999) == (0.05, 0.05)
    assert decay_by_length(50_000) == (0.04, 0.4)


def test_momentum_is_linear_to_one() -> None:
    assert momentum(0, 1000, initial=0.996) == pytest.approx(0.996)
    assert momentum(500, 1000, initial=0.996) == pytest.approx(0.998)
    assert momentum(1000, 1000, initial=0.996) == 1


def test_the_initial_share_is_that_of_the_product() -> None:
    assert initial_share(2, initial=0.5) == pytest.approx(0.5 * 0.75)
    # log of the product is about -(1 - m0)(T + 1)/2
    assert initial_share(1600, initial=0.996) == pytest.approx(math.exp(-0.004 * 1601 / 2), rel=0.01)


@pytest.mark.parametrize("num_steps", [1, 2, 10, 200, 1600, 20_000])
def test_the_largest_momentum_is_the_largest(num_steps: int) -> None:
    found = largest_momentum(num_steps)
    assert initial_share(num_steps, initial=found) <= 0.05 < initial_share(num_steps, initial=found + 1e-5)


@pytest.mark.parametrize("initial", [0.999, 0.996, 0.99995])
def test_the_initial_share_of_many_steps_needs_no_loop(initial: float) -> None:
    steps = 50_001
    logs = math.fsum(math.log(momentum(step, steps, initial=initial)) for step in range(steps))
    assert math.log(max(initial_share(steps, initial=initial), 1e-300)) == pytest.approx(max(logs, -690.8), rel=1e-6)
    assert initial_share(10**15, initial=0.996) == initial_share(10**15, initial=0.0) == 0.0
    assert initial_share(10**15, initial=1 - 1e-15) == pytest.approx(math.exp(-0.5), rel=0.1)
