"""The order of samples: arithmetic on one integer, the global position.

`plan.samples(start, stop)` is a pure function of (entries, order settings, seed, segment): no I/O, no
clock, no generator state. Counting (`source_counts.py`) says which source a position belongs to and which of its
draws that is; the permutation (`permutation.py`) says which sample that draw is. Exact resume, any number
of ranks and threads, dry runs and proofs of order all follow from it.

A global batch is the positions [position, position + batch), whatever the number of ranks. Ranks take equal
slices of consecutive indices of it, not every R-th one: with striding, the period of the counting aliases
with R, and a rank's share of a source was wrong by up to 92 points.
"""

import bisect
import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from hjepa_shards.base.keyed_random import derive_key
from hjepa_shards.base.notebook_html import share_bar, table
from hjepa_shards.base.shown_text import listed
from hjepa_shards.errors import InputError
from hjepa_shards.mixture.permutation import Entry, EntryOrder, OrderSettings, Wanted
from hjepa_shards.mixture.source_counts import Segment
from hjepa_shards.mixture.weight_schedule import STAIR, Staircase

Written = tuple[int | tuple[tuple[str, str], ...], ...]
"""Weights as the configuration has them, one an entry: whole numbers in lowest terms, or knots of a staircase."""


_AT_ONCE = 1024
"""Positions that are planned together where batches are smaller."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Planned:
    """Samples to deliver, in order: int64[n] each."""

    position: NDArray[np.int64]
    source: NDArray[np.int64]
    """Index into the plan's entries."""
    draw: NDArray[np.int64]
    """The number of the draw from its entry, from 0, in this generation."""
    pass_: NDArray[np.int64]
    sample: NDArray[np.int64]
    """Index of the sample in its entry, in manifest order."""
    lane: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.position)

    def __getitem__(self, indices: NDArray[np.int64] | NDArray[np.bool_] | slice) -> "Planned":
        return Planned(
            position=self.position[indices],
            source=self.source[indices],
            draw=self.draw[indices],
            pass_=self.pass_[indices],
            sample=self.sample[indices],
            lane=self.lane[indices],
        )

    def __repr__(self) -> str:
        reach = f" from position {self.position[0]:,} to {self.position[-1]:,}" if len(self) else ""
        return f"<Planned {len(self):,} samples{reach}>"


