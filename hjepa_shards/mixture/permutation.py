"""Which sample a draw of one entry is: draw n is index n mod N of pass n div N, and each pass is a new
permutation.

The permutation has two levels, so that a reader needs few files at a time. An entry is cut into `lanes`
runs of consecutive samples of nearly equal length. The pieces of a lane (shards, or parts of shards where a
lane's border cuts one) are permuted and grouped into windows of about `window` pieces; the samples of a
window are permuted among themselves. One window a lane is open at any time. Place x belongs to lane (x + h)
mod lanes, so neighbouring draws go round the lanes.

Nothing is remembered between draws: a window's permutation is a function of its key. The few windows that
are open are kept, so consecutive draws cost a slice each. Starting anywhere costs one cumulative sum over
the shards, one permutation of a lane's pieces and one of a window.
"""

import functools
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Literal, final

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from hjepa_shards.base.keyed_random import derive_key, permutation
from hjepa_shards.config import Strict
from hjepa_shards.errors import InputError

MAX_FULL_SHUFFLE = 2**24
"""Samples a lane that `shuffle: full` permutes at once (128 MB)."""
_LOOK_AHEAD = 4096
"""Samples in which all shards of a window have almost surely been used."""
MAX_ATTEMPTS = 16
"""Replacements tried for one draw."""


class OrderSettings(Strict):
    """How far the order of samples may reach. A change starts a new generation of every entry."""

    lanes: int = Field(default=1, ge=1, le=2**16)
    """Runs of samples that are read side by side; above 1 for clusters, where ranks read their own lanes."""
    window: int = Field(default=16, ge=1, le=2**31)
    """Shards whose samples are mixed with each other."""
    shuffle: Literal["window", "full"] = "window"
    """`full` mixes all samples of a lane."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Entry:
    """One source and split in a mixture, as the plan sees it."""

    name: str
    """Unique in the mixture; every key is made with it."""
    shard_samples: NDArray[np.int64]
    """int64[shards]: samples in each shard."""
    order_digest: str
    content_digest: str
    generation: int = 0
    """Counts the times that this entry's order began again within a run."""
    num_samples: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_samples", int(np.sum(self.shard_samples)))

    def __repr__(self) -> str:
        return f"<Entry {self.name}: {self.num_samples:,} samples, generation {self.generation}>"


@dataclass(frozen=True, kw_only=True, slots=True)
class Draws:
    """Consecutive draws of one entry: int64[draws] each."""

    pass_: NDArray[np.int64]
    sample: NDArray[np.int64]
    lane: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A shard that is read soon."""

    shard: int
    due: int
    """The draw by which it should be on its way."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Pieces:
    """A lane's pieces in the order of one pass."""

    start: NDArray[np.int64]
    """int64[pieces]: first sample of each."""
    size: NDArray[np.int64]
    """int64[pieces]."""
    first_piece: NDArray[np.int64]
    """int64[windows + 1]: where each window begins among the pieces."""
    first_index: NDArray[np.int64]
    """int64[windows + 1]: where each window begins among the lane's samples."""

    def of_window(self, window: int) -> NDArray[np.int64]:
        """First samples of its pieces."""
        return self.start[slice(*self.first_piece[window : window + 2])]


