"""Tars that are sorted by class: how few classes the samples of one open window have, on average.

The order shuffles the samples of `window` shards with each other (`permutation.py`). Shards that a build writes are
shuffled before; third-party tars may hold one class each, and then a batch shows hardly more classes than the window
has shards.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hjepa_shards.mixture.permutation import OrderSettings

_FEW = 0.5
"""Of the classes that as many samples drawn from all shards would have."""


def sorted_by_class(labels: Sequence[NDArray[np.integer]], window: int | None = None) -> str:
    """One sentence about shards that are sorted by class, with what to do; '' where they are not.

    labels: of each shard's samples, -1 where there is none.  window: shards; None: as a mixture has it.
    """
    window = OrderSettings().window if window is None else window
    found, shuffled, classes = classes_in_window(labels, window)
    if found >= _FEW * shuffled:
        return ""
    return (
        f"sorted by class: a window of {window} shards shows {found:,.0f} of {classes:,} classes on average, shuffled "
        f"ones {shuffled:,.0f}; `hjepa-shards build webdataset` shuffles them, data.order.window or shuffle: full "
        "mixes more shards"
    )


def classes_in_window(labels: Sequence[NDArray[np.integer]], window: int) -> tuple[float, float, int]:
    """Classes in `window` of the shards on average, in as many samples drawn from all of them, and in all of them."""
    shards_of: dict[int, int] = {}
    samples_of: dict[int, int] = {}
    for of_shard in labels:
        numbers, counts = np.unique(of_shard[of_shard >= 0], return_counts=True)
        for label, count in zip(numbers.tolist(), counts.tolist(), strict=True):
            shards_of[label] = shards_of.get(label, 0) + 1
            samples_of[label] = samples_of.get(label, 0) + count
    drawn = np.arange(min(window, len(labels)))
    in_shards, in_samples = np.array(list(shards_of.values()), float), np.array(list(samples_of.values()), float)
    # a class is missed where none of the drawn shards is one of its own: drawn without replacement
    missed = np.prod(np.maximum(0, len(labels) - in_shards[:, None] - drawn) / (len(labels) - drawn), axis=1)
    share = len(drawn) / max(1, len(labels))
    return float(np.sum(1 - missed)), float(np.sum(1 - (1 - share) ** in_samples)), len(shards_of)
