"""Results in order, few at a time, errors at once."""

import threading
import time
from collections.abc import Iterator

import pytest

from hjepa_shards.base.thread_map import in_threads, num_cores


def test_results_come_in_the_order_of_the_items() -> None:
    def work(item: int) -> int:
        time.sleep(0.002 * (item % 3))
        return item * item

    for workers in (1, 4):
        assert list(in_threads(work, range(40), workers)) == [i * i for i in range(40)]
    assert list(in_threads(work, [], 2)) == []
    assert num_cores() >= 1


def test_no_more_is_taken_than_threads_need() -> None:
    taken = 0

    def endless() -> Iterator[int]:
        nonlocal taken
        while True:
            taken += 1
            yield taken

    results = in_threads(lambda item: item, endless(), 2)
    assert [next(results) for _ in range(5)] == [1, 2, 3, 4, 5]
    assert taken <= 5 + 3 * 2
    results.close()  # type: ignore[attr-defined]


def test_the_first_error_ends_it() -> None:
    begun = []

    def work(item: int) -> int:
        begun.append(item)
        if item == 3:
            raise KeyError(item)
        return item

    with pytest.raises(KeyError):
        list(in_threads(work, range(10_000), 2))
    assert len(begun) < 20
    assert threading.active_count() < 10
