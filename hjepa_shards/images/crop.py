"""Which part of an image is shown: the numbers are drawn before any byte is decoded.

Width and height are in the sidecar, so the crops of a whole batch come from one vectorised draw. The stream is
counter-based with the *position* as counter: the same crop for the same position, for any thread, rank or batch size,
and for any view of the image an independent one.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from hjepa_shards.base.keyed_random import derive_key, philox_words
from hjepa_shards.config import Strict

_ATTEMPTS = 10
_WORDS = 12
"""Raw words a position: ten pairs of 32-bit numbers for the attempts, two words for the location."""
_BLOCK = 256
"""Positions that are drawn for together."""


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
    hue: float = Field(default=0, ge=0, le=0.5)
    """Largest change of the hue, in turns of the colour circle (on the device); SimCLR: 0.2, DINO: 0.1."""
    jitter_share: float = Field(default=1, ge=0, le=1)
    """Share of the crops whose colours and hue are changed (on the device); SimCLR: 0.8."""
    grayscale: float = Field(default=0, ge=0, le=1)
    """Share of the crops that lose their colour (on the device); SimCLR: 0.2."""
    blur: float = Field(default=0, ge=0, le=1)
    """Share of the crops that are blurred, by a Gaussian of 0.1 to 2 pixels (on the device); SimCLR: 0.5."""
    solarize: float = Field(default=0, ge=0, le=1)
    """Share of the crops whose bright half of the scale is inverted (on the device)."""
    three_augment: bool = False
    """Each crop is made gray, or solarized, or blurred (on the device): DeiT III's, in place of RandAugment."""
    erase: float = Field(default=0, ge=0, le=1)
    """Share of the crops that lose a rectangle of 2 to 33% of their area to noise (on the device); DeiT: 0.25."""

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
    share, ratio, corner = _draws(seed, positions, view, config.crop_scale, config.crop_ratio)
    area = (widths * heights)[:, None] * share
    high, wide = np.rint(np.sqrt(area / ratio)), np.rint(np.sqrt(area * ratio))
    fits = (high > 0) & (high <= heights[:, None]) & (wide > 0) & (wide <= widths[:, None])
    first = np.arange(len(positions)), fits.argmax(1)
    crop = np.stack([high[first], wide[first]], 1).astype(np.int64)
    room = np.stack([heights, widths], 1) - crop + 1
    crops = np.concatenate([(corner * room) >> 31, crop], 1)
    none = ~fits[first]
    if none.any():
        crops[none] = central_crops(widths[none], heights[none], config.crop_ratio)
    return crops


Draws = tuple[NDArray[np.floating], NDArray[np.floating], NDArray[np.int64]]
"""Shares of the area and ratios [n, 10], locations [n, 2] of 31 bits: their products stay within int64."""


def _draws(seed: int, positions: NDArray[np.int64], view: int, *ranges: tuple[float, float]) -> Draws:
    first, last = int(positions.min()) // _BLOCK, int(positions.max()) // _BLOCK
    blocks = [_block(seed, view, block, *ranges) for block in range(first, last + 1)]
    chosen = positions - first * _BLOCK
    share, ratio, corner = blocks[0] if first == last else map(np.concatenate, zip(*blocks, strict=True))
    return share[chosen], ratio[chosen], corner[chosen]


@lru_cache(maxsize=64)
def _block(seed: int, view: int, block: int, scale: tuple[float, float], ratios: tuple[float, float]) -> Draws:
    """What is drawn for the positions [block * _BLOCK, (block + 1) * _BLOCK): many at once, by all threads together."""
    counter = block * _BLOCK * _WORDS // 4
    words = philox_words(_key(seed), _BLOCK * _WORDS, counter, stream=view).reshape(_BLOCK, _WORDS)
    halves = words[:, :_ATTEMPTS].copy().view(np.uint32).reshape(_BLOCK, _ATTEMPTS, 2) * 2.0**-32
    low, high = scale
    share = low + (high - low) * halves[..., 0]
    low, high = np.log(ratios)
    ratio = np.exp(low + (high - low) * halves[..., 1])
    return share, ratio, (words[:, _ATTEMPTS:] >> np.uint64(33)).astype(np.int64)


@lru_cache
def _key(seed: int) -> int:
    return derive_key(seed, "crop")


def central_crops(
    widths: NDArray[np.int64],
    heights: NDArray[np.int64],
    ratios: tuple[float, float] = (1.0, 1.0),
    share: float = 1.0,
) -> NDArray[np.int64]:
    """The largest central crop whose width / height is within `ratios`, its sides times `share`: [n, 4] as above."""
    w = np.minimum(widths, np.rint(heights * ratios[1]).astype(np.int64))
    h = np.minimum(heights, np.rint(widths / ratios[0]).astype(np.int64))
    w, h = (np.maximum(1, np.rint(side * share).astype(np.int64)) for side in (w, h))
    return np.stack([(heights - h) // 2, (widths - w) // 2, h, w], 1)
