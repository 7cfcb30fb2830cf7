"""The expected order is written down twice: as plain loops here (`slow_sample`, and the greedy walk of
test_source_counts.py), and in golden/plan_v1.json, which `python tests/golden/make_plan.py` wrote."""

import functools
import hashlib
import itertools
import json
import math
import runpy
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hjepa_shards.base.keyed_random import philox_words
from hjepa_shards.errors import InputError
from hjepa_shards.mixture.sample_order import (
    Entry,
    OrderSettings,
    Plan,
    add_proofs,
    lane_order,
    nearest_batch,
    order_proof,
    slice_of,
    slice_size,
)
from hjepa_shards.mixture.source_counts import first_segment

FIXED = settings(derandomize=True, deadline=None, database=None, max_examples=25)
GOLDEN = Path(__file__).parents[2] / "golden"

mixtures = st.lists(
    st.tuples(st.lists(st.integers(0, 20), min_size=1, max_size=8).filter(any), st.integers(0, 9)),
    min_size=1,
    max_size=5,
).filter(lambda sources: any(weight for _, weight in sources))
orders = st.builds(
    OrderSettings,
    lanes=st.integers(1, 5),
    window=st.integers(1, 6),
    shuffle=st.sampled_from(["window", "window", "full"]),
)


def make_plan(sources: list[tuple[list[int], int]], order: OrderSettings, seed: int = 5) -> Plan:
    """A plan of sources given as (samples of each shard, weight), called a, b, c, ..."""
    entries = [
        Entry(name=chr(97 + i), shard_samples=np.array(sizes), order_digest="", content_digest="")
        for i, (sizes, _) in enumerate(sources)
    ]
    segment = first_segment([weight for _, weight in sources])
    return Plan(entries, seed, order, segment, sum(entry.num_samples for entry in entries))


def slow_sample(entry: Entry, seed: int, order: OrderSettings, draw: int) -> tuple[int, int, int]:
    """(pass, sample, lane) of one draw, in plain loops."""
    pass_, index = divmod(draw, entry.num_samples)
    home = slow_key(seed, "lane", entry.name) % order.lanes
    lane = (index + home) % order.lanes
    sizes = tuple(entry.shard_samples.tolist())
    samples = slow_lane(entry.name, sizes, entry.generation, seed, order, pass_, lane)  # pyright: ignore
    return pass_, samples[index // order.lanes], lane


@functools.cache
def slow_lane(
    name: str, sizes: tuple[int, ...], generation: int, seed: int, order: Any, pass_: int, lane: int
) -> list[int]:
    """A lane's samples in the order of one pass."""
    home = slow_key(seed, "lane", name) % order.lanes
    homes = [(index + home) % order.lanes for index in range(sum(sizes))]
    start = sum(homes.count(before) for before in range(lane))
    mine = range(start, start + homes.count(lane))
    shard = [number for number, size in enumerate(sizes) for _ in range(size)]
    pieces = [list(piece) for _, piece in itertools.groupby(mine, key=lambda sample: shard[sample])]
    pieces = slow_shuffled(pieces, slow_key(seed, "shards", name, generation, pass_, lane))
    num_windows = max(1, round(len(pieces) / order.window)) if order.shuffle == "window" else 1
    shorter, longer = divmod(len(pieces), num_windows)
    samples: list[int] = []
    for window in range(num_windows):
        size = shorter + (window < longer)
        taken, pieces = pieces[:size], pieces[size:]
        key = slow_key(seed, "window", name, generation, pass_, lane, window)
        samples += slow_shuffled([sample for piece in taken for sample in piece], key)
    return samples


def slow_shuffled(items: list, key: int) -> list:
    words = np.random.Philox(key=key).random_raw(len(items)).tolist()
    return [items[i] for i in sorted(range(len(items)), key=lambda i: words[i])]


def slow_key(*parts: int | str) -> int:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        body = repr(part).encode()
        digest.update(len(body).to_bytes(4, "little") + body)
    return int.from_bytes(digest.digest(), "little")


@FIXED
@given(sources=mixtures, order=orders, start=st.integers(0, 400), length=st.integers(0, 200))
def test_the_plan_is_that_of_the_plain_loops(
    sources: list[tuple[list[int], int]], order: OrderSettings, start: int, length: int
) -> None:
    plan = make_plan(sources, order)
    planned = plan.samples(start, start + length)
    counts = plan.segment.counts(np.arange(start, start + length + 1)).tolist()
    assert planned.position.tolist() == list(range(start, start + length))
    for index in range(length):
        source, draw = int(planned.source[index]), int(planned.draw[index])
        assert draw == counts[index][source] == counts[index + 1][source] - 1
        expected = slow_sample(plan.entries[source], plan.seed, order, draw)
        assert (planned.pass_[index], planned.sample[index], planned.lane[index]) == expected


def test_the_order_is_the_golden_one() -> None:
    """Keys, words, a pass and 10,000 positions with three segments. If this fails, saved runs do not resume."""
    golden = json.loads((GOLDEN / "plan_v1.json").read_text(encoding="utf-8"))
    today = runpy.run_path(str(GOLDEN / "make_plan.py"))["content"]()
    assert json.loads(json.dumps(today)) == golden


def test_the_golden_order_is_that_of_the_plain_loops() -> None:
    golden = json.loads((GOLDEN / "plan_v1.json").read_text(encoding="utf-8"))
    make = runpy.run_path(str(GOLDEN / "make_plan.py"))
    entries = make["entries"]()
    for _, source, draw, pass_, sample, lane in golden["first_rows"]:
        assert slow_sample(entries[source], make["SEED"], make["ORDER"], draw) == (pass_, sample, lane)
    expected = [slow_sample(entries[0], make["SEED"], make["ORDER"], draw)[1] for draw in range(2000, 3000)]
    assert golden["pass"] == expected
    for parts, key in golden["keys"].items():
        assert int(key, 16) == slow_key(*json.loads(parts))


@FIXED
@given(sizes=st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=4).filter(any), min_size=1, max_size=4))
def test_concat_gives_every_sample_once_in_each_of_100_epochs(sizes: list[list[int]]) -> None:
    plan = make_plan([(shards, sum(shards)) for shards in sizes], OrderSettings(window=2))
    epoch = plan.epoch_samples
    planned = plan.samples(0, 100 * epoch)
    samples = planned.source * 10**6 + planned.sample
    every = sorted(source * 10**6 + sample for source, shards in enumerate(sizes) for sample in range(sum(shards)))
    for one in samples.reshape(100, epoch):
        assert sorted(one.tolist()) == every


