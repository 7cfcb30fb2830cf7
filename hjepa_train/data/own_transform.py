"""A user's own transform on the images of a batch, exact wherever a run is interrupted.

Libraries of transforms draw from generators of the whole process, whose state depends on all that was drawn before. So
the three of them (PyTorch's on the CPU, Python's `random`, NumPy's) are seeded for each image by a key of its position,
and put back after the batch: torchvision and timm draw the same for a position in any batch, on any rank, in any worker
and after any resume, and the training process's own draws are not touched. A transform with a generator of its own
seeds it by `torch.initial_seed()`, the key of the image at hand.

One image after another, in the process that iterates: threads would share the generators. Seeding takes 20 us an image.
"""

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import default_collate

from hjepa_shards.base.keyed_random import derive_key
from hjepa_shards.errors import InputError

Transform = Callable[[Image.Image], Any]
"""An RGB image, as torchvision's datasets hand it to theirs -> what a DataLoader can collate."""


def transformed(images: NDArray[np.uint8], positions: NDArray[np.int64], transform: Transform, *, seed: int) -> Any:
    """What `transform` makes of a batch: tensors [n, ...] or [n, views, ...], in whatever it puts them into.

    images: [n, R, R, 3] or [n, views, R, R, 3].  positions: [n], what random numbers are keyed by, with the seed and
    the view. InputError for results that are no batch.
    """
    with _put_back_after():
        rows = [
            [
                _one(pixels, transform, derive_key(seed, "transform", position, view))
                for view, pixels in enumerate(views)
            ]
            for views, position in zip(images if images.ndim == 5 else images[:, None], positions.tolist(), strict=True)
        ]
    try:
        return default_collate([default_collate(row) for row in rows] if images.ndim == 5 else [row[0] for row in rows])
    except (TypeError, RuntimeError) as error:
        raise InputError(
            f"transform: tensors of one shape expected, or arrays or numbers, or dicts or lists of these; {error}; "
            "end it with one size and torchvision's v2.ToImage(), say"
        ) from error


def _one(pixels: NDArray[np.uint8], transform: Transform, key: int) -> Any:
    torch.default_generator.manual_seed(key % 2**64)
    random.seed(key)
    np.random.seed(key % 2**32)
    return transform(Image.fromarray(pixels))


@contextmanager
def _put_back_after() -> Iterator[None]:
    """The generators of this process are afterwards what they were before."""
    of_python, of_numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(of_python)
            np.random.set_state(of_numpy)
