"""The list of a raw split, sorted, each sample with its key; on disk, so a build of a billion takes no more memory.

Everything about a build hangs on this list: its order, each sample's key, the slices that become shards. Keys are not
stored: one follows from its name and a bit that says whether the plain key had to give way to a digest. A shard task is
sent its own slice and nothing of the rest.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, final

import numpy as np

from hjepa_shards.base.keyed_random import philox_words
from hjepa_shards.building.shard_columns import Slice, key_of
from hjepa_shards.errors import InputError
from hjepa_shards.shards.raw_sample import MAX_KEY_BYTES, RawSample, digest_key, plain_key
from hjepa_shards.shards.sample_table import COLUMNS, SampleTable, on_disk, temporary, to_sample
from hjepa_shards.shards.sidecar import key_hash

_SCHEMA = f"CREATE TABLE samples (place INTEGER PRIMARY KEY, {COLUMNS}, has_digest, hash)"
_TWICE = "hash IN (SELECT hash FROM samples GROUP BY hash HAVING count(*) > 1)"
_AT_ONCE = 1 << 14
"""Rows. A multiple of the four words that a step of Philox's counter gives."""


@final
class Listing:
    """Samples with their keys, in order."""

    def __init__(self, rows: Iterable[Sequence[Any]]) -> None:
        """rows: COLUMNS, whether the key is a digest, because the plain one is too long or not unique, and its hash."""
        self._database = temporary(_SCHEMA)
        with on_disk(self._database):
            self._database.executemany(
                f"INSERT INTO samples VALUES (?{', ?' * 9})", ((place, *row) for place, row in enumerate(rows))
            )
        [self._len] = self._one("SELECT count(*) FROM samples")

    def __len__(self) -> int:
        return self._len

    def __iter__(self) -> Iterator[RawSample]:
        return map(to_sample, self._rows())

    def __getitem__(self, place: int) -> RawSample:
        return to_sample(self._one(f"SELECT {COLUMNS} FROM samples WHERE place = ?", int(place)))

    def keyed(self) -> Iterator[tuple[str, RawSample]]:
        for row in self._rows():
            sample = to_sample(row)
            yield key_of(sample.name, sample.index, row[7]), sample

    def names(self) -> Iterator[str]:
        return (name for (name,) in self._database.execute("SELECT name FROM samples ORDER BY place"))

    def has_labels(self) -> bool:
        return bool(self._one("SELECT EXISTS (SELECT 1 FROM samples WHERE label >= 0)")[0])

    def has_captions(self) -> bool:
        return bool(self._one("SELECT EXISTS (SELECT 1 FROM samples WHERE captions != '')")[0])

    def renamed(self) -> dict[str, tuple[str, int]]:
        """Key -> (name, index) where the key does not hold the name."""
        found = self._database.execute("SELECT name, idx FROM samples WHERE has_digest ORDER BY place")
        return {key_of(name, index, True): (name, index) for name, index in found}

    def places_of(self, keys: Collection[str]) -> dict[str, int]:
        """Where the samples with these keys are. InputError for a key that no sample has."""
        places = {key: place for place, (key, _) in enumerate(self.keyed()) if key in keys} if keys else {}
        unknown = [key for key in keys if key not in places]
        if unknown:
            raise InputError(
                f"keys of samples expected, {unknown[0]!r} and {len(unknown) - 1} more are of none in this split; is "
                "the list of exclusions of other raw data?"
            )
        return places

    def without(self, places: Collection[int]) -> "Listing":
        """All but the samples at some indices; keys stay what they are."""
        return Listing(row for place, row in enumerate(self._rows()) if place not in places) if places else self

    def drawn(self, key: int, num_samples: int) -> "Listing":
        """This many, drawn without replacement, in their order here; keys stay what they are."""
        shuffled = Shuffled(self, key)
        return Listing(shuffled.first_in_order(num_samples))

    def digest(self, class_names: Sequence[str]) -> str:
        """Hex digest of everything here and of the classes that labels stand for; not of where the images are."""
        digest = hashlib.blake2b(json.dumps(list(class_names)).encode(), digest_size=16)
        self._add_texts(digest.update, "name")
        self._add_numbers(digest.update, "idx", "<i8")
        self._add_numbers(digest.update, "label", "<i4")
        self._add_texts(digest.update, "captions")
        self._add_numbers(digest.update, "has_digest", "?")
        return digest.hexdigest()

    def make_keys_unique(self) -> None:
        """A digest for every key that occurs twice. InputError where that does not help."""
        with on_disk(self._database) as database:
            database.create_function("hash_of", 2, _hash_of_digest, deterministic=True)
            database.execute(f"UPDATE samples SET has_digest = 1 WHERE {_TWICE}")
            database.execute("UPDATE samples SET hash = hash_of(name, idx) WHERE has_digest")
            twice = database.execute(f"SELECT name FROM samples WHERE {_TWICE} ORDER BY hash, place LIMIT 2").fetchall()
        if twice:
            (first,), (second,) = twice
            raise InputError(
                f"{first!a} and {second!a}: two names that differ expected, these are one and the same in Unicode's "
                "composed form; rename or remove one"
            )

    def _add_texts(self, update: Callable[[bytes], None], column: str) -> None:
        """All texts, then where each ends, after a zero."""
        for texts in self._column(column):
            update("".join(texts).encode())
        end = np.zeros(1, "<i8")
        update(end.tobytes())
        for lengths in self._column(f"length(CAST({column} AS BLOB))"):
            ends = np.cumsum([end[0], *lengths], dtype="<i8")[1:]
            update(ends.tobytes())
            end[0] = ends[-1]

    def _add_numbers(self, update: Callable[[bytes], None], column: str, kind: str) -> None:
        for numbers in self._column(column):
            update(np.array(numbers, kind).tobytes())

    def _column(self, column: str) -> Iterator[list[Any]]:
        """Its values, many at once."""
        cursor = self._database.execute(f"SELECT {column} FROM samples ORDER BY place")
        while rows := cursor.fetchmany(_AT_ONCE):
            yield [value for (value,) in rows]

    def _rows(self) -> Iterator[tuple[Any, ...]]:
        return self._database.execute(f"SELECT {COLUMNS}, has_digest, hash FROM samples ORDER BY place")

    def _one(self, query: str, *values: object) -> tuple[Any, ...]:
        return self._database.execute(query, values).fetchone()


