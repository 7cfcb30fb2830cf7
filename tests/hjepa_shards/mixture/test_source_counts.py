import math
import random
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hjepa_shards.errors import InputError
from hjepa_shards.mixture.source_counts import Segment, exact_weights, first_segment

FIXED = settings(derandomize=True, deadline=None, database=None, max_examples=60)

weight = st.one_of(st.just(0), st.integers(1, 12), st.integers(1, 10**8), st.sampled_from([1, 10**8]))
weight_sets = st.lists(weight, min_size=1, max_size=16).filter(any)
positions = st.one_of(st.integers(0, 2000), st.integers(0, 10**12), st.integers(10**12 - 10**6, 10**12))


def drawn(segment: Segment, start: int, stop: int) -> list[int]:
    """The source of each position of [start, stop), from the counts alone; the routes are the same."""
    steps = np.diff(segment.counts(np.arange(start, stop + 1)), axis=0)
    assert set(steps.ravel().tolist()) <= {0, 1}
    assert (steps.sum(axis=1) == 1).all()
    order = steps.argmax(axis=1)
    before = segment.counts([start])[0].tolist()
    for source, (first, indices) in enumerate(segment.route(start, stop)):
        assert first == before[source]
        assert indices.tolist() == np.flatnonzero(order == source).tolist()
    return order.tolist()


