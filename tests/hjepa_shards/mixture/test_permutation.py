from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hjepa_shards.errors import InputError
from hjepa_shards.mixture.permutation import MAX_ATTEMPTS, MAX_FULL_SHUFFLE, Entry, EntryOrder, OrderSettings

FIXED = settings(derandomize=True, deadline=None, database=None, max_examples=50)

shard_sizes = st.lists(st.integers(0, 30), min_size=1, max_size=25).filter(any)
orders = st.builds(
    OrderSettings,
    lanes=st.integers(1, 9) | st.integers(1, 900),
    window=st.integers(1, 30),
    shuffle=st.sampled_from(["window", "window", "full"]),
)


def entry(shard_samples: list[int], name: str = "digits", generation: int = 0) -> Entry:
    return Entry(
        name=name,
        shard_samples=np.array(shard_samples),
        order_digest="o",
        content_digest="c",
        generation=generation,
    )


@FIXED
@given(sizes=shard_sizes, order=orders, pass_=st.integers(0, 3) | st.integers(0, 10**6))
def test_every_pass_is_a_permutation(sizes: list[int], order: OrderSettings, pass_: int) -> None:
    n = sum(sizes)
    draws = EntryOrder(entry(sizes), 3, order).draws(pass_ * n, (pass_ + 1) * n)
    assert sorted(draws.sample.tolist()) == list(range(n))
    assert set(draws.pass_.tolist()) == {pass_}


@FIXED
@given(sizes=shard_sizes, order=orders, data=st.data())
def test_a_draw_does_not_depend_on_how_it_is_requested(
    sizes: list[int], order: OrderSettings, data: st.DataObject
) -> None:
    n = sum(sizes)
    whole = EntryOrder(entry(sizes), 3, order).draws(0, 2 * n)
    start = data.draw(st.integers(0, 2 * n))
    stop = data.draw(st.integers(start, 2 * n))
    part = EntryOrder(entry(sizes), 3, order).draws(start, stop)
    assert part.sample.tolist() == whole.sample[start:stop].tolist()
    assert part.lane.tolist() == whole.lane[start:stop].tolist()
    assert part.pass_.tolist() == whole.pass_[start:stop].tolist()


@FIXED
@given(sizes=shard_sizes, lanes=st.integers(1, 12))
def test_lanes_are_consecutive_runs_of_equal_length_taken_in_turn(sizes: list[int], lanes: int) -> None:
    n = sum(sizes)
    draws = EntryOrder(entry(sizes), 3, OrderSettings(lanes=lanes)).draws(0, n)
    assert set(np.diff(draws.lane).tolist()) <= {1, 1 - lanes}
    runs = [sorted(draws.sample[draws.lane == lane].tolist()) for lane in range(lanes)]
    assert [sample for run in runs for sample in run] == list(range(n))
    assert max(map(len, runs)) - min(map(len, runs)) <= 1


def test_a_window_holds_the_samples_of_its_shards_and_no_others() -> None:
    """40 shards, W = 16: round(2.5) = 2 windows of 20 shards each, mixed within and not between."""
    order = EntryOrder(entry([10] * 40), 3, OrderSettings(window=16))
    shards = order.draws(0, 400).sample // 10
    first, second = set(shards[:200].tolist()), set(shards[200:].tolist())
    assert len(first) == len(second) == 20
    assert not first & second
    assert len(set(shards[:40].tolist())) > 10


def test_full_shuffle_mixes_all_shards() -> None:
    order = EntryOrder(entry([10] * 400), 3, OrderSettings(shuffle="full"))
    shards = order.draws(0, 400).sample // 10
    assert len(set(shards.tolist())) > 200


@pytest.mark.parametrize(
    ("sizes", "settings"),
    [([50, 50], OrderSettings()), ([1] * 100, OrderSettings(window=1))],
    ids=["samples of a window", "shards"],
)
def test_passes_generations_seeds_and_names_are_other_permutations(sizes: list[int], settings: OrderSettings) -> None:
    def samples(seed: int = 3, pass_: int = 0, **changes: Any) -> tuple[int, ...]:
        order = EntryOrder(entry(sizes, **changes), seed, settings)
        return tuple(order.draws(pass_ * 100, pass_ * 100 + 100).sample.tolist())

    orders = [samples(), samples(pass_=1), samples(generation=1), samples(name="photos"), samples(seed=4)]
    assert len(set(orders)) == len(orders)