@FIXED
@given(sources=mixtures, order=orders, position=st.integers(0, 10**12), size=st.integers(1, 4))
def test_ranks_together_take_the_same_batch_for_any_world(
    sources: list[tuple[list[int], int]], order: OrderSettings, position: int, size: int
) -> None:
    batch = 24 * size
    plan = make_plan(sources, order)
    whole = plan.global_batch(position, batch)
    assert sorted(whole.position.tolist()) == list(range(position, position + batch))
    for world in (1, 2, 3, 8, 24):
        ranks = [plan.rank_batch(position, batch, rank, world) for rank in range(world)]
        taken = {tuple(rank.position.tolist()) for rank in ranks}
        assert taken == {tuple(part.tolist()) for part in np.split(whole.position, world)}
        assert sum(len(rank) for rank in ranks) == batch


@FIXED
@given(batch=st.integers(1, 200), lanes=st.integers(1, 20), seed=st.integers(0, 99))
def test_lanes_fill_their_quota_first(batch: int, lanes: int, seed: int) -> None:
    lane = np.random.Generator(np.random.Philox(seed)).integers(0, lanes, batch)
    order = lane_order(lane, lanes)
    assert sorted(order.tolist()) == list(range(batch))
    quota = [(number + 1) * batch // lanes - number * batch // lanes for number in range(lanes)]
    filled: list[list[int]] = [[] for _ in range(lanes)]
    left_over = []
    for index, home in enumerate(lane.tolist()):
        (filled[home] if len(filled[home]) < quota[home] else left_over).append(index)
    for number in range(lanes):
        while len(filled[number]) < quota[number]:
            filled[number].append(left_over.pop(0))
    assert order.tolist() == [index for indices in filled for index in sorted(indices)]


@pytest.mark.parametrize(("world", "lanes", "sharing"), [(4, 1, 4), (6, 2, 3), (4, 4, 1), (6, 4, 1), (2, 4, 1)])
def test_ranks_of_a_lane_take_its_slices_in_turn_by_a_key(world: int, lanes: int, sharing: int) -> None:
    seen = Counter()
    for position in range(0, 64_000, 64):
        turn = slow_key(3, "deal", position)
        for rank in range(world):
            expected = rank // sharing * sharing + (rank % sharing + turn) % sharing
            assert slice_of(rank, world, lanes, position, 3) == expected
            seen[rank, expected] += 1
    assert len(seen) == world * sharing
    assert min(seen.values()) > 0.8 * 1000 / sharing


def test_ranks_of_a_lane_read_that_lane() -> None:
    plan = make_plan([([100] * 64, 3), ([70] * 80, 2)], OrderSettings(lanes=4))
    batches = [plan.rank_batch(step * 256, 256, rank=5, world=8) for step in range(50)]
    at_home = sum(int((batch.lane == 2).sum()) for batch in batches)
    assert at_home > 0.9 * 50 * 32


@pytest.mark.parametrize("weights", [(1, 1), (1, 3), (6, 3, 1), (1,) * 16, (97, 1, 1, 1)])
@pytest.mark.parametrize("world", [2, 3, 8])
def test_each_rank_gets_its_share_of_every_source(weights: tuple[int, ...], world: int) -> None:
    """Within 4·sqrt(T) samples of w·T·b after T batches."""
    plan = make_plan([([50, 50], weight) for weight in weights], OrderSettings())
    size, taken = 16, np.zeros((world, len(weights)))
    share = np.array(weights) / sum(weights)
    for step in range(1, 151):
        for rank in range(world):
            mine = plan.rank_batch((step - 1) * size * world, size * world, rank, world)
            taken[rank] += np.bincount(mine.source, minlength=len(weights))
        assert np.abs(taken - share * step * size).max() <= 4 * math.sqrt(step)


def test_a_batch_that_ranks_cannot_share_is_refused_with_the_nearest_that_they_can() -> None:
    with pytest.raises(InputError, match="global batch 100: a multiple of the 8 ranks expected; the nearest is 104"):
        slice_size(100, 8)
    assert slice_size(104, 8) == 13
    for batch, world in itertools.product(range(1, 70), range(1, 20)):
        legal = range(world, 200, world)
        assert abs(nearest_batch(batch, world) - batch) == min(abs(number - batch) for number in legal)
        assert nearest_batch(batch, world) in legal


def test_the_proof_is_a_sum_of_digests_that_any_grouping_gives() -> None:
    rows = [(0, 17, "digits"), (1, 3, "photos"), (10**12, 9, "é")]
    digests = [hashlib.blake2b(f"{p}/{s}/{name}".encode(), digest_size=16).digest() for p, s, name in rows]
    expected = sum(int.from_bytes(digest, "little") for digest in digests) % 2**128

    def proof(rows: list[tuple[int, int, str]]) -> int:
        positions, samples, names = zip(*rows, strict=True)
        return order_proof(np.array(positions), names, np.array(samples))

    assert proof(rows) == proof(rows[::-1]) == expected
    assert add_proofs(proof(rows[1:]), proof(rows[:1])) == expected
    assert proof([(0, 17, "digits")]) != proof([(0, 18, "digits")]) != proof([(1, 17, "digits")])
    assert order_proof(np.array([], np.int64), [], np.array([], np.int64)) == 0


def test_other_weights_take_effect_at_their_position_and_small_draws_continue() -> None:
    plan = make_plan([([30], 1), ([40], 1), ([50], 0)], OrderSettings())
    before = plan.samples(0, 101)
    changed = plan.reweighed(101, [0, 1, 3])
    after = changed.samples(101, 901)
    for source in range(3):
        draws = np.concatenate([before.draw[before.source == source], after.draw[after.source == source]])
        assert draws.tolist() == list(range(len(draws)))
    counts = Counter(after.source.tolist())
    assert counts[0] == 0
    assert abs(counts[1] - 200) <= 2
    with pytest.raises(ValueError, match=r"\[100, 200\) requested from a plan that starts at 101"):
        changed.samples(100, 200)


def test_epochs_and_steps_are_counted_in_positions() -> None:
    plan = make_plan([([30], 1), ([70], 1)], OrderSettings())
    assert [plan.epoch(position) for position in (0, 99, 100, 250)] == [0, 0, 1, 2]
    assert [plan.num_steps(3, batch) for batch in (100, 64, 300, 301)] == [3, 5, 1, 1]


@pytest.mark.parametrize("num_sources", [1, 3, 16])
def test_4096_positions_are_planned_in_the_time_of_sorting_32768_numbers(num_sources: int) -> None:
    """That is 2 to 3 ms on a core at 2.5 GHz with nothing beside it; a clock alone would fail on a busy machine."""
    plan = make_plan([([5000] * 40, source + 1) for source in range(num_sources)], OrderSettings())
    numbers = philox_words(key=1, count=1 << 15)
    times, limits = [], []
    for first in range(0, 40 * 4096, 4096):
        begin = time.perf_counter()
        plan.samples(first, first + 4096)
        middle = time.perf_counter()
        np.argsort(numbers, kind="stable")
        times.append(middle - begin)
        limits.append(time.perf_counter() - middle)
    assert min(times) < min(limits)
