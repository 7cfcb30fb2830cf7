"""Which part of an image is shown: the numbers are drawn before any byte is decoded.

Width and height are in the sidecar, so the crops of a whole batch come from one vectorised draw. The stream is
counter-based with the *position* as counter: the same crop for the same position, for any thread, rank or batch size,
and for any view of the image an independent one.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from hjepa_shards.config import Strict
from hjepa_shards.rng import derive_key, philox_words

_ATTEMPTS = 10
_WORDS = 12
"""Raw words a position: ten pairs of 32-bit numbers for the attempts, two words for the place."""
_BLOCKS = _WORDS // 4


class AugmentationConfig(Strict):
    """What is done to an image when training; the names and meanings of torchvision's RandomResizedCrop."""

    crop_scale: tuple[float, float] = (0.8, 1.0)
    """Share of the area that a crop covers."""
    crop_ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Width / height of a crop."""
    views: int = Field(default=1, ge=1, le=16)
    """Crops of each image, which is decoded once."""
    horizontal_flip: bool = True
    """Mirror half of the images (on the device)."""
    color_jitter: float = Field(default=0.1, ge=0, lt=1)
    """Largest relative change of brightness, contrast and saturation (on the device)."""

    @field_validator("crop_scale", "crop_ratio")
    @classmethod
    def _ordered(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1]:
            raise ValueError("two positive numbers expected, the smaller first")
        return value

    @field_validator("crop_scale")
    @classmethod
    def _a_share(cls, value: tuple[float, float]) -> tuple[float, float]:
        if value[1] > 1:
            raise ValueError("shares of the area expected, at most 1")
        return value


def random_crops(
    seed: int,
    positions: NDArray[np.int64],
    widths: NDArray[np.int64],
    heights: NDArray[np.int64],
    config: AugmentationConfig,
    view: int = 0,
) -> NDArray[np.int64]:
    """Crops for n positions: [n, 4] of top, left, height, width in displayed pixels.

    Ten attempts at an area and a ratio, the first that fits is taken, else the largest central crop within the
    ratios: torchvision's rule, with every draw made at once.
    """
    num = len(positions)
    words = _words(seed, positions, view)
    halves = words[:, :_ATTEMPTS].copy().view(np.uint32).reshape(num, _ATTEMPTS, 2) * 2.0**-32
    low, high = config.crop_scale
    area = (widths * heights)[:, None] * (low + (high - low) * halves[..., 0])
    low, high = _logarithms(config.crop_ratio)
    ratio = np.exp(low + (high - low) * halves[..., 1])
    crop_w = np.rint(np.sqrt(area * ratio)).astype(np.int64)
    crop_h = np.rint(np.sqrt(area / ratio)).astype(np.int64)
    fits = (crop_w > 0) & (crop_h > 0) & (crop_w <= widths[:, None]) & (crop_h <= heights[:, None])
    rows, first = np.arange(num), fits.argmax(1)
    place = (words[:, _ATTEMPTS:] >> np.uint64(33)).astype(np.int64)  # 31 bits: the products below stay within int64
    crops = np.empty((num, 4), np.int64)
    crops[:, 2], crops[:, 3] = crop_h[rows, first], crop_w[rows, first]
    crops[:, 0] = (place[:, 0] * (heights - crops[:, 2] + 1)) >> 31
    crops[:, 1] = (place[:, 1] * (widths - crops[:, 3] + 1)) >> 31
    none = ~fits[rows, first]
    if none.any():
        crops[none] = central_crops(widths[none], heights[none], config.crop_ratio)
    return crops


@lru_cache
def _logarithms(ratios: tuple[float, float]) -> tuple[float, float]:
    low, high = np.log(ratios)
    return float(low), float(high)


@lru_cache
def _key(seed: int) -> int:
    return derive_key(seed, "crop")


def _words(seed: int, positions: NDArray[np.int64], view: int) -> NDArray[np.uint64]:
    """Raw words [n, 12]; positions lie close together, so one generator covers them all."""
    first = int(positions.min())
    span = int(positions.max()) - first + 1
    words = philox_words(_key(seed), span * _WORDS, counter=first * _BLOCKS, stream=view)
    return words.reshape(span, _WORDS)[positions - first]


def central_crops(
    widths: NDArray[np.int64],
    heights: NDArray[np.int64],
    ratios: tuple[float, float] = (1.0, 1.0),
    share: float = 1.0,
) -> NDArray[np.int64]:
    """The largest central crop whose width / height lies within `ratios`, its sides times `share`: [n, 4] as above."""
    w = np.minimum(widths, np.rint(heights * ratios[1]).astype(np.int64))
    h = np.minimum(heights, np.rint(widths / ratios[0]).astype(np.int64))
    w, h = (np.maximum(1, np.rint(side * share).astype(np.int64)) for side in (w, h))
    return np.stack([(heights - h) // 2, (widths - w) // 2, h, w], 1)