@final
class Plan:
    """The order of samples from `segment.start` on."""

    def __init__(
        self,
        entries: Sequence[Entry],
        seed: int,
        order: OrderSettings,
        segment: Segment,
        epoch_samples: int,
        staircase: Staircase | None = None,
        written: Written | None = None,
    ) -> None:
        """segment: the first; a staircase cuts the others. written: None where it is the first that was written."""
        names = [entry.name for entry in entries]
        assert names == sorted(set(names))
        assert len(names) == len(segment.weights)
        self.entries = tuple(entries)
        self.seed = seed
        self.order = order
        self.segment = segment
        self.epoch_samples = epoch_samples
        self.staircase = staircase
        self.written: Written = written or (staircase.written() if staircase else segment.weights)
        self._orders = [EntryOrder(entry, seed, order) for entry in entries]
        self._segments = [segment]
        self._held: Planned | None = None
        self._cut_to = _next_stair(segment.start)
        """Stairs below this position are in `_segments`."""

    def __repr__(self) -> str:
        weighed = zip(self.entries, self.segment.weights, strict=True)
        return f"<{self._title()}: weights {listed([f'{entry.name} {weight}' for entry, weight in weighed])}>"

    def _repr_html_(self) -> str:
        total = sum(self.segment.weights)
        rows = [
            (entry.name, f"{entry.num_samples:,}", f"{weight:,}", f"{weight / total:.2%}", share_bar(weight / total))
            for entry, weight in zip(self.entries, self.segment.weights, strict=True)
        ]
        return table(self._title(), ("entry", "samples", "weight", "share", ""), rows)

    def _title(self) -> str:
        changing = ", weights follow epochs" if self.staircase else ""
        return f"Plan from position {self.segment.start:,}, seed {self.seed}{changing}"

    def samples(self, start: int, stop: int) -> Planned:
        """The positions [start, stop), in order."""
        if start < self.segment.start or stop < start:
            raise ValueError(f"positions [{start}, {stop}) requested from a plan that starts at {self.segment.start}")
        source, draw, pass_, sample, lane = np.empty((5, stop - start), np.int64)
        for segment, begin, end in self._stretches(start, stop):
            for index, (first, offsets) in enumerate(segment.route(begin, end)):
                last, indices = first + len(offsets), offsets + (begin - start)
                drawn = self._orders[index].draws(first, last)
                source[indices] = index
                draw[indices] = np.arange(first, last)
                pass_[indices] = drawn.pass_
                sample[indices] = drawn.sample
                lane[indices] = drawn.lane
        position = np.arange(start, stop)
        return Planned(position=position, source=source, draw=draw, pass_=pass_, sample=sample, lane=lane)

    def segment_at(self, position: int) -> Segment:
        """The segment that `position` is in. InputError before the first: other weights ruled there."""
        if position < self.segment.start:
            raise InputError(
                f"position {position}: is before {self.segment.start}, where weights were set; take its state before "
                "setting them"
            )
        if self.staircase:
            while self._cut_to <= min(position, self.staircase.end):
                weights = self.staircase.weights(self._cut_to)
                if weights != self._segments[-1].weights:
                    self._segments.append(self._segments[-1].cut(self._cut_to, weights))
                self._cut_to += STAIR
        return self._segments[bisect.bisect_right(self._segments, position, key=lambda segment: segment.start) - 1]

    def counts(self, position: int) -> list[int]:
        """Draws of every entry before `position`."""
        return self.segment_at(position).counts([position])[0].tolist()

    def wanted_shards(self, entry: int, draw: int, lanes: Collection[int]) -> tuple[list[Wanted], int]:
        """As `EntryOrder.wanted`."""
        return self._orders[entry].wanted(draw, lanes)

    def _stretches(self, start: int, stop: int) -> Iterator[tuple[Segment, int, int]]:
        """The positions [start, stop) cut where the weights may change: (segment, first position, end)."""
        while start < stop:
            end = min(stop, _next_stair(start)) if self.staircase else stop
            yield self.segment_at(start), start, end
            start = end

    def global_batch(self, position: int, batch: int) -> Planned:
        """The positions [position, position + batch), by lane, as ranks cut them. The same for any world."""
        planned = self._soon(position, position + batch)
        return planned if self.order.lanes == 1 else planned[lane_order(planned.lane, self.order.lanes)]

    def _soon(self, start: int, stop: int) -> Planned:
        """As `samples`, of which many are planned at once: small batches would each pay for the same few calls."""
        held = self._held
        if held is None or start < held.position[0] or stop > held.position[-1] + 1:
            batches = max(1, _AT_ONCE // (stop - start))
            self._held = held = self.samples(start, start + batches * (stop - start))
        first = start - int(held.position[0])
        return held[first : first + stop - start]

    def rank_batch(self, position: int, batch: int, rank: int, world: int) -> Planned:
        """What rank `rank` of `world` takes of the global batch at `position`: consecutive indices of it."""
        size = slice_size(batch, world)
        first = size * slice_of(rank, world, self.order.lanes, position, self.seed)
        return self.global_batch(position, batch)[first : first + size]

    def replacement(self, source: int, draw: int, attempt: int) -> int:
        """The sample of `source` to try in place of a damaged one. attempt: 1..16."""
        return self._orders[source].replacement(draw, attempt)

    def reweighed(self, position: int, weights: Sequence[int]) -> "Plan":
        """The plan from `position` on under other weights, integers in the order of `entries`."""
        if self.staircase:
            raise InputError("weights that follow epochs cannot be set as well; take the epochs out of data.sources")
        segment = self.segment_at(position).cut(position, weights)
        return Plan(self.entries, self.seed, self.order, segment, self.epoch_samples, written=self.written)

    def epoch(self, position: int) -> int:
        return position // self.epoch_samples

    def num_steps(self, num_epochs: int, batch: int) -> int:
        """Global batches that hold `num_epochs` epochs. The last may run into the next; none is short.

        InputError where the last position is beyond what int64 arithmetic can count.
        """
        steps = -(-num_epochs * self.epoch_samples // batch)
        if steps * batch > MOST_POSITIONS:
            raise InputError(
                f"{num_epochs:,} epochs of {self.epoch_samples:,} samples in batches of {batch:,}: a run of at most "
                f"{MOST_POSITIONS:,} samples expected; train fewer epochs, or make them shorter"
            )
        return steps


def _next_stair(position: int) -> int:
    return (position // STAIR + 1) * STAIR


def lane_order(lane: NDArray[np.int64], lanes: int) -> NDArray[np.int64]:
    """int64[batch]: a batch's indices by lane, each lane up to its equal quota; the few above fill the gaps.

    lane: int64[batch], the home lane of each index.
    """
    batch = len(lane)
    quota = np.diff(np.arange(lanes + 1) * batch // lanes)
    by_lane = np.argsort(lane, kind="stable")
    size = np.bincount(lane, minlength=lanes)
    index_in_lane = np.arange(batch) - np.repeat(np.cumsum(size) - size, size)
    stays = index_in_lane < np.repeat(quota, size)
    goes_to = lane.copy()
    goes_to[np.sort(by_lane[~stays])] = np.repeat(np.arange(lanes), quota - np.minimum(size, quota))
    return np.argsort(goes_to, kind="stable")


def slice_of(rank: int, world: int, lanes: int, position: int, seed: int) -> int:
    """Which of the `world` equal slices of the batch at `position` a rank takes.

    Ranks that share a lane rotate among themselves by a key, so no rank always has the batch's first samples.
    """
    sharing = world // lanes if world % lanes == 0 else 1
    lane, turn = divmod(rank, sharing)
    return lane * sharing + (turn + derive_key(seed, "deal", position)) % sharing


def slice_size(batch: int, world: int) -> int:
    """Samples of a global batch for each of `world` ranks. InputError where they are not equal."""
    if batch % world:
        raise InputError(
            f"global batch {batch}: a multiple of the {world} ranks expected; "
            f"the nearest is {nearest_batch(batch, world)}"
        )
    return batch // world


def nearest_batch(batch: int, world: int) -> int:
    """The global batch nearest to `batch` that `world` ranks can share equally; the larger of two."""
    return max(world, (batch + world // 2) // world * world)


PROOF_MODULUS = 2**128
MOST_POSITIONS = 2**56
"""Of a run: products of counts stay within int64."""


def order_proof(positions: NDArray[np.int64], names: Sequence[str], samples: NDArray[np.int64]) -> int:
    """What these deliveries add to the proof of order: a sum mod 2^128, so any grouping gives the same total.

    names: the entry of each position; samples: the sample that was delivered there, in its entry.
    """
    delivered = zip(positions.tolist(), samples.tolist(), names, strict=True)
    return sum(_delivery(position, sample, name) for position, sample, name in delivered) % PROOF_MODULUS


def add_proofs(*proofs: int) -> int:
    """The proof of all deliveries together."""
    return sum(proofs) % PROOF_MODULUS


def _delivery(position: int, sample: int, name: str) -> int:
    body = b"%d/%d/%s" % (position, sample, name.encode())
    return int.from_bytes(hashlib.blake2b(body, digest_size=16).digest(), "little")
