"""A sample before it is written, and the key under which it is.

A key is the relative path without its image extension, percent-encoded outside [A-Za-z0-9_-] (so it holds no dot and
no slash: webdataset and Hugging Face `datasets` cut a member's name at the first dot) and can be decoded back. A name
that is too long for a tar header, or that occurs twice, gets its first 60 bytes and a digest instead; the manifest's
`renamed` maps those back.
"""

import hashlib
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import quote, unquote

from hjepa_shards.errors import InputError

IMAGE_EXTENSIONS = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")
MAX_KEY_BYTES = 90


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


def sort_samples(samples: Sequence[RawSample]) -> list[RawSample]:
    """The one order of a raw split: by UTF-8 bytes of the NFC name, then by index, whatever the file system says."""
    return sorted(samples, key=lambda s: (unicodedata.normalize("NFC", s.name).encode(), s.index))


def extension_of(name: str) -> str:
    """Lower-case image extension of a name, '' where it has none that we know."""
    extension = name.rpartition(".")[2].lower() if "." in name else ""
    return extension if extension in IMAGE_EXTENSIONS else ""


def plain_key(name: str) -> str:
    """The key that tells its name."""
    name = unicodedata.normalize("NFC", name)
    extension = extension_of(name)
    stem = name[: -len(extension) - 1] if extension else name
    return quote(stem, safe="").replace(".", "%2E").replace("~", "%7E")


def encode_keys(samples: Sequence[RawSample]) -> list[str]:
    """A unique key for each sample, a function of the whole list and of nothing else.

    InputError for two names that differ only in how Unicode composes their letters.
    """
    plain = [plain_key(sample.name) for sample in samples]
    times = Counter(plain)
    keys = [
        key if times[key] == 1 and len(key) <= MAX_KEY_BYTES else _digest_key(key, sample)
        for key, sample in zip(plain, samples, strict=True)
    ]
    if len(set(keys)) < len(keys):
        twice = next(key for key, count in Counter(keys).items() if count > 1)
        names = [sample.name for key, sample in zip(keys, samples, strict=True) if key == twice]
        raise InputError(
            f"{names[0]!a} and {names[1]!a}: two names that differ expected, these are one and the same in Unicode's "
            "composed form; rename or remove one"
        )
    return keys


def decode_key(key: str) -> str:
    """The name (without extension) behind a key that is not in `renamed`."""
    return unquote(key)


def _digest_key(key: str, sample: RawSample) -> str:
    name = unicodedata.normalize("NFC", sample.name)
    digest = hashlib.blake2b(f"{len(name)}:{name}:{sample.index}".encode(), digest_size=8).hexdigest()
    return f"{key[:60]}-{digest}"
