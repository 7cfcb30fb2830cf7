"""What an image file is, by its own bytes, and the one way to open it.

File names can be wrong (ImageNet holds a PNG called .JPEG), so the codec is read from the magic bytes. How it becomes
RGB: `rgb_pixels.py`.
"""

import io
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum

from PIL import Image, UnidentifiedImageError

import hjepa_shards.images.silent_decoders  # noqa: F401  (for what it does)
from hjepa_shards.errors import DecodeError, InputError
from hjepa_shards.images.orientation import displayed_size, stored_orientation
from hjepa_shards.images.png_chunks import png_without_cut_end

DEFAULT_MAX_PIXELS = 1 << 28
"""Of 16,384 x 16,384: above the largest cameras, which have 200 million."""


def _max_pixels() -> int:
    text = os.environ.get("HJEPA_MAX_PIXELS", "").strip()
    if text and not (text.isascii() and text.isdigit() and 1_000_000 <= int(text[:20]) < 1 << 32):
        raise InputError(
            f"HJEPA_MAX_PIXELS: a number of pixels from 1,000,000 to 4,294,967,295 expected, {text!r} found"
        )
    return int(text) if text else DEFAULT_MAX_PIXELS


MAX_PIXELS = _max_pixels()
"""Larger images are refused as decompression bombs. One takes up to 16 bytes a pixel for a moment: 4 GiB by default."""

_MAX_SCANNED_PIXELS, _USUAL_SCANS = 20 * 89_478_485, 12
"""A progressive JPEG of 650 kB can hold 2,000 scans of the largest image and take minutes; real ones have about ten."""

_FORMATS = (
    *("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "TGA", "PCX", "ICO", "JPEG2000", "AVIF", "SGI", "QOI"),
)
"""What is tried. Pillow knows more, among them EPS, for which it would start Ghostscript on untrusted bytes."""

_START_OF_SCAN = b"\xff\xda"
_PNG_EXIF = (b"eXIf", b"exif", b"XML:com.adobe.xmp")
"""One of them is in a PNG that has EXIF. To find none Pillow decodes all of it: 40 times as long as keeping it."""

if Image.MAX_IMAGE_PIXELS is not None:  # Pillow warns above its limit and refuses twice as many
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, MAX_PIXELS)
# Once, here: `catch_warnings` around each image is a race between the threads that decode.
warnings.filterwarnings("ignore", module=r"PIL\.")


class Codec(IntEnum):
    UNKNOWN = 0
    JPEG = 1
    PNG = 2
    WEBP = 3
    GIF = 4
    BMP = 5
    TIFF = 6


class Colour(IntEnum):
    UNKNOWN = 0
    """Rare modes, and animated PNGs (OpenCV blends their frames): Pillow decodes them."""
    GRAY = 1
    RGB = 2
    PALETTE = 3
    ALPHA = 4
    CMYK = 5
    DEEP = 6
    """16 bits a channel."""


_MAGIC = (
    (b"\xff\xd8\xff", Codec.JPEG),
    (b"\x89PNG\r\n\x1a\n", Codec.PNG),
    (b"GIF8", Codec.GIF),
    (b"BM", Codec.BMP),
    (b"II*\0", Codec.TIFF),
    (b"MM\0*", Codec.TIFF),
)

