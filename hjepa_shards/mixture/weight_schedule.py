"""Weights that follow epochs, as stairs: constant over 65,536 positions, between them cut as any change of weights.

    sources:
      - {name: cifar10, weight: .9}
      - {name: stl10, weight: {0: .1, 100: .9}}   # .1 at the start, .9 from epoch 100 on, linear in between

A weight is a function of the position alone, in exact fractions, so any number of ranks, batch sizes and interruptions
see the same stairs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import final

from hjepa_shards.errors import InputError
from hjepa_shards.mixture.source_counts import exact_fraction, lowest_terms

STAIR = 65_536
"""Positions with one set of weights."""
_MOST_STAIRS = 1 << 18
"""Counting draws goes stair by stair: 17 thousand million positions."""
_RESOLUTION = 10**6
"""Shares between two given epochs are rounded to this many parts."""


@final
@dataclass(frozen=True, slots=True)
class Staircase:
    """The weights of all entries."""

    knots: tuple[tuple[tuple[Fraction, Fraction], ...], ...]
    """Of each entry: (epoch, weight), by epoch; constant before the first and after the last."""
    epoch_samples: int

    @property
    def end(self) -> int:
        """From this position on nothing changes."""
        last = max(knots[-1][0] for knots in self.knots)
        return (int(last * self.epoch_samples) // STAIR + 1) * STAIR

    def weights(self, position: int) -> tuple[int, ...]:
        """Whole weights of the stair that holds `position`; what is above zero stays above zero."""
        epoch = Fraction(position // STAIR * STAIR, self.epoch_samples)
        values = [_weight(knots, epoch) for knots in self.knots]
        unit = sum(values) / _RESOLUTION
        return lowest_terms([max(1, round(value / unit)) if value else 0 for value in values])

    def written(self) -> tuple[tuple[tuple[str, str], ...], ...]:
        """The knots as a state keeps them."""
        return tuple(tuple((str(epoch), str(weight)) for epoch, weight in knots) for knots in self.knots)


def make_staircase(weights: Sequence[float | Mapping[float, float]], epoch_samples: int) -> Staircase | None:
    """The staircase of weights as they are written; None where none of them follows epochs.

    InputError where all are zero at some time, or the last change is more stairs away than can be counted.
    """
    if not any(isinstance(weight, Mapping) for weight in weights):
        return None
    written = [weight if isinstance(weight, Mapping) else {0: weight} for weight in weights]
    staircase = Staircase(
        tuple(
            tuple(sorted((exact_fraction(epoch), exact_fraction(value)) for epoch, value in knots.items()))
            for knots in written
        ),
        epoch_samples,
    )
    if staircase.end > _MOST_STAIRS * STAIR:
        raise InputError(
            f"weights: the last change within {_MOST_STAIRS * STAIR:,} positions expected, found at position "
            f"{staircase.end:,}; change them sooner, or make data.epoch_samples smaller"
        )
    for epoch in sorted({epoch for knots in staircase.knots for epoch, _ in knots}):
        if not any(_weight(knots, epoch) for knots in staircase.knots):
            raise InputError(f"weights: at least one above 0 expected at any time, none is at epoch {float(epoch):g}")
    return staircase


def _weight(knots: Sequence[tuple[Fraction, Fraction]], epoch: Fraction) -> Fraction:
    if epoch <= knots[0][0]:
        return knots[0][1]
    for (left, before), (right, after) in pairwise(knots):
        if epoch <= right:
            return before + (after - before) * (epoch - left) / (right - left)
    return knots[-1][1]