@FIXED
@given(sizes=shard_sizes, order=orders, data=st.data())
def test_a_replacement_comes_from_the_same_window(sizes: list[int], order: OrderSettings, data: st.DataObject) -> None:
    n = sum(sizes)
    made = EntryOrder(entry(sizes), 3, order)
    draw = data.draw(st.integers(0, 3 * n - 1))
    pass_, index = divmod(draw, n)
    draws = made.draws(pass_ * n, (pass_ + 1) * n)
    lane = draws.lane[index]
    mine = draws.sample[draws.lane == lane]
    ends = made._pieces(pass_, int(lane)).first_index.tolist()
    index_in_lane = int((draws.lane[:index] == lane).sum())
    window = next(i for i, end in enumerate(ends[1:]) if index_in_lane < end)
    allowed = set(mine[ends[window] : ends[window + 1]].tolist())
    tried = [made.replacement(draw, attempt) for attempt in range(1, MAX_ATTEMPTS + 1)]
    assert set(tried) <= allowed
    assert tried == [EntryOrder(entry(sizes), 3, order).replacement(draw, a) for a in range(1, 17)]


def test_attempts_are_other_samples_of_a_late_window_too() -> None:
    order = EntryOrder(entry([10] * 40), 3, OrderSettings(window=16))  # two windows of 200 samples
    for draw in (5, 250, 399, 400 + 350):
        first = draw // 200 * 200
        tried = {order.replacement(draw, attempt) for attempt in range(1, MAX_ATTEMPTS + 1)}
        assert tried <= set(order.draws(first, first + 200).sample.tolist())
        assert len(tried) > 8


def test_starting_far_into_large_data_opens_one_window() -> None:
    """3 billion samples in 125,000 shards: the first draws of pass 40 come within a second."""
    order = EntryOrder(entry([24_000] * 125_000), 3, OrderSettings())
    draws = order.draws(40 * order.entry.num_samples, 40 * order.entry.num_samples + 1000)
    assert len(set((draws.sample // 24_000).tolist())) in (16, 17)
    assert order._window.cache_info().currsize == 1


def test_few_windows_are_kept() -> None:
    order = EntryOrder(entry([5] * 200), 3, OrderSettings(lanes=4, window=2))
    order.draws(0, 3000)
    assert order._window.cache_info().currsize == 6


def test_a_full_shuffle_of_too_many_samples_is_refused() -> None:
    sizes = [MAX_FULL_SHUFFLE] * 3
    with pytest.raises(InputError, match=r"digits: `shuffle: full`.*50331648 found.*`lanes: 3`"):
        EntryOrder(entry(sizes), 3, OrderSettings(shuffle="full"))
    EntryOrder(entry(sizes), 3, OrderSettings(shuffle="full", lanes=3))


def test_an_entry_without_samples_is_refused() -> None:
    with pytest.raises(InputError, match="at least one sample"):
        EntryOrder(entry([0, 0]), 3, OrderSettings())


@FIXED
@given(sizes=shard_sizes, settings=orders, draw=st.integers(0, 300))
def test_what_is_wanted_is_what_comes_until_a_window_ends_and_all_of_the_next(
    sizes: list[int], settings: OrderSettings, draw: int
) -> None:
    order = EntryOrder(entry(sizes), 3, settings)
    wanted, holds_to = order.wanted(draw, range(settings.lanes))
    shards = np.searchsorted(np.cumsum(sizes), order.draws(draw, holds_to + 1).sample, side="right").tolist()
    assert holds_to > draw
    assert set(shards[:-1]) <= {one.shard for one in wanted if one.due <= draw}
    assert set(shards) <= {one.shard for one in wanted}
    assert all(one.due < holds_to + sum(sizes) for one in wanted)


def test_a_shard_that_comes_late_in_a_large_window_is_wanted_all_the_same() -> None:
    """No test looks through a window of a million samples; what it is made of is known."""
    sizes = [30_000, 1, 30_000]
    order = EntryOrder(entry(sizes), 4, OrderSettings(window=3))
    comes = int(np.flatnonzero(order.draws(0, sum(sizes)).sample == 30_000)[0])
    assert comes > 4096, "choose another seed"
    wanted, _ = order.wanted(0, range(1))
    assert {one.shard for one in wanted if one.due == 0} == {0, 1, 2}