def in_order(samples: SampleTable) -> Listing:
    """The one order of a raw split, whatever the file system says: by UTF-8 bytes of the NFC name, then by index.

    InputError for two names that differ only in how Unicode composes their letters.
    """
    keyed = ((row, plain_key(row[0])) for row in samples.in_order())
    listing = Listing((*row, len(key) > MAX_KEY_BYTES, _signed(key_hash(key))) for row, key in keyed)
    listing.make_keys_unique()
    return listing


@final
class Shuffled:
    """A list in the order of `permutation(key, len(listing))`, which never is in memory."""

    def __init__(self, listing: Listing, key: int) -> None:
        self._database = database = listing._database
        self._order = f"order_{key:x}"
        if database.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (self._order,)).fetchone():
            return
        with on_disk(database):
            database.execute("CREATE TABLE words (word INTEGER, place INTEGER)")
            for start in range(0, len(listing), _AT_ONCE):
                words = philox_words(key, min(_AT_ONCE, len(listing) - start), counter=start // 4)
                signed = (words ^ np.uint64(1 << 63)).view(np.int64)  # in the same order
                database.executemany(
                    "INSERT INTO words VALUES (?, ?)", ((word, start + i) for i, word in enumerate(signed.tolist()))
                )
            database.execute(f"CREATE TABLE {self._order} AS SELECT place FROM words ORDER BY word, place")
            database.execute("DROP TABLE words")

    def slice(self, start: int, stop: int) -> Slice:
        """The samples at [start, stop) in this order."""
        return Slice(
            self._database.execute(
                f"SELECT {COLUMNS}, has_digest FROM {self._order} JOIN samples USING (place) "
                f"WHERE {self._order}.rowid > ? AND {self._order}.rowid <= ? ORDER BY {self._order}.rowid",
                (start, stop),
            )
        )

    def first_in_order(self, num_samples: int) -> Iterator[tuple[Any, ...]]:
        """Rows of the first ones in this order, in the order of the list."""
        return self._database.execute(
            f"SELECT {COLUMNS}, has_digest, hash FROM samples WHERE place IN "
            f"(SELECT place FROM {self._order} WHERE rowid <= ?) ORDER BY place",
            (num_samples,),
        )


def _hash_of_digest(name: str, index: int) -> int:
    return _signed(key_hash(digest_key(name, index)))


def _signed(unsigned: int) -> int:
    """The same 64 bits as SQLite holds them."""
    return unsigned - (1 << 64) if unsigned >> 63 else unsigned
