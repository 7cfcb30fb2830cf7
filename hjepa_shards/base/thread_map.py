"""Work on items in threads: results in the order of the items, few of them under way, the first error ends it.

For work that leaves the GIL (hashing, decoding). Items and results may be without number: no more than three a thread
are held at a time, which `Executor.map` does not promise.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

_HELD_A_THREAD = 3


def num_cores() -> int:
    """Cores that this process may use: of those of the machine its share, where torchrun started several."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    started = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, cores // max(1, int(started))) if started.isdecimal() else cores  # a run says what is wrong with it


def in_threads(work: Callable[[Item], Result], items: Iterable[Item], workers: int) -> Iterator[Result]:
    """`work` of each item, in order."""
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(workers) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(work, item))
                if len(waiting) >= _HELD_A_THREAD * workers:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
