"""The list of a raw split, sorted, as columns: some fifty bytes a sample and its name, instead of half a kilobyte.

Everything about a build hangs on this list: its order, each sample's key, the slices that become shards. Keys are not
stored: one follows from its name and a bit that says whether the plain key had to give way to a digest. A shard task is
sent its own slice and nothing of the rest, so no worker's memory knows how many images there are.
"""

import hashlib
import json
import unicodedata
from array import array
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from hjepa_shards.errors import InputError
from hjepa_shards.sample import MAX_KEY_BYTES, RawSample, digest_key, plain_key
from hjepa_shards.sidecar import key_hash


@final
class Texts:
    """Many strings in one buffer."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._ends = array("q", [0])
        """Where each ends in `data`, behind a zero."""

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, i: int) -> str:
        return self._utf8(i).decode()

    def append(self, text: str) -> None:
        self._append(text.encode())

    def take(self, chosen: NDArray[np.int64]) -> "Texts":
        taken = Texts()
        for i in chosen.tolist():
            taken._append(self._utf8(i))
        return taken

    def columns(self) -> tuple[bytearray, bytes]:
        """What a digest covers: no two lists have the same."""
        return self._data, np.array(self._ends, dtype="<i8").tobytes()

    def _utf8(self, i: int) -> bytearray:
        return self._data[self._ends[i] : self._ends[i + 1]]

    def _append(self, utf8: bytes | bytearray) -> None:
        self._data += utf8
        self._ends.append(len(self._data))


@final
@dataclass(frozen=True, slots=True)
class Listing:
    """Samples with their keys, in order."""

    names: Texts
    indices: NDArray[np.int64]
    labels: NDArray[np.int32]
    captions: Texts
    """JSON of each sample's captions, '' where there are none."""
    has_digest: NDArray[np.bool_]
    """Where the key is a digest, because the plain one is too long or not unique."""

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[tuple[str, RawSample]]:
        return ((self.key(i), self.sample(i)) for i in range(len(self)))

    def sample(self, i: int) -> RawSample:
        captions = self.captions[i]
        return RawSample(
            name=self.names[i],
            index=int(self.indices[i]),
            label=int(self.labels[i]),
            captions=tuple(json.loads(captions)) if captions else (),
        )

    def key(self, i: int) -> str:
        name = self.names[i]
        return digest_key(name, int(self.indices[i])) if self.has_digest[i] else plain_key(name)

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
        return Listing(
            self.names.take(chosen),
            self.indices[chosen],
            self.labels[chosen],
            self.captions.take(chosen),
            self.has_digest[chosen],
        )

    def renamed(self) -> dict[str, tuple[str, int]]:
        """Key -> (name, index) where the key does not tell the name."""
        places = np.flatnonzero(self.has_digest).tolist()
        return {self.key(i): (self.names[i], int(self.indices[i])) for i in places}

    def digest(self, class_names: Sequence[str]) -> str:
        """Hex digest of everything here and of the classes that labels stand for."""
        digest = hashlib.blake2b(json.dumps(list(class_names)).encode(), digest_size=16)
        for column in (
            *self.names.columns(),
            self.indices.astype("<i8").tobytes(),
            self.labels.astype("<i4").tobytes(),
            *self.captions.columns(),
            self.has_digest.tobytes(),
        ):
            digest.update(column)
        return digest.hexdigest()


def sorted_listing(samples: Sequence[RawSample]) -> Listing:
    """The samples as columns, in order."""
    return in_order(listing_of(samples))


def listing_of(samples: Iterable[RawSample]) -> Listing:
    """The samples as columns, as they come. InputError for a name that is no proper text."""
    names, captions, indices, labels = Texts(), Texts(), array("q"), array("i")
    for sample in samples:
        try:
            names.append(sample.name)
        except UnicodeEncodeError as error:
            raise InputError(f"{sample.name!a}: a name of proper Unicode expected; rename it") from error
        captions.append(_json_of(sample.captions))
        indices.append(sample.index)
        labels.append(sample.label)
    has_digest = np.zeros(len(names), np.bool_)
    return Listing(names, np.array(indices, np.int64), np.array(labels, np.int32), captions, has_digest)


def in_order(listing: Listing) -> Listing:
    """The one order of a raw split, whatever the file system says: by UTF-8 bytes of the NFC name, then by index.

    InputError for two names that differ only in how Unicode composes their letters.
    """
    composed = [unicodedata.normalize("NFC", name).encode() for name in listing.names]
    by_index = np.argsort(listing.indices, kind="stable")
    order = np.fromiter(sorted(by_index, key=composed.__getitem__), np.int64, len(listing))
    del composed, by_index
    return _with_unique_keys(listing.take(order))


def _json_of(captions: tuple[str, ...]) -> str:
    """Halves of surrogate pairs, which JSON can carry and UTF-8 cannot, become question marks."""
    proper = [caption.encode("utf-8", "replace").decode() for caption in captions]
    return json.dumps(proper, ensure_ascii=False) if proper else ""


def _with_unique_keys(listing: Listing) -> Listing:
    """The same list with `has_digest` set where it must be."""
    hashes = np.zeros(len(listing), np.uint64)
    for i in range(len(listing)):
        key = listing.key(i)
        hashes[i] = key_hash(key)
        listing.has_digest[i] = len(key) > MAX_KEY_BYTES
    listing.has_digest[:] |= np.isin(hashes, _repeated(hashes))
    for i in np.flatnonzero(listing.has_digest).tolist():
        hashes[i] = key_hash(listing.key(i))
    for twice in _repeated(hashes)[:1]:
        first, second, *_ = (listing.names[i] for i in np.flatnonzero(hashes == twice).tolist())
        raise InputError(
            f"{first!a} and {second!a}: two names that differ expected, these are one and the same in Unicode's "
            "composed form; rename or remove one"
        )
    return listing


def _repeated(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    ordered = np.sort(hashes)
    return np.unique(ordered[1:][ordered[1:] == ordered[:-1]])