@final
class EntryOrder:
    """All passes over one entry."""

    def __init__(self, entry: Entry, seed: int, settings: OrderSettings) -> None:
        self.entry = entry
        self._seed = seed
        self._settings = settings
        self._num_samples = entry.num_samples
        if self._num_samples == 0:
            raise InputError(f"{entry.name}: at least one sample expected, none found; take it out of the mixture")
        self._check_full_shuffle()
        lanes = settings.lanes
        self._home = derive_key(seed, "lane", entry.name) % lanes
        lane_sizes = (self._num_samples - (np.arange(lanes) - self._home) % lanes + lanes - 1) // lanes
        self._lane_starts = np.concatenate([[0], np.cumsum(lane_sizes)])
        self._shard_starts = np.concatenate([[0], np.cumsum(entry.shard_samples, dtype=np.int64)])
        # One of each is open a lane; the spare ones are for the pass before and for replacements.
        self._pieces = functools.lru_cache(maxsize=lanes + 2)(self._permute_pieces)
        self._window = functools.lru_cache(maxsize=lanes + 2)(self._permute_window)

    def draws(self, start: int, stop: int) -> Draws:
        """The draws [start, stop)."""
        numbers = np.arange(start, stop)
        pass_ = numbers // self._num_samples
        indices = numbers - pass_ * self._num_samples
        samples = np.empty(stop - start, np.int64)
        for first in range(start - start % self._num_samples, stop, self._num_samples):
            low, high = max(start, first), min(stop, first + self._num_samples)
            self._fill(samples[low - start : high - start], first // self._num_samples, low - first)
        return Draws(pass_=pass_, sample=samples, lane=(indices + self._home) % self._settings.lanes)

    def replacement(self, draw: int, attempt: int) -> int:
        """The sample to try when the one of `draw` is damaged: a keyed index in the same window.

        attempt: 1..16; the first good sample is the one that is delivered.
        """
        assert 1 <= attempt <= MAX_ATTEMPTS
        pass_, index = divmod(draw, self._num_samples)
        lane = (index + self._home) % self._settings.lanes
        ends = self._pieces(pass_, lane).first_index
        window = int(np.searchsorted(ends, index // self._settings.lanes, side="right")) - 1
        samples = self._window(pass_, lane, window)
        key = derive_key(self._seed, "replace", self.entry.name, self.entry.generation, draw, attempt)
        return int(samples[key % len(samples)])

    def wanted(self, draw: int, lanes: Collection[int]) -> tuple[list[Wanted], int]:
        """(shards that draws from `draw` on read in the open windows of `lanes` and the next, the draw they hold to)

        Those of the open windows are due at once, in order of first use; those of the next over the open one, in the
        order of their pieces: a window that is not open costs no permutation.
        """
        found, holds_to = [], (draw // self._num_samples + 1) * self._num_samples
        pass_, index = divmod(draw, self._num_samples)
        for lane in lanes:
            first = (lane - self._home) % self._settings.lanes
            in_lane = max(0, -((first - index) // self._settings.lanes))
            ends = self._pieces(pass_, lane).first_index
            if ends[-1] == 0:
                continue  # more lanes than samples
            window = min(int(np.searchsorted(ends, in_lane, side="right")) - 1, len(ends) - 2)
            begin, end = (
                pass_ * self._num_samples + first + int(index) * self._settings.lanes
                for index in ends[window : window + 2]
            )
            left = self._window(pass_, lane, window)[in_lane - int(ends[window]) :]
            open_now = self._shards_of(left[:_LOOK_AHEAD])
            if len(left) > _LOOK_AHEAD:
                open_now += self._shards_of(self._pieces(pass_, lane).of_window(window))
            found += [Wanted(shard, draw) for shard in dict.fromkeys(open_now)]
            following = (pass_, window + 1) if window + 2 < len(ends) else (pass_ + 1, 0)
            later = self._shards_of(self._pieces(following[0], lane).of_window(following[1]))
            found += [Wanted(shard, begin + (end - begin) * i // len(later)) for i, shard in enumerate(later)]
            holds_to = min(holds_to, end) if end > draw else holds_to
        return found, holds_to

    def _shards_of(self, samples: NDArray[np.int64]) -> list[int]:
        """In order of first use."""
        return list(dict.fromkeys((np.searchsorted(self._shard_starts, samples, side="right") - 1).tolist()))

    def _fill(self, samples: NDArray[np.int64], pass_: int, index: int) -> None:
        """Write the samples of consecutive indices of one pass, from `index` on."""
        lanes = self._settings.lanes
        for skipped in range(min(lanes, len(samples))):
            lane = (index + skipped + self._home) % lanes
            mine = samples[skipped::lanes]
            self._fill_lane(mine, pass_, lane, (index + skipped) // lanes)

    def _fill_lane(self, samples: NDArray[np.int64], pass_: int, lane: int, index: int) -> None:
        """Write the samples of consecutive indices of one lane, from `index` on."""
        ends = self._pieces(pass_, lane).first_index
        window = int(np.searchsorted(ends, index, side="right")) - 1
        written = 0
        while written < len(samples):
            skipped = index + written - int(ends[window])
            run = self._window(pass_, lane, window)[skipped : skipped + len(samples) - written]
            samples[written : written + len(run)] = run
            written += len(run)
            window += 1

    def _permute_pieces(self, pass_: int, lane: int) -> _Pieces:
        start, stop = self._lane_starts[lane : lane + 2]
        first, last = np.searchsorted(self._shard_starts, [start, stop], side="right")
        cuts = np.unique(np.concatenate([[start], self._shard_starts[first:last], [stop]]))
        num_pieces = len(cuts) - 1
        order = permutation(self._key("shards", pass_, lane), num_pieces)
        size = np.diff(cuts)[order]
        num_windows = 1
        if self._settings.shuffle == "window":
            num_windows = max(1, round(num_pieces / self._settings.window))
        # As np.array_split: the first `longer` windows have one piece more.
        shorter, longer = divmod(num_pieces, num_windows)
        windows = np.arange(num_windows + 1)
        first_piece = windows * shorter + np.minimum(windows, longer)
        first_index = np.concatenate([[0], np.cumsum(size)])[first_piece]
        return _Pieces(start=cuts[order], size=size, first_piece=first_piece, first_index=first_index)

    def _permute_window(self, pass_: int, lane: int, window: int) -> NDArray[np.int64]:
        """int64[samples of the window]."""
        pieces = self._pieces(pass_, lane)
        mine = slice(*pieces.first_piece[window : window + 2])
        start, size = pieces.start[mine], pieces.size[mine]
        ends = np.cumsum(size)
        samples = np.repeat(start - (ends - size), size) + np.arange(ends[-1])
        return samples[permutation(self._key("window", pass_, lane, window), len(samples))]

    def _key(self, purpose: str, *parts: int) -> int:
        return derive_key(self._seed, purpose, self.entry.name, self.entry.generation, *parts)

    def _check_full_shuffle(self) -> None:
        lane_samples = -(-self._num_samples // self._settings.lanes)
        if self._settings.shuffle == "full" and lane_samples > MAX_FULL_SHUFFLE:
            lanes = -(-self._num_samples // MAX_FULL_SHUFFLE)
            raise InputError(
                f"{self.entry.name}: `shuffle: full` takes at most {MAX_FULL_SHUFFLE} samples a lane, "
                f"{lane_samples} found; use `shuffle: window`, or `lanes: {lanes}` or more"
            )
