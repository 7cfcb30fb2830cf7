"""A sample before it is written, and the key under which it is.

A key is the relative path without its image extension, percent-encoded outside [A-Za-z0-9_-] (so it holds no dot and
no slash: webdataset and Hugging Face `datasets` cut a member's name at the first dot) and can be decoded back. A name
that is too long for a tar header, or that occurs twice, gets its first 60 bytes and a digest instead; the manifest's
`renamed` maps those back.
"""

import hashlib
import string
import unicodedata
from dataclasses import dataclass
from typing import NamedTuple
from urllib.parse import quote, unquote

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")
"""Of an image among the members of a tar's sample, where masks and depths often are .pgm or .ppm."""
FILE_EXTENSIONS = (*IMAGE_EXTENSIONS, *("jfif", "jpe", "ppm", "pgm", "pbm", "pnm", "avif", "jp2", "tga"))
"""Of an image file in a folder."""
MAX_KEY_BYTES = 90

_KEPT = frozenset(f"{string.ascii_letters}{string.digits}_-")
_ESCAPES = {code: f"%{code:02X}" for code in range(128) if chr(code) not in _KEPT}
_ESCAPES_AFTER_QUOTE = {ord(left): _ESCAPES[ord(left)] for left in ".~"}
"""What urllib leaves as it is."""


class Extent(NamedTuple):
    """Where the bytes of an image are in a larger file that is read in place."""

    file: int
    """Which of the source's files."""
    offset: int
    num_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RawSample:
    """One image of a raw dataset, before it is read."""

    name: str
    """Relative path in the raw dataset, with forward slashes."""
    index: int
    """Place in its raw file; (name, index) is unique within a split."""
    label: int = -1
    """Class index, -1 where there is none."""
    captions: tuple[str, ...] = ()
    extent: Extent | None = None
    """For its source to read it by; says nothing about what the sample is."""


def extension_of(name: str) -> str:
    """Lower-case image extension of a name, '' where it has none that we know."""
    extension = name.rpartition(".")[2].lower() if "." in name else ""
    return extension if extension in FILE_EXTENSIONS else ""


def plain_key(name: str) -> str:
    """The key that holds its name."""
    name = unicodedata.normalize("NFC", name)
    extension = extension_of(name)
    stem = name[: -len(extension) - 1] if extension else name
    return stem.translate(_ESCAPES) if stem.isascii() else quote(stem, safe="").translate(_ESCAPES_AFTER_QUOTE)


def digest_key(name: str, index: int) -> str:
    """The key of a name whose plain key is too long or not unique: the first 60 bytes of that, and a digest."""
    name = unicodedata.normalize("NFC", name)
    digest = hashlib.blake2b(f"{len(name)}:{name}:{index}".encode(), digest_size=8).hexdigest()
    return f"{plain_key(name)[:60]}-{digest}"


def decode_key(key: str) -> str:
    """The name (without extension) of a key that is not in `renamed`."""
    return unquote(key)
