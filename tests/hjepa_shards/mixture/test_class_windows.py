"""How many classes a window of shards shows: against counting all draws, and what is said of sorted shards."""

from itertools import combinations

import numpy as np
import pytest

from hjepa_shards.mixture.class_windows import classes_in_window, sorted_by_class


def test_the_average_is_that_over_all_windows() -> None:
    labels = [np.array(of_shard) for of_shard in ([0, 0, 1], [1, -1], [2, 2], [2, 3, 3], [-1])]
    for window in range(1, 6):
        seen = [len({label for of in drawn for label in of if label >= 0}) for drawn in combinations(labels, window)]
        found, _, classes = classes_in_window(labels, window)
        assert found == pytest.approx(np.mean(seen))
        assert classes == 4


def test_sorted_shards_are_named_and_shuffled_ones_are_not() -> None:
    shards, samples = 200, 50
    in_order = [np.full(samples, shard // 2) for shard in range(shards)]
    said = sorted_by_class(in_order)
    assert said.startswith(
        "sorted by class: a window of 16 shards shows 15 of 100 classes on average, shuffled ones 10"
    )
    assert "hjepa-shards build webdataset" in said
    generator = np.random.Generator(np.random.Philox(1))
    mixed = generator.permutation(np.concatenate(in_order)).reshape(shards, samples)
    assert sorted_by_class(list(mixed)) == ""
    assert sorted_by_class(in_order[:16]) == "", "one window holds them all"
    assert sorted_by_class([np.full(3, -1)] * 40) == sorted_by_class([]) == ""
