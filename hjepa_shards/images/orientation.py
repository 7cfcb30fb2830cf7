"""Which way up an image is stored, and how it comes upright: all that is known about orientation is here.

Pillow turns TIFFs by itself while it loads them, and nothing else. So the pixels are loaded before anything is turned,
and the size that is displayed follows from the header alone.
"""

from typing import Any

from PIL import Image

_ORIENTATION_TAG, _WIDTH_TAG, _HEIGHT_TAG = 0x0112, 0x0100, 0x0101
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


def stored_orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8, as the file says. To be asked before a TIFF is loaded, which forgets it."""
    if image.format == "PNG":
        image.load()  # as `getexif` does; here a damaged one is not taken for broken EXIF
    try:
        value = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:  # broken EXIF is no reason to lose an image whose pixels are right
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def displayed_size(image: Image.Image, orientation: int) -> tuple[int, int]:
    """Width and height of what is seen.  orientation: `stored_orientation`, asked before the pixels were loaded."""
    tags: Any = getattr(image, "tag_v2", {})
    width, height = (tags[_WIDTH_TAG], tags[_HEIGHT_TAG]) if image.format == "TIFF" else image.size
    return (width, height) if orientation < 5 else (height, width)


def upright(image: Image.Image) -> Image.Image:
    """The image with its pixels loaded, turned as its EXIF says."""
    image.load()  # which turns a TIFF, and takes the orientation out of its tags
    orientation = stored_orientation(image)
    return image if orientation == 1 else image.transpose(_UPRIGHT[orientation])
