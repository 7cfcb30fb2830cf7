"""How an opened image becomes 8-bit RGB: the one rule for odd ones, when building and when training.

It is turned upright (orientation.py); alpha is dropped and palettes are looked up, as torchvision does; gray levels of
more than 8 bits follow `deep_gray.py`, colours of 16 bits keep their upper 8; CMYK goes through Pillow.
"""

import contextlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from hjepa_shards.errors import DecodeError
from hjepa_shards.images import deep_gray
from hjepa_shards.images.image_formats import opened
from hjepa_shards.images.orientation import upright
from hjepa_shards.images.png_chunks import png_has_all_rows

NEARLY_BLACK = "16 bits a colour, of which the upper 8 are nearly black: fewer than 16 bits may be in use"

_PNG_BITS_AT, _TIFF_BITS_TAG = 24, 0x0102
_BLACK_LEVELS = 16
"""Of 12 bits in 16 the upper 8 are below it."""


class Shown(NamedTuple):
    """An image as it is seen."""

    rgb: Image.Image
    """8 bits, upright."""
    remarks: tuple[str, ...]
    """What had to be assumed about its pixels, for the manifest's notes: next to always nothing."""


def shown(data: bytes, image: Image.Image) -> Shown:
    """An opened image as it is seen; `data` are its bytes.

    DecodeError for a PNG with fewer rows than its header says: Pillow shows the missing ones black.
    """
    turned = upright(image)
    if image.format == "PNG" and _ends_black(image) and not png_has_all_rows(data):
        raise DecodeError(f"cut short: rows are missing of {image.width} x {image.height} pixels")
    rgb, remarks = _rgb(turned)
    is_deep = turned.mode not in deep_gray.MODES and _has_sixteen_bits(data, image)
    if is_deep and np.asarray(rgb).max() < _BLACK_LEVELS:
        remarks += (NEARLY_BLACK,)
    return Shown(rgb, remarks)


def to_rgb(image: Image.Image) -> Image.Image:
    """The same of whatever can be decoded; rows may be missing."""
    return _rgb(upright(image))[0]


def remarks_of(data: bytes) -> tuple[str, ...]:
    """What has to be assumed about the pixels of an encoded image; nothing where it cannot be decoded."""
    with contextlib.suppress(DecodeError), opened(data) as image:
        return shown(data, image).remarks
    return ()


def notes_of(counts: Mapping[str, int]) -> list[str]:
    """Lines for a manifest.  counts: of how many images each remark is true."""
    return [f"{counts[remark]:,} images of more than 8 bits: {remark}" for remark in sorted(counts)]


def _rgb(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    if image.mode in deep_gray.MODES:
        levels, remarks = deep_gray.to_eight_bits(image)
        return Image.fromarray(levels).convert("RGB"), remarks
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB"), ()


def _ends_black(image: Image.Image) -> bool:
    """Whether one of the last two rows is all zeros, as a row that was never decoded is. Of an interlaced PNG the last
    odd row comes last."""
    width, height = image.size
    return any(not np.any(np.asarray(image.crop((0, y, width, y + 1)))) for y in range(max(0, height - 2), height))


def _has_sixteen_bits(data: bytes, image: Image.Image) -> bool:
    if image.format == "PNG":
        return data[_PNG_BITS_AT : _PNG_BITS_AT + 1] == b"\x10"
    tags: Any = getattr(image, "tag_v2", {})
    return image.format == "TIFF" and tags.get(_TIFF_BITS_TAG, (0,))[0] == 16
