"""Encoded bytes -> a crop of them, resized, in its place in the batch.

libjpeg-turbo (simplejpeg) for JPEG and OpenCV for the rest and for resizing, because both work without the GIL;
Pillow for what those two would get wrong: CMYK, 16 bit, palettes, alpha, EXIF orientation, odd codecs. What they
refuse Pillow decides on too, as it did in the build: simplejpeg refuses stray bytes that every other decoder skips.
"""

import contextlib

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from hjepa_shards.images import Codec, Colour, codec_of, opened, to_rgb

cv2.setNumThreads(0)  # the loader's threads are the parallelism


def decode(data: bytes, colour: int, orientation: int) -> NDArray[np.uint8]:
    """RGB pixels [H, W, 3], upright. DecodeError where no decoder reads them.

    colour, orientation: as in the sidecar; the codec is read from the magic bytes.
    """
    plain = colour in (Colour.GRAY, Colour.RGB) and orientation == 1
    codec = codec_of(data)
    if plain and codec == Codec.JPEG:
        with contextlib.suppress(ValueError):
            return simplejpeg.decode_jpeg(data, colorspace="RGB")
    if plain and codec in (Codec.PNG, Codec.WEBP):
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
        if pixels is not None:
            return pixels.astype(np.uint8, copy=False)
    with opened(data) as image:
        return np.asarray(to_rgb(image))


def crop_into(slot: NDArray[np.uint8], pixels: NDArray[np.uint8], crop: NDArray[np.int64]) -> None:
    """Resize `crop` (top, left, height, width) of `pixels` into `slot` [R, R, 3], in place."""
    top, left, height, width = crop
    part = pixels[top : top + height, left : left + width]
    if part.shape == slot.shape:
        slot[:] = part
    else:
        size = (slot.shape[1], slot.shape[0])
        # bilinear of OpenCV does not antialias: fine up to a factor of two, beyond that area averaging is
        method = cv2.INTER_AREA if height > 2 * slot.shape[0] else cv2.INTER_LINEAR
        cv2.resize(part, size, dst=slot, interpolation=method)
