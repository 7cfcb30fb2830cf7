"""An image made small enough for a page: a few kilobytes."""

import io

from PIL import Image

SIDE = 144
_SMALL_SIDE = 48
"""Images up to this side are shown as they are, pixel by pixel."""


def thumbnail(image: Image.Image) -> bytes:
    """RGB pixels as PNG if they are few, else as a JPEG of at most 144 pixels a side."""
    buffer = io.BytesIO()
    if max(image.size) <= _SMALL_SIDE:
        image.save(buffer, "PNG", optimize=True)
    else:
        image.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        image.save(buffer, "JPEG", quality=80, optimize=True)
    return buffer.getvalue()
