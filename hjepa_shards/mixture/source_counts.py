"""Which source a position belongs to: counting, not dice.

The sources are the leaves of a halving tree. A node of weight V that has received m draws has handed
floor((m·L + V/2) / V) of them to its left half of weight L, the rest to its right half. So the draws of
every source before any position are a closed form in integers: for k sources they stay within ceil(log2
k)/2 of weight × position after every single position, and any position is found without looking at the ones
before it.

Weights may change during a run. A `Segment` starts where they last did and carries what each source is owed
from the time before; the debt shifts the rounding of the tree. Setting the same weights again therefore
changes nothing, and changes never add up. Owed is counted in 1/`grain` of a sample, grain being the largest
multiple of sum(weights) below 2^31: whole units of 1/sum(weights) are lost with every change to weights of
a smaller sum (weights 1/1 after 3/7 forget up to half a sample), which drifted by 39 samples in 2,000
changes.

int64 is enough: m = qV + r gives q·L + floor((r·L + shift) / V), and r·L < 2^62 because weights sum to less
than 2^31.
"""

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from hjepa_shards.errors import InputError

MAX_WEIGHT_SUM = 2**31 - 1


def exact_weights(values: Sequence[int | float]) -> tuple[int, ...]:
    """Decimals as the smallest integers of the same ratios: .6, .3, .1 are 6, 3, 1.

    A float means the decimal that it is written as. Refused: negative, all zero, sum of 2^31 or more.
    """
    if not values:
        raise InputError("weights: at least one expected, none found")
    fractions = [exact_fraction(value) if math.isfinite(value) else None for value in values]
    exact = [fraction for fraction in fractions if fraction is not None and fraction >= 0]
    if len(exact) < len(values):
        raise InputError(f"weights: numbers of at least 0 expected, {list(values)} found")
    if not any(exact):
        raise InputError(f"weights: at least one above 0 expected, {list(values)} found")
    unit = math.lcm(*(fraction.denominator for fraction in exact))
    return lowest_terms([int(fraction * unit) for fraction in exact])