_COLOURS = {
    "1": Colour.GRAY,
    "L": Colour.GRAY,
    "RGB": Colour.RGB,
    "YCbCr": Colour.RGB,
    "P": Colour.PALETTE,
    "PA": Colour.ALPHA,
    "LA": Colour.ALPHA,
    "La": Colour.ALPHA,
    "RGBA": Colour.ALPHA,
    "RGBa": Colour.ALPHA,
    "CMYK": Colour.CMYK,
    "I": Colour.DEEP,
    "I;16": Colour.DEEP,
    "I;16B": Colour.DEEP,
    "F": Colour.DEEP,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageInfo:
    """What the header of an image says."""

    codec: Codec
    width: int
    """Pixels as displayed, after the EXIF orientation."""
    height: int
    colour: Colour
    orientation: int
    """EXIF orientation, 1 to 8."""


def codec_of(data: bytes) -> Codec:
    """The codec by magic bytes."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return Codec.WEBP
    for magic, codec in _MAGIC:
        if data.startswith(magic):
            return codec
    return Codec.UNKNOWN


@contextmanager
def opened(data: bytes) -> Iterator[Image.Image]:
    """A Pillow image over `data`, header read, pixels not. DecodeError for whatever Pillow raises, inside too.

    Pillow raises far more than OSError on damaged files (SyntaxError, TypeError, struct.error, ...), which is why this
    boundary, the only one, catches everything.
    """
    try:
        readable = png_without_cut_end(data) if codec_of(data) == Codec.PNG else data
        with Image.open(io.BytesIO(readable), formats=_FORMATS) as image:
            num_pixels = image.width * image.height
            if num_pixels > MAX_PIXELS:
                raise DecodeError(
                    f"a decompression bomb: {image.width} x {image.height} pixels, more than {MAX_PIXELS:,} "
                    "(HJEPA_MAX_PIXELS)"
                )
            if num_pixels == 0:
                raise DecodeError(f"an empty image: {image.width} x {image.height} pixels")
            if image.info.get("progressive") and (scans := too_many_scans(data, num_pixels)):
                raise DecodeError(f"a decompression bomb: {scans} scans of {image.width} x {image.height} pixels")
            yield image
    except DecodeError:
        raise
    except Exception as error:  # Pillow raises far more than OSError, see above
        raise DecodeError(_reason(error, data)) from error


def too_many_scans(data: bytes, num_pixels: int) -> int:
    """The number of scans of a progressive JPEG where they are too many for its size; else 0."""
    scans = data.count(_START_OF_SCAN)
    return scans if scans > _USUAL_SCANS and scans * num_pixels > _MAX_SCANNED_PIXELS else 0


def _reason(error: Exception, data: bytes) -> str:
    """Why an image is excluded: the rule, then what the decoder said. A manifest quotes it."""
    said = re.sub(r" at 0x[0-9a-f]+", "", str(error))  # no address of an object may be in it
    match error:
        case UnidentifiedImageError():
            return "no image of a known format" if data else "an empty file"
        case Image.DecompressionBombError():
            return f"a decompression bomb: {said}"
        case EOFError():
            return "cut short"
    if "truncated" in said or "not enough image data" in said:
        return f"cut short: {said}"
    return f"damaged: {type(error).__name__}: {said}" if said else f"damaged: {type(error).__name__}"


def info_of(data: bytes, image: Image.Image) -> ImageInfo:
    """What an opened image's header says; `data` are its bytes."""
    has_exif = image.format != "PNG" or any(mark in data for mark in _PNG_EXIF)
    orientation = stored_orientation(image) if has_exif else 1
    width, height = displayed_size(image, orientation)
    return ImageInfo(codec=codec_of(data), width=width, height=height, colour=_colour(image), orientation=orientation)


def is_plain_jpeg(info: ImageInfo) -> bool:
    """Whether libjpeg-turbo alone gives the right pixels: gray or RGB, upright."""
    return info.codec == Codec.JPEG and info.colour in (Colour.GRAY, Colour.RGB) and info.orientation == 1


def inspect(data: bytes) -> ImageInfo:
    """What the header of an encoded image says. DecodeError if it is none."""
    with opened(data) as image:
        return info_of(data, image)


def _colour(image: Image.Image) -> Colour:
    if image.format == "PNG" and getattr(image, "is_animated", False):
        return Colour.UNKNOWN
    if image.mode in ("L", "RGB", "P") and "transparency" in image.info:
        return Colour.ALPHA
    return _COLOURS.get(image.mode, Colour.UNKNOWN)
