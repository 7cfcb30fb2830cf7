"""PNGs: their bytes tested, decoded and cropped many at once, in C and without Python's lock.

Image by image the lock is handed over more often than anything is done: two threads were slower than one. What this
does not take, and whatever is wrong with an image, goes the usual way (sample_reader.py, decode.py), to the same
pixels.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hjepa_shards.images.decode import PLAIN
from hjepa_shards.images.image_formats import Codec
from hjepa_shards.loader.stage_times import lap
from hjepa_shards.shards.sidecar import Row

try:
    from hjepa_shards.images._png import decode_pngs, has_libdeflate
    from hjepa_shards.images._resize import bilinear_many
except ImportError:  # not compiled where this was installed, or a processor that it is not written for
    decode_pngs = bilinear_many = None
    has_libdeflate = False

_LARGEST = 512 * 512
"""Pixels. A task's images are decoded together: larger ones would take memory, one after the other they do not."""


class Job(NamedTuple):
    """An image to be shown."""

    data: bytes
    """As it is stored."""
    row: Row
    crops: Sequence[Sequence[int]]
    """Top, left, height, width of each view."""
    slot: int
    """Of the first view; the others follow."""


def show_pngs(jobs: Sequence[Job | None], slots: NDArray[np.uint8]) -> list[bool]:
    """Put the crops of images into `slots` [n, R, R, 3]. Which images it was for. Tests of bytes count as decode."""
    shown = [False] * len(jobs)
    if decode_pngs is None or bilinear_many is None:
        return shown
    side = slots.shape[1]
    chosen = [(i, job, job.row) for i, job in enumerate(jobs) if job and _takes(job, side)]
    decoded = decode_pngs([(job.data, row.image_crc32, row.height, row.width) for _, job, row in chosen])
    lap("decode")
    crops = []
    for (i, job, row), pixels in zip(chosen, decoded, strict=True):
        if pixels is not None:
            shown[i] = True
            for slot, crop in enumerate(job.crops, job.slot):
                crops.append((pixels, row.height, row.width, *crop, slot))
    bilinear_many(crops, slots)
    lap("resize")
    return shown


def _takes(job: Job, side: int) -> bool:
    row = job.row
    if row.codec != Codec.PNG or row.colour not in PLAIN or row.orientation != 1 or row.height * row.width > _LARGEST:
        return False
    for _, _, height, width in job.crops:  # noqa: SIM110 -- a generator takes as long as all else here
        if height > 2 * side or width > 2 * side or width < 3:  # as in `crop_into`
            return False
    return True
