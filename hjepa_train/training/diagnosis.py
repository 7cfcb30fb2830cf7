"""Signals of learning: functions of some images of the global batch, whatever it is split over.

K images are looked at, one in each of K equal parts of the batch's positions, in two passes: `survey` adds up over
images, `observe` makes a row for each, and `diagnose` has all rows (objectives/base.py). A rank looks at those of the K
that it has, as many at a time as a micro-batch holds. Ranks with fewer make as many calls: under FSDP, all ranks make
each call together. Evaluation mode; nothing is drawn.

Which image of a part is looked at is keyed. At equal distances, a batch of 2,048 from two sources of equal weight would
show 256 images of one source: the order of sources has a period, and the distance is a multiple of it.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hjepa_shards import Batch as Loaded
from hjepa_shards.base.keyed_random import derive_key
from hjepa_train.base.distributed import all_reduce, gather
from hjepa_train.base.keyed_integers import below, draw_integers
from hjepa_train.objectives.base import Batch, Objective, rows_of
from hjepa_train.parallel.layout import looking_on
from hjepa_train.reports.run_log import to_floats

MOST_IMAGES = 256
_KEY = derive_key(0, "signals")


def diagnosis(objective: Objective, micro_batches: Sequence[Batch], loaded: Loaded) -> dict[str, float]:
    """The objective's signals by name, the same on all ranks, which call it together. None of a batch of one image.

    micro_batches: all of this rank's images of `loaded`, in order.
    """
    wanted = positions_looked_at(loaded.position, loaded.next_position)
    if len(wanted) < 2:
        return {}
    rows = np.flatnonzero(np.isin(loaded.positions, wanted))
    at_once = len(micro_batches[0].positions_B)
    num_calls = max(gather(-(-len(rows) // at_once)))
    chunks = [rows[call * at_once :][:at_once].tolist() for call in range(num_calls)]
    with looking_on(objective):
        sums: dict[str, Tensor] = {}
        kept: list[dict[str, Tensor]] = []
        for batch, num in _batches(micro_batches, chunks):
            added, tokens = objective.survey(batch)
            kept.append(tokens)
            for name, value in added.items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + (value if num else 0)
        sums = {name: all_reduce(value) for name, value in sums.items()}
        seen: dict[str, list[Tensor]] = {}
        for (batch, num), tokens in zip(_batches(micro_batches, chunks), kept, strict=True):
            for name, value in objective.observe(batch, tokens, sums).items():
                seen.setdefault(name, []).append(value[:num])
        if not seen:
            return {}
        parts = gather((loaded.positions[rows], {name: torch.cat(values).cpu() for name, values in seen.items()}))
        order = np.concatenate([positions for positions, _ in parts]).argsort()
        gathered = {name: torch.cat([part[name] for _, part in parts])[order].double() for name in seen}
        return to_floats(objective.diagnose(gathered))


def positions_looked_at(start: int, stop: int) -> NDArray[np.int64]:
    """Of the positions [start, stop) one in each of `MOST_IMAGES` equal parts, ascending; all where there are fewer."""
    num = min(stop - start, MOST_IMAGES)
    borders = start + torch.arange(num + 1) * (stop - start) // num
    first, size = borders[:-1], borders.diff()
    return (first + below(draw_integers(_KEY, first, 1)[:, 0], size)).numpy()


def _batches(micro_batches: Sequence[Batch], chunks: Sequence[Sequence[int]]) -> Iterator[tuple[Batch, int]]:
    """(the images of a chunk, how many they are); where it is empty a call is made with any image, for nothing."""
    for rows in chunks:
        yield rows_of(micro_batches, rows or [0]), len(rows)
