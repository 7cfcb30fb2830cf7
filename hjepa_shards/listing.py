"""The list of a raw split, sorted, each sample with its key.

Everything about a build hangs on this list: its order, each sample's key, the slices that become shards. Keys are not
stored: one follows from its name and a bit that says whether the plain key had to give way to a digest. A shard task is
sent its own slice and nothing of the rest, so no worker's memory knows how many images there are.
"""

import hashlib
import json
import unicodedata
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from hjepa_shards.columns import Samples
from hjepa_shards.errors import InputError
from hjepa_shards.sample import MAX_KEY_BYTES, RawSample, digest_key, plain_key
from hjepa_shards.sidecar import key_hash


@final
@dataclass(frozen=True, slots=True)
class Listing:
    """Samples with their keys, in order."""

    samples: Samples
    has_digest: NDArray[np.bool_]
    """Where the key is a digest, because the plain one is too long or not unique."""

    def __len__(self) -> int:
        return len(self.samples)

    def keyed(self) -> Iterator[tuple[str, RawSample]]:
        return ((self.key(i), self.samples[i]) for i in range(len(self)))

    def key(self, i: int) -> str:
        name = self.samples.names[i]
        return digest_key(name, int(self.samples.indices[i])) if self.has_digest[i] else plain_key(name)

    def places_of(self, keys: Collection[str]) -> dict[str, int]:
        """Where the samples with these keys stand. InputError for a key that no sample has."""
        places = {key: i for i, key in enumerate(map(self.key, range(len(self)))) if key in keys}
        unknown = [key for key in keys if key not in places]
        if unknown:
            raise InputError(
                f"keys of samples expected, {unknown[0]!r} and {len(unknown) - 1} more are of none in this split; is "
                "the list of exclusions of other raw data?"
            )
        return places

    def take(self, chosen: NDArray[np.int64]) -> "Listing":
        return Listing(self.samples.take(chosen), self.has_digest[chosen])

    def renamed(self) -> dict[str, tuple[str, int]]:
        """Key -> (name, index) where the key does not tell the name."""
        places = np.flatnonzero(self.has_digest).tolist()
        return {self.key(i): (self.samples.names[i], int(self.samples.indices[i])) for i in places}

    def digest(self, class_names: Sequence[str]) -> str:
        """Hex digest of everything here and of the classes that labels stand for."""
        digest = hashlib.blake2b(json.dumps(list(class_names)).encode(), digest_size=16)
        for column in (
            *self.samples.names.columns(),
            self.samples.indices.astype("<i8", copy=False).data,
            self.samples.labels.astype("<i4", copy=False).data,
            *self.samples.captions.texts.columns(),
            self.has_digest.data,
        ):
            digest.update(column)
        return digest.hexdigest()


def in_order(samples: Samples) -> Listing:
    """The one order of a raw split, whatever the file system says: by UTF-8 bytes of the NFC name, then by index.

    InputError for two names that differ only in how Unicode composes their letters.
    """
    if not _stands_in_order(samples):
        composed = [_composed(name) for name in samples.names]
        by_index = np.argsort(samples.indices, kind="stable")
        order = np.fromiter(sorted(by_index, key=composed.__getitem__), np.int64, len(samples))
        del composed, by_index
        samples = samples.take(order)
    return _with_unique_keys(Listing(samples, np.zeros(len(samples), np.bool_)))


def _stands_in_order(samples: Samples) -> bool:
    """Mostly so, and then nothing needs to be copied."""
    before = (b"", -1)
    for name, index in zip(samples.names, samples.indices, strict=True):
        here = (_composed(name), index)
        if here < before:
            return False
        before = here
    return True


def _composed(name: str) -> bytes:
    return unicodedata.normalize("NFC", name).encode()


def _with_unique_keys(listing: Listing) -> Listing:
    """The same list with `has_digest` set where it must be."""
    hashes = np.zeros(len(listing), np.uint64)
    for i in range(len(listing)):
        key = listing.key(i)
        hashes[i] = key_hash(key)
        listing.has_digest[i] = len(key) > MAX_KEY_BYTES
    listing.has_digest[:] |= np.isin(hashes, repeated(hashes))
    for i in np.flatnonzero(listing.has_digest).tolist():
        hashes[i] = key_hash(listing.key(i))
    for twice in repeated(hashes)[:1]:
        first, second, *_ = (listing.samples.names[i] for i in np.flatnonzero(hashes == twice).tolist())
        raise InputError(
            f"{first!a} and {second!a}: two names that differ expected, these are one and the same in Unicode's "
            "composed form; rename or remove one"
        )
    return listing


def repeated(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Those that occur more than once."""
    ordered = np.sort(hashes)
    return np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
