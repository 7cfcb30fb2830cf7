"""How long does it take to plan 4,096 positions, and to restore a plan of a billion samples?

    python benchmarks/plan.py

Medians of warm calls; the aim is 2 ms and 1 s.
"""

import statistics
import time
from collections.abc import Callable

import numpy as np

from hjepa_shards.mixture.sample_order import Entry, OrderSettings, Plan
from hjepa_shards.mixture.source_counts import first_segment

POSITIONS = 4096


def main() -> None:
    for num_sources in (1, 3, 16):
        for lanes in (1, 8):
            plan = plan_of(num_sources, lanes, shards=64, shard_samples=8192)
            starts = iter(range(0, 10**9, POSITIONS))
            plan.samples(0, POSITIONS)
            took_s = median_s(lambda plan=plan, starts=starts: window(plan, next(starts)), calls=60)
            print(f"{num_sources:2} sources, {lanes} lanes: {1e3 * took_s:.2f} ms for {POSITIONS} positions")
    began = time.perf_counter()
    plan = plan_of(1, 1, shards=125_000, shard_samples=8000)
    window(plan, 50 * 10**9 + 123)
    print(f"1,000,000,000 samples in 125,000 shards: {time.perf_counter() - began:.2f} s from nothing to pass 50")


def window(plan: Plan, start: int) -> None:
    plan.samples(start, start + POSITIONS)


def plan_of(num_sources: int, lanes: int, *, shards: int, shard_samples: int) -> Plan:
    entries = [
        Entry(
            name=f"source{i:02}",
            shard_samples=np.full(shards, shard_samples, np.int64),
            order_digest="",
            content_digest="",
        )
        for i in range(num_sources)
    ]
    weights = tuple(range(1, num_sources + 1))
    return Plan(entries, 0, OrderSettings(lanes=lanes), first_segment(weights), 10**6)


def median_s(call: Callable[[], None], calls: int) -> float:
    took = []
    for _ in range(calls):
        began = time.perf_counter()
        call()
        took.append(time.perf_counter() - began)
    return statistics.median(took)


if __name__ == "__main__":
    main()
