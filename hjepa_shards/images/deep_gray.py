"""Gray levels of more than 8 bits, as 8 bits: by what the file says, and where it does not say, by the largest value.

    largest value           integers            floating point
    at most 1               8 bits              times 255
    at most 255             8 bits              as they are
    at most 4,095           12 bits: v / 16     v / 16
    at most 65,535          16 bits: v / 256    v / 256
    more, or one below 0    from the smallest value (black) to the largest (white)

A file of 16 bits may hold 8, 12 or 16, and none says which: X-ray detectors and depth
cameras leave the upper bits empty, and taking the upper eight would make all of it black. What was assumed is said in
the manifest. The rule looks at one image at a time: the same pixels for any build, shard and reader.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MODES = frozenset({"I", "I;16", "I;16B", "F"})
"""Pillow's modes of one channel of more than 8 bits."""
ONE_VALUE = "a single gray level is left"

_PHOTOMETRIC_TAG, _BITS_TAG, _SAMPLE_FORMAT_TAG = 0x0106, 0x0102, 0x0153
_WHITE_IS_ZERO, _UNSIGNED = 0, 1
_NEARLY_BLACK = 16
_VALUES_AT_ONCE = 1 << 20


def to_eight_bits(image: Image.Image) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Levels [H, W] of an image in one of MODES, its pixels loaded; and what had to be assumed about them."""
    tags: Any = getattr(image, "tag_v2", {})
    values = np.asarray(image)
    if values.dtype == np.int32 and tags.get(_BITS_TAG) == (32,) and tags.get(_SAMPLE_FORMAT_TAG, (1,)) == (_UNSIGNED,):
        values = values.view(np.uint32)
    levels, assumed = _levels(values, is_known=tags.get(_BITS_TAG) == (12,))
    remarks = (assumed,) if assumed else ()
    if levels.min() == levels.max():
        remarks += (ONE_VALUE,)
    return (255 - levels if tags.get(_PHOTOMETRIC_TAG) == _WHITE_IS_ZERO else levels), remarks


def _levels(values: NDArray[Any], is_known: bool) -> tuple[NDArray[np.uint8], str]:
    """Levels, and what was assumed; '' for nothing.  is_known: the file says that there are 12 bits."""
    convert, assumed = _rule(*_range(values), values.dtype.kind == "f", is_known)
    levels = np.empty(values.shape, np.uint8)
    for rows in _pieces(values):
        levels[rows] = convert(_finite(values[rows]))
    return levels, assumed


def _rule(low: float, high: float, is_float: bool, is_known: bool) -> tuple[Callable[[NDArray[Any]], Any], str]:
    """What makes levels of values between `low` and `high`, and what it assumes."""
    kind = "floating point" if is_float else "integers"
    if is_known:
        return lambda values: values >> 4, ""
    if low < 0 or high > 65535:
        scale = 255 / (high - low or 1)
        remark = f"{kind} below 0 or above 65,535, read from each image's smallest to its largest"
        return lambda values: np.rint((values.astype(np.float64) - low) * scale), remark
    if is_float and high <= 1:
        return lambda values: np.rint(values * 255), f"{kind} from 0 to 1, read as black to white"
    if high <= 255:
        is_clear = is_float and high >= _NEARLY_BLACK
        return lambda values: values, "" if is_clear else f"{kind} up to 255, read as 8 bits"
    if high <= 4095:
        remark = f"{kind} up to 4,095, read as 12 bits"
        return (lambda values: values / 16) if is_float else (lambda values: values >> 4), remark
    if is_float:
        return lambda values: values / 256, f"{kind} up to 65,535, read as 16 bits"
    return lambda values: values >> 8, ""


def _range(values: NDArray[Any]) -> tuple[float, float]:
    ends = [(part.min(), part.max()) for part in (_finite(values[rows]) for rows in _pieces(values))]
    return min(float(low) for low, _ in ends), max(float(high) for _, high in ends)


def _finite(values: NDArray[Any]) -> NDArray[Any]:
    """What is no number counts as 0."""
    return values if values.dtype.kind != "f" else np.where(np.isfinite(values), values, 0)


def _pieces(values: NDArray[Any]) -> Iterator[slice]:
    """Rows of about a million values: a large image is not held in 8 bytes a pixel."""
    step = max(1, _VALUES_AT_ONCE // values.shape[1])
    return (slice(start, start + step) for start in range(0, len(values), step))
