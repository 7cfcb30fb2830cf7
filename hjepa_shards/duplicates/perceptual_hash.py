"""Do two pictures show the same? A 64-bit hash that finds candidates, a thumbnail that confirms them.

The hash is the signs of the 64 lowest frequencies of a 32x32 gray picture (DCT; "pHash" compares with their median
instead). With signs the mirrored picture's hash is known without looking at it: odd horizontal frequencies change sign,
so it is `hash ^ MIRROR`. All of it is integer arithmetic: the same bits on any machine for the same small picture.

A hash alone is not enough: of CIFAR-10's 1.8 billion pairs 5,845 are within 11 bits, and three quarters of these show
different things. So a candidate's 16x16 thumbnails must agree too, in their colours *and* in their details (without the
local mean: any two planes before a blue sky agree in their colours), with up to one thumbnail pixel of shift between
them. The thresholds come from looking at the pairs, sorted by agreement (benchmarks/duplicates.py). Not found: those
that are turned, cropped by more than a tenth, or of other colours, gray ones above all.
"""

import contextlib

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from hjepa_shards.images.decode import decode, jpeg_pixels, refuse_bomb
from hjepa_shards.images.image_formats import Codec, Colour, codec_of

SIDE = 32
"""Of the small picture that everything is computed from, in pixels; width and height are squashed to it."""
THUMBNAIL_SIDE = 16
MIN_SIDE = 16
"""Smaller images hold too little to be distinguished by this: they are compared exactly only."""
MIN_CONTRAST = 3.0
"""Standard deviation of gray levels below which a picture is blank, and compared exactly only."""

_DECODED_SIDE = 64  # JPEGs are decoded at 1/2, 1/4 or 1/8 as long as the shorter side keeps this many pixels
_DETAIL = 0.75  # least correlation of the thumbnails without their local means
_DETAIL_MIRRORED = 0.80  # mirrored duplicates are rarer, pictures that happen to look like one are not
_COLOUR = 0.85  # least correlation of the thumbnails themselves
_LOCAL = 5  # thumbnail pixels that a local mean goes over


def _frequencies() -> list[tuple[int, int]]:
    """The 64 lowest (vertical, horizontal) without the mean, by their sum."""
    return sorted(((u, v) for u in range(11) for v in range(11)), key=lambda f: (sum(f), f))[1:65]


_FREQUENCIES = _frequencies()
_VERTICAL, _HORIZONTAL = np.array(_FREQUENCIES).T
_COSINES = np.rint(1024 * np.cos(np.pi / SIDE * np.outer(np.arange(11), np.arange(SIDE) + 0.5)))
"""[11, 32]: whole numbers, so that sums in float64 are exact in any order."""
MIRROR = sum(1 << bit for bit, (_, horizontal) in enumerate(_FREQUENCIES) if horizontal % 2)
"""The bits that change when a picture is mirrored left to right."""


def small_pixels(data: bytes, width: int, height: int, colour: int, orientation: int) -> NDArray[np.uint8]:
    """RGB pixels, upright: of a large JPEG the ones at a fraction of its size, which costs less. DecodeError.

    width, height, colour, orientation: as in the sidecar.
    """
    factor = reduction(data, width, height, colour, orientation)
    if factor > 1:
        with contextlib.suppress(ValueError):
            refuse_bomb(data, jpeg_pixels(data))
            return simplejpeg.decode_jpeg(
                data, colorspace="RGB", min_height=-(-height // factor), min_width=-(-width // factor)
            )
    return decode(data, colour, orientation)


def reduction(data: bytes, width: int, height: int, colour: int, orientation: int) -> int:
    """By how much `small_pixels` reduces an image: 8, 4, 2 or 1."""
    if codec_of(data) != Codec.JPEG or orientation != 1 or colour not in (Colour.GRAY, Colour.RGB):
        return 1
    return next((factor for factor in (8, 4, 2) if min(width, height) >= factor * _DECODED_SIDE), 1)


def squashed(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[32, 32, 3]: the small picture."""
    return cv2.resize(pixels, (SIDE, SIDE), interpolation=cv2.INTER_AREA).astype(np.uint8, copy=False)


def gray_of(small_NHWC: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Whole numbers from 0 to 255, [N, 32, 32]"""
    return np.rint(small_NHWC @ np.array([299.0, 587.0, 114.0]) / 1000)


def hashes_of(gray_NHW: NDArray[np.float64]) -> NDArray[np.uint64]:
    """uint64 [N]"""
    rows = gray_NHW @ _COSINES.T  # [N, 32, 11]: horizontal frequencies of each row
    both = np.einsum("nhv,uh->nuv", rows, _COSINES, optimize=True)
    bits = np.ascontiguousarray(both[:, _VERTICAL, _HORIZONTAL] > 0)
    return np.packbits(bits, axis=1, bitorder="little").view("<u8")[:, 0]


def thumbnails_of(small_NHWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[N, 16, 16, 3]"""
    wide = small_NHWC.astype(np.uint16)
    total = wide[:, ::2, ::2] + wide[:, ::2, 1::2] + wide[:, 1::2, ::2] + wide[:, 1::2, 1::2]
    return ((total + 2) // 4).astype(np.uint8)


def show_the_same(a_NHWC: NDArray[np.uint8], b_NHWC: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Whether each pair of thumbnails shows the same picture, bool [N]."""
    return _agree(a_NHWC, b_NHWC, _DETAIL)


def show_the_mirrored(a_NHWC: NDArray[np.uint8], b_NHWC: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Whether one of each pair of thumbnails shows the other's picture, left to right, bool [N]."""
    return _agree(a_NHWC, b_NHWC[:, :, ::-1], _DETAIL_MIRRORED)


def _agree(a_NHWC: NDArray[np.uint8], b_NHWC: NDArray[np.uint8], detail: float) -> NDArray[np.bool_]:
    a, b = a_NHWC.astype(np.float32), b_NHWC.astype(np.float32)
    details_a, details_b = _details(a), _details(b)
    found = np.zeros(len(a), dtype=np.bool_)
    side = THUMBNAIL_SIDE - 2
    fixed = (slice(None), slice(1, 1 + side), slice(1, 1 + side))
    for down in range(3):
        for right in range(3):
            moved = (slice(None), slice(down, down + side), slice(right, right + side))
            same_details = _correlation(details_a[moved], details_b[fixed]) >= detail
            found |= same_details & (_correlation(a[moved], b[fixed]) >= _COLOUR)
    return found


def _details(images_NHWC: NDArray[np.float32]) -> NDArray[np.float32]:
    """What is left without the mean over 5x5 pixels (fewer at the border)."""
    near = np.abs(np.subtract.outer(np.arange(THUMBNAIL_SIDE), np.arange(THUMBNAIL_SIDE))) <= _LOCAL // 2
    mean = (near / near.sum(axis=1, keepdims=True)).astype(np.float32)
    return images_NHWC - np.einsum("ih,nhwc,jw->nijc", mean, images_NHWC, mean, optimize=True)


def _correlation(a_NHWC: NDArray[np.float32], b_NHWC: NDArray[np.float32]) -> NDArray[np.float32]:
    size = int(np.prod(a_NHWC.shape[1:]))
    a, b = a_NHWC.reshape(-1, size), b_NHWC.reshape(-1, size)
    a, b = a - a.mean(axis=1, keepdims=True), b - b.mean(axis=1, keepdims=True)
    scale = np.sqrt(np.einsum("nk,nk->n", a, a) * np.einsum("nk,nk->n", b, b))
    return np.einsum("nk,nk->n", a, b) / np.maximum(scale, 1e-6)
