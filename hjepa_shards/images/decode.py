"""Encoded bytes -> a crop of them, resized, in its slot of the batch.

libjpeg-turbo (simplejpeg) for JPEG and OpenCV for WebP, because they work without the GIL; libspng (pyspng) for PNG,
which holds it but is faster (loader/png_batch.py does without); Pillow for what they would get wrong: CMYK, 16 bit,
palettes, alpha, EXIF orientation, odd codecs. What they refuse, and a PNG with a wrong CRC, Pillow decides on too, as
it did in the build: simplejpeg refuses stray bytes that every other decoder skips. Resizing is OpenCV's, or ours with
the same result (_resize.c).
"""

import contextlib
from collections.abc import Iterable

import cv2
import numpy as np
import pyspng
import simplejpeg
from numpy.typing import NDArray

from hjepa_shards.images.image_formats import Codec, Colour, codec_of, opened
from hjepa_shards.images.image_integrity import is_whole
from hjepa_shards.images.rgb_pixels import shown

try:
    from hjepa_shards.images._resize import bilinear, mean
except ImportError:  # no compiler where this was installed, or a processor that it is not written for
    bilinear = mean = None
try:
    from hjepa_shards.images._jpeg import num_pixels
except ImportError:
    num_pixels = None

cv2.setNumThreads(0)  # the loader's threads are the parallelism


PLAIN = frozenset({int(Colour.GRAY), int(Colour.RGB)})
"""Colours that fast decoders get right."""
_SHRINKS = np.array([1, 1, 2, 2, 4, 4, 4, 4, 8])
"""By how many times a crop is larger than needed. Other scales of the inverse DCT are slower than none."""
_SURELY_NO_BOMB = 1 << 22
"""Pixels. To look further takes 50 microseconds, to decode as many 10 milliseconds."""


def decode(data: bytes, colour: int, orientation: int, shrink: int = 1) -> NDArray[np.uint8]:
    """RGB pixels [H, W, 3], upright. DecodeError where no decoder reads them.

    colour, orientation: as in the sidecar; the codec is read from the magic bytes.
    shrink: 2, 4 or 8: [ceil(H / shrink), ceil(W / shrink), 3] instead where that is cheap, which it is for most JPEGs.
    """
    plain = colour in PLAIN and orientation == 1
    codec = codec_of(data)
    if plain and codec == Codec.JPEG:
        with contextlib.suppress(ValueError):
            refuse_bomb(data, jpeg_pixels(data))
            if shrink == 1:
                return simplejpeg.decode_jpeg(data, colorspace="RGB")
            height, width = map(int, simplejpeg.decode_jpeg_header(data)[:2])
            least_height, least_width = -(-height // shrink), -(-width // shrink)
            return simplejpeg.decode_jpeg(data, colorspace="RGB", min_height=least_height, min_width=least_width)
    if plain and codec == Codec.PNG and is_whole(data):  # libspng shows flipped bits without a word
        refuse_bomb(data, int.from_bytes(data[16:20]) * int.from_bytes(data[20:24]))
        with contextlib.suppress(RuntimeError, ValueError):
            return pyspng.load(data, "RGB")
    if plain and codec == Codec.WEBP:
        pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION)
        if pixels is not None:
            return pixels.astype(np.uint8, copy=False)
    with opened(data) as image:
        return np.asarray(shown(data, image).rgb)


def jpeg_pixels(data: bytes) -> int:
    """What a JPEG's header asks for. ValueError where it cannot be read."""
    found = num_pixels(data) if num_pixels else -1
    if found < 0:
        height, width = map(int, simplejpeg.decode_jpeg_header(data)[:2])
        found = height * width
    return found


def refuse_bomb(data: bytes, pixels: int) -> None:
    """DecodeError for an image that would fill memory or take minutes, before a fast decoder does as its header says.

    pixels: by the header. A sidecar is no proof of them: it may be a third party's too.
    """
    if pixels > _SURELY_NO_BOMB:
        with opened(data):
            pass


def fitted(crops: NDArray[np.int64], size: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Crops [n, 4] for `size` x `size` pixels, and how much smaller each image may be decoded for it [n].

    Where an image may be smaller its crop loses what does not fill a pixel there: at most 7 rows and columns.
    """
    shrinks = _SHRINKS[np.minimum(crops[:, 2:].min(1) // size, 8)]
    return (crops if shrinks.max() == 1 else crops // shrinks[:, None] * shrinks[:, None]), shrinks


def crop_into(slot: NDArray[np.uint8], pixels: NDArray[np.uint8], crop: Iterable[int]) -> None:
    """Resize `crop` (top, left, height, width) of `pixels` into `slot` [R, R, 3], in place."""
    top, left, height, width = crop
    part, size = pixels[top : top + height, left : left + width], len(slot)
    if part.shape == slot.shape:
        slot[:] = part
    elif max(height, width) > 2 * size:  # beyond a factor of two bilinear skips pixels
        if mean and min(height, width) >= size and (height % size or width % size):
            mean(part, slot)
        else:
            cv2.resize(part, (size, size), dst=slot, interpolation=cv2.INTER_AREA)
    elif bilinear and width >= 3:
        bilinear(part, slot)
    else:
        cv2.resize(part, (size, size), dst=slot, interpolation=cv2.INTER_LINEAR)