def exact_fraction(value: float) -> Fraction:
    """The decimal that a float is written as."""
    return Fraction(Decimal(str(value)))


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """A stretch of positions with one set of weights. All tuples have one element a source."""

    start: int
    """First position."""
    weights: tuple[int, ...]
    """In lowest terms; they sum to less than 2^31."""
    draws: tuple[int, ...]
    """Samples drawn before `start`."""
    owed: tuple[int, ...]
    """Samples that a source should have had before `start` but did not, in 1/`grain` of a sample."""

    @property
    def grain(self) -> int:
        return _grain(sum(self.weights))

    def counts(self, positions: NDArray[np.int64] | Sequence[int]) -> NDArray[np.int64]:
        """int64[positions, sources]: draws of every source in [0, position), for positions >= start."""
        num_sources = len(self.weights)
        received = {(0, num_sources): np.asarray(positions, np.int64) - self.start}
        for node in _halvings(self.weights, self.owed):
            all_draws = received.pop((node.low, node.high))
            received[node.low, node.middle] = left = node.left(all_draws)
            received[node.middle, node.high] = all_draws - left
        drawn = [received[i, i + 1] + self.draws[i] for i in range(num_sources)]
        return np.stack(drawn, axis=-1)

    def route(self, start: int, stop: int) -> list[tuple[int, NDArray[np.int64]]]:
        """Who is drawn at the positions [start, stop): for each source its first draw there, and its indices.

        Places are ascending offsets from `start`; the draws of one source at them are consecutive numbers.
        Costs O(length × log sources).
        """
        num_sources = len(self.weights)
        indices = {(0, num_sources): np.arange(stop - start)}
        first = {(0, num_sources): start - self.start}
        for node in _halvings(self.weights, self.owed):
            here, draw = indices.pop((node.low, node.high)), first.pop((node.low, node.high))
            before = node.left_run(draw, len(here))
            goes_left = before[1:] > before[:-1]
            indices[node.low, node.middle] = here[goes_left]
            indices[node.middle, node.high] = here[~goes_left]
            first[node.low, node.middle] = left = int(before[0])
            first[node.middle, node.high] = draw - left
        return [(first[i, i + 1] + self.draws[i], indices[i, i + 1]) for i in range(num_sources)]

    def cut(self, position: int, weights: Sequence[int]) -> "Segment":
        """The segment from `position` on, with other weights for the same sources."""
        return self.rearranged(position, weights, range(len(self.weights)))

    def rearranged(self, position: int, weights: Sequence[int], origin: Sequence[int | None]) -> "Segment":
        """The segment from `position` on, with other sources: the new source i is the old `origin[i]`.

        An origin of None is a source that comes in here: no draws, nothing owed.
        """
        assert position >= self.start
        assert len(weights) == len(origin)
        new_weights = lowest_terms(weights)
        counts = [int(count) for count in self.counts([position])[0]]
        unit = self.grain // sum(self.weights)
        length = position - self.start
        owed = [
            debt + unit * (weight * length - (count - drawn) * sum(self.weights))
            for debt, weight, count, drawn in zip(self.owed, self.weights, counts, self.draws, strict=True)
        ]
        new_grain = _grain(sum(new_weights))
        return Segment(
            start=position,
            weights=new_weights,
            draws=tuple(0 if old is None else counts[old] for old in origin),
            owed=tuple(0 if old is None else owed[old] * new_grain // self.grain for old in origin),
        )


def first_segment(weights: Sequence[int]) -> Segment:
    """The segment that a run begins with."""
    nothing = (0,) * len(weights)
    return Segment(start=0, weights=lowest_terms(weights), draws=nothing, owed=nothing)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Halving:
    """An inner node of the tree: the sources [low, high), cut at `middle`."""

    low: int
    middle: int
    high: int
    weight: int
    left_weight: int
    shift: int
    """Half of `weight`, for rounding to the nearest, and what the left half is owed by the right."""

    def left(self, draws: NDArray[np.int64]) -> NDArray[np.int64]:
        """int64[...]: of the node's first `draws` draws, the number that went to its left half."""
        if self.left_weight == 0:
            return np.zeros_like(draws)
        if self.left_weight == self.weight:
            return draws
        quotient = draws // self.weight
        rest = draws - quotient * self.weight
        left = quotient * self.left_weight + (rest * self.left_weight + self.shift) // self.weight
        return np.clip(left, 0, draws)

    def left_run(self, start: int, length: int) -> NDArray[np.int64]:
        """int64[length + 1]: `left` of start, start + 1, ..., start + length, with one division each."""
        if self.left_weight in (0, self.weight):
            return self.left(np.arange(start, start + length + 1))
        assert length < 2**30
        quotient, rest = divmod(start, self.weight)
        left = np.arange(rest, rest + length + 1) * self.left_weight
        left += self.shift
        left //= self.weight
        left += quotient * self.left_weight
        return np.clip(left, 0, np.arange(start, start + length + 1))


@functools.lru_cache(maxsize=64)
def _halvings(weights: tuple[int, ...], owed: tuple[int, ...]) -> tuple[_Halving, ...]:
    """The inner nodes, parents first. The debt of a source at weight 0 sleeps."""
    weight_before = list(itertools.accumulate(weights, initial=0))
    awake = (debt if weight else 0 for debt, weight in zip(owed, weights, strict=True))
    owed_before = list(itertools.accumulate(awake, initial=0))
    grain = _grain(weight_before[-1])

    def node(low: int, middle: int, high: int) -> _Halving:
        weight, left_weight = (weight_before[end] - weight_before[low] for end in (high, middle))
        debt, left_debt = (owed_before[end] - owed_before[low] for end in (high, middle))
        return _Halving(
            low=low,
            middle=middle,
            high=high,
            weight=weight,
            left_weight=left_weight,
            shift=weight // 2 + (weight * left_debt - left_weight * debt) // grain,
        )

    return tuple(node(*cut) for cut in _cuts(0, len(weights)))


def _cuts(low: int, high: int) -> Iterator[tuple[int, int, int]]:
    if high - low > 1:
        middle = (low + high) // 2
        yield low, middle, high
        yield from _cuts(low, middle)
        yield from _cuts(middle, high)


def lowest_terms(weights: Sequence[int]) -> tuple[int, ...]:
    """The smallest whole numbers of the same ratios. InputError for what cannot be weights."""
    if min(weights) < 0 or not any(weights):
        raise InputError(f"weights: none below 0 and one above it expected, {list(weights)} found")
    divisor = math.gcd(*weights)
    reduced = tuple(weight // divisor for weight in weights)
    if sum(reduced) > MAX_WEIGHT_SUM:
        raise InputError(
            "weights: as whole numbers in lowest terms they must sum to less than 2^31, about "
            f"10^{len(str(sum(reduced))) - 1} found; write them with fewer digits or closer to each other"
        )
    return reduced


def _grain(weight_sum: int) -> int:
    return weight_sum * (MAX_WEIGHT_SUM // weight_sum)
