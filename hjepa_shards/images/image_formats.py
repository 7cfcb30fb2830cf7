"""What an image file is, by its own bytes, and how any of them becomes 8-bit RGB.

File names can be wrong (ImageNet holds a PNG called .JPEG), so the codec is read from the magic bytes. `to_rgb` is the
one rule for odd colours, used when building and when training: alpha is dropped and palettes are looked up, as
torchvision does; 16 bits keep their upper 8; CMYK goes through Pillow.
"""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from PIL import Image, UnidentifiedImageError

from hjepa_shards.errors import DecodeError

MAX_PIXELS = 89_478_485
"""Larger images are refused as decompression bombs (Pillow's own limit: a quarter gigabyte of RGB)."""

MAX_SCANNED_PIXELS = 20 * MAX_PIXELS
"""A progressive JPEG of 650 kB can hold 2,000 scans of the largest image and take minutes; real ones have about ten."""

_FORMATS = (
    *("JPEG", "PNG", "WEBP", "GIF", "BMP", "DIB", "TIFF", "PPM", "TGA", "PCX", "ICO", "JPEG2000", "AVIF", "SGI", "QOI"),
)
"""What is tried. Pillow knows more, among them EPS, for which it would start Ghostscript on untrusted bytes."""

_START_OF_SCAN = b"\xff\xda"
_PNG_EXIF = (b"eXIf", b"exif", b"XML:com.adobe.xmp")
"""One of them is in a PNG that has EXIF. To find none Pillow decodes all of it: 40 times as long as keeping it."""

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What undoes each EXIF orientation. Pillow's `exif_transpose` also rewrites the EXIF, and fails where it is broken."""

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
        with Image.open(io.BytesIO(data), formats=_FORMATS) as image:
            num_pixels = image.width * image.height
            if num_pixels > MAX_PIXELS:
                raise DecodeError(f"a decompression bomb: {image.width} x {image.height} pixels")
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
    return scans if scans * num_pixels > MAX_SCANNED_PIXELS else 0


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
    orientation = _orientation(image) if has_exif else 1
    width, height = image.size if orientation < 5 else image.size[::-1]
    return ImageInfo(codec=codec_of(data), width=width, height=height, colour=_colour(image), orientation=orientation)


def is_plain_jpeg(info: ImageInfo) -> bool:
    """Whether libjpeg-turbo alone gives the right pixels: gray or RGB, upright."""
    return info.codec == Codec.JPEG and info.colour in (Colour.GRAY, Colour.RGB) and info.orientation == 1


def inspect(data: bytes) -> ImageInfo:
    """What the header of an encoded image says. DecodeError if it is none."""
    with opened(data) as image:
        return info_of(data, image)


def to_rgb(image: Image.Image) -> Image.Image:
    """8-bit RGB, upright: EXIF orientation applied, odd colours by the rule above."""
    orientation = _orientation(image)
    if orientation != 1:
        image = image.transpose(_UPRIGHT[orientation])
    if image.mode in ("I", "I;16", "I;16B"):
        deep = np.asarray(image)
        upper = (deep if deep.dtype.itemsize == 2 else deep.clip(0, 65535)) >> 8
        image = Image.fromarray(upper.astype(np.uint8))
    elif image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # broken EXIF is no reason to lose an image whose pixels are right
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _colour(image: Image.Image) -> Colour:
    if image.format == "PNG" and getattr(image, "is_animated", False):
        return Colour.UNKNOWN
    if image.mode in ("L", "RGB", "P") and "transparency" in image.info:
        return Colour.ALPHA
    return _COLOURS.get(image.mode, Colour.UNKNOWN)
