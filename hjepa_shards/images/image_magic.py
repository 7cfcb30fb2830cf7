"""Is a file without an extension an image? Its first bytes say so, and a listing reads no more of it."""

import re

from hjepa_shards.images.image_formats import Codec, codec_of

NUM_MAGIC_BYTES = 32

_BMP = re.compile(rb"BM.{4}\0\0\0\0.{4}[\x0c\x28-\x7c]\0\0\0", re.DOTALL)
"""Two letters begin many texts: reserved fields and the header's size as well."""
_OTHERS = re.compile(
    rb"P[1-6]\s"  # PBM, PGM, PPM
    rb"|\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51\0"  # JPEG 2000, in its container and bare
    rb"|.{4}ftypavi[fs]",
    re.DOTALL,
)


def has_image_magic(start: bytes) -> bool:
    """Whether a decoder may read a file that begins with `start`, its first NUM_MAGIC_BYTES."""
    codec = codec_of(start)
    if codec == Codec.BMP:
        return _BMP.match(start) is not None
    return codec != Codec.UNKNOWN or _OTHERS.match(start) is not None
