import math

import pytest

from hjepa_train.base.schedules import initial_share, largest_momentum, learning_rate, momentum, weight_decay


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


def test_weight_decay_rises_only_in_long_runs() -> None:
    assert weight_decay(0, 49_999) == weight_decay(40_000, 49_999) == 0.05
    assert weight_decay(0, 50_000) == pytest.approx(0.04)
    assert weight_decay(25_000, 50_000) == pytest.approx(0.22)
    assert weight_decay(50_000, 50_000) == pytest.approx(0.4)


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
