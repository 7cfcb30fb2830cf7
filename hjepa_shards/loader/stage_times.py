"""What the threads of a loader spend their time on, and what limits it.

A thread that was enrolled calls `lap(stage)` after each stage; the time since its last lap is that stage's. A lap
costs half a microsecond, a sample half a millisecond.
"""

import threading
import time
from collections.abc import Mapping
from dataclasses import astuple, dataclass
from typing import Literal, final

from hjepa_shards.mixture.source_shares import SourceShare

Stage = Literal["read", "verify", "decode", "resize", "idle"]
WORK: tuple[Stage, ...] = ("read", "verify", "decode", "resize")

_NEARLY_ALL = 0.9
_this_thread = threading.local()


@final
class StageTimes:
    """The laps of all threads of a pool."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._threads: list[dict[Stage, float]] = []

    def enroll(self) -> None:
        """To be called by each thread, once."""
        _this_thread.seconds = dict.fromkeys((*WORK, "idle"), 0.0)
        _this_thread.last = time.perf_counter()
        self._threads.append(_this_thread.seconds)

    def passed_s(self) -> float:
        return time.perf_counter() - self._began

    def totals(self) -> dict[Stage, float]:
        """Seconds of each stage, of all threads together."""
        return {stage: sum(thread[stage] for thread in self._threads) for stage in (*WORK, "idle")}


def lap(stage: Stage) -> None:
    """The time since this thread's last lap was spent on `stage`."""
    seconds = getattr(_this_thread, "seconds", None)
    if seconds is not None:
        now = time.perf_counter()
        seconds[stage] += now - _this_thread.last
        _this_thread.last = now


@dataclass(frozen=True, slots=True)
class Traffic:
    """What came from far away, and what did not have to."""

    cached: int = 0
    """Samples read from the cache."""
    ranges: int = 0
    """Samples read where they are, because their shard was not here yet."""
    shards: int = 0
    """Fetched whole."""
    num_bytes: int = 0
    """Of both, as they came."""

    def __add__(self, other: "Traffic") -> "Traffic":
        pairs = zip(astuple(self), astuple(other), strict=True)
        return Traffic(*(a + b for a, b in pairs))


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderStats:
    """Since the loader was opened."""

    seconds: float
    images: int
    num_bytes: int
    """Of images, as they are stored."""
    threads: int
    stages: Mapping[Stage, float]
    """Seconds of all threads together."""
    waited_s: float
    """What the trainer waited for batches."""
    traffic: Traffic
    """All zero where nothing is far away."""
    sources: Mapping[str, SourceShare]

    @property
    def images_per_s(self) -> float:
        return self.images / self.seconds

    @property
    def occupancy(self) -> float:
        """Share of their time that the threads work."""
        return sum(self.stages[stage] for stage in WORK) / (self.threads * self.seconds)

    @property
    def limit(self) -> str:
        """What limits the run, in a line."""
        waits, works = self.waited_s / self.seconds, f"{self.threads} threads at {self.occupancy:.0%}"
        if waits < 1 - _NEARLY_ALL:
            return f"bound by who takes the batches: it waits {waits:.0%} of the time, {works}"
        slowest = max(WORK, key=lambda stage: self.stages[stage])
        return f"{slowest}-bound: {works}, {self.stages[slowest] / (self.threads * self.seconds):.0%} of it {slowest}"