def greedy(changes: list[tuple[int, list[int]]], stop: int) -> list[int]:
    """The same order in another way: position by position, in exact fractions, by what each source is owed.

    changes: (first position, weights), ascending from 0.
    """
    order: list[int] = []
    owed = [Fraction(0)] * len(changes[0][1])
    for (start, weights), end in zip(changes, [first for first, _ in changes[1:]] + [stop], strict=True):
        total = sum(weights) // math.gcd(*weights)
        grain = total * ((2**31 - 1) // total)
        owed = [Fraction(math.floor(debt * grain), grain) for debt in owed]
        for _ in range(start, end):
            owed = [debt + Fraction(w, sum(weights)) for debt, w in zip(owed, weights, strict=True)]
            chosen = _descend(weights, owed, 0, len(weights))
            owed[chosen] -= 1
            order.append(chosen)
    return order


def _descend(weights: list[int], owed: list[Fraction], low: int, high: int) -> int:
    if high - low == 1:
        return low
    middle = (low + high) // 2
    divisor = math.gcd(*weights)
    all_weight, left_weight = sum(weights[low:high]) // divisor, sum(weights[low:middle]) // divisor
    debts = [debt if w else Fraction(0) for debt, w in zip(owed, weights, strict=True)]
    if left_weight == 0:
        return _descend(weights, owed, middle, high)
    if left_weight == all_weight:
        return _descend(weights, owed, low, middle)
    fair = Fraction(left_weight, all_weight) * (sum(debts[low:high]) - 1)
    lacking = sum(debts[low:middle]) - fair
    goes_left = lacking >= 1 - Fraction(all_weight // 2, all_weight)
    return _descend(weights, owed, low, middle) if goes_left else _descend(weights, owed, middle, high)


@FIXED
@given(weights=weight_sets, start=positions)
def test_after_every_position_each_source_has_its_share(weights: list[int], start: int) -> None:
    counts = first_segment(weights).counts(np.arange(start, start + 300)).tolist()
    total, levels = sum(weights), math.ceil(math.log2(len(weights)))
    for position, row in enumerate(counts, start):
        assert sum(row) == position
        for count, w in zip(row, weights, strict=True):
            assert 2 * abs(count * total - w * position) <= levels * total
            assert w or not count


@FIXED
@given(weights=weight_sets, start=positions)
def test_counts_never_go_down_and_a_position_belongs_to_one_source(weights: list[int], start: int) -> None:
    assert len(drawn(first_segment(weights), start, start + 300)) == 300


def test_the_largest_weights_and_positions_fit_into_int64() -> None:
    weights = [2**31 - 4, 1, 1, 1]
    for start in (10**12, 4 * 10**18):
        order = drawn(first_segment(weights), start, start + 5000)
        assert order.count(0) >= 4998
        first, indices = first_segment(weights).route(start, start + 5000)[0]
        assert len(indices) == order.count(0)
        assert abs(first - start * weights[0] // sum(weights)) <= 1


@FIXED
@given(data=st.data(), num_sources=st.integers(1, 6))
def test_the_order_is_that_of_a_greedy_walk_in_fractions(data: st.DataObject, num_sources: int) -> None:
    weights = st.lists(st.sampled_from([0, 0, 1, 2, 3, 7, 10]), min_size=num_sources, max_size=num_sources)
    lengths = data.draw(st.lists(st.integers(0, 25), min_size=1, max_size=6))
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    changes = [(start, data.draw(weights.filter(any))) for start in starts]
    segment, order = first_segment(changes[0][1]), []
    for start, new_weights in changes[1:]:
        order += drawn(segment, segment.start, start)
        segment = segment.cut(start, new_weights)
    order += drawn(segment, segment.start, starts[-1] + 40)
    assert order == greedy(changes, starts[-1] + 40)


@FIXED
@given(
    weights=weight_sets,
    others=weight_sets,
    cuts=st.lists(st.integers(0, 200), max_size=5),
    start=positions,
    factor=st.integers(1, 9),
)
def test_the_same_weights_set_again_change_nothing(
    weights: list[int], others: list[int], cuts: list[int], start: int, factor: int
) -> None:
    changed = first_segment((others * 16)[: len(weights)] if any(others[: len(weights)]) else weights)
    plain = segment = changed.cut(start, weights)
    for cut in sorted(cuts):
        segment = segment.cut(start + cut, [w * factor for w in weights])
    end = start + max(cuts, default=0)
    assert segment.counts(np.arange(end, end + 200)).tolist() == plain.counts(np.arange(end, end + 200)).tolist()


@pytest.mark.parametrize("num_sources", [2, 3, 5, 16])
@pytest.mark.parametrize("largest", [1, 3, 10, 1000, 10**8])
def test_changes_of_weights_never_add_up(num_sources: int, largest: int) -> None:
    """|draws − integral of the weights| stays below 4 samples, zeros and short segments included."""
    dice = random.Random(num_sources * largest)
    segment = first_segment([1] * num_sources)
    integral = [Fraction(0)] * num_sources
    for _ in range(600):
        position = segment.start + dice.randint(0, 20)
        total = sum(segment.weights)
        for source, w in enumerate(segment.weights):
            integral[source] += Fraction(w * (position - segment.start), total)
        counts = segment.counts([position])[0].tolist()
        assert max(abs(count - due) for count, due in zip(counts, integral, strict=True)) < 4
        weights = [dice.choice([0, dice.randint(1, largest)]) for _ in range(num_sources)]
        segment = segment.cut(position, weights if any(weights) else [1] * num_sources)


def test_a_source_at_weight_zero_keeps_what_it_is_owed() -> None:
    segment = first_segment([1, 1, 1]).cut(1, [1, 0, 1]).cut(1001, [1, 1, 1])
    asleep = first_segment([1, 1, 1]).cut(1, [1, 0, 1])
    assert segment.draws[1] == asleep.draws[1]
    assert segment.owed[1] == asleep.owed[1] * segment.grain // asleep.grain != 0


def test_sources_that_come_and_go_leave_the_others_their_debts() -> None:
    segment = first_segment([5, 3, 2]).cut(7, [5, 3, 2])
    new = first_segment([5, 3, 2]).rearranged(7, [2, 4, 5], [2, None, 0])
    assert new.draws == (segment.draws[2], 0, segment.draws[0])
    assert new.owed[1] == 0
    assert [new.owed[0] / new.grain, new.owed[2] / new.grain] == pytest.approx(
        [segment.owed[2] / segment.grain, segment.owed[0] / segment.grain], abs=1e-8
    )


def test_decimals_become_the_smallest_whole_numbers() -> None:
    assert exact_weights([0.6, 0.3, 0.1]) == (6, 3, 1)
    assert exact_weights([1, 1e-8]) == (10**8, 1)
    assert exact_weights([60, 30.0, 10]) == (6, 3, 1)
    assert exact_weights([0.0, 2.5]) == (0, 1)
    assert exact_weights([2**31 - 2, 1]) == (2**31 - 2, 1)


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ([1, -0.5], "at least 0"),
        ([1, float("nan")], "at least 0"),
        ([float("inf")], "at least 0"),
        ([0, 0.0], "above 0"),
        ([], "none found"),
        ([2**31 - 1, 1], r"less than 2\^31"),
        ([0.3333333333333333, 0.6666666666666667], "fewer digits"),
        ([1e-300, 1], r"10\^300"),
    ],
)
def test_weights_that_mean_nothing_are_refused(weights: list[float], said: str) -> None:
    with pytest.raises(InputError, match=said):
        exact_weights(weights)
