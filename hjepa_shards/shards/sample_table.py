"""The samples of a raw split in a temporary file: no process's memory knows how many there are.

SQLite sorts, finds doubles and looks up by place on disk, with a few megabytes of its own. Its folder is SQLite's
choice: SQLITE_TMPDIR, else TMPDIR, else /var/tmp; a build takes some 150 bytes an image there.
"""

import json
import sqlite3
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, final

from hjepa_shards.errors import InputError
from hjepa_shards.shards.raw_sample import Extent, RawSample

_CACHE_KIB = 4096

COLUMNS = "name, idx, label, captions, file, offset, num_bytes"
"""Of a sample, as `to_row` gives them. captions: JSON, '' where there are none."""

Row = tuple[Any, ...]


class _Temporary(sqlite3.Connection):
    def __del__(self) -> None:
        self.close()


def temporary(schema: str) -> sqlite3.Connection:
    """A database in a temporary file; it goes with the last who holds it."""
    database = sqlite3.connect("", isolation_level=None, check_same_thread=False, factory=_Temporary)
    database.executescript(
        f"PRAGMA journal_mode=OFF; PRAGMA synchronous=OFF; PRAGMA temp_store=FILE; PRAGMA cache_size=-{_CACHE_KIB};"
    )
    database.executescript(schema)
    return database


@contextmanager
def on_disk(database: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """Many rows written, or sorted, at once. InputError where the disk is full."""
    try:
        database.execute("BEGIN")
        yield database
        database.execute("COMMIT")
    except sqlite3.OperationalError as error:
        raise InputError(
            f"the list of samples: room in the folder of temporary files expected, {error}; make room there, or name "
            "another folder with TMPDIR=FOLDER"
        ) from error


@final
class SampleTable:
    """Samples, in the order in which they came."""

    def __init__(self, samples: Iterable[RawSample]) -> None:
        """InputError for a name that is no proper text."""
        self._database = temporary(f"CREATE TABLE samples (place INTEGER PRIMARY KEY, composed TEXT, {COLUMNS})")
        rows = ((place, _composed(sample.name), *to_row(sample)) for place, sample in enumerate(samples))
        try:
            with on_disk(self._database):
                self._database.executemany(f"INSERT INTO samples VALUES (?, ?{', ?' * 7})", rows)
        except UnicodeEncodeError as error:
            raise InputError(f"{error.object!a}: a name of proper Unicode expected; rename it") from error
        [self._len] = self._database.execute("SELECT count(*) FROM samples").fetchone()

    def __len__(self) -> int:
        return self._len

    def __iter__(self) -> Iterator[RawSample]:
        return map(to_sample, self._database.execute(f"SELECT {COLUMNS} FROM samples ORDER BY place"))

    def __getitem__(self, place: int) -> RawSample:
        row = self._database.execute(f"SELECT {COLUMNS} FROM samples WHERE place = ?", (int(place),)).fetchone()
        if row is None:
            raise IndexError(place)
        return to_sample(row)

    def in_order(self) -> Iterator[Row]:
        """By UTF-8 bytes of the NFC name, then by index."""
        return self._database.execute(f"SELECT {COLUMNS} FROM samples ORDER BY coalesce(composed, name), idx")

    def twice(self) -> str | None:
        """A name that two samples have."""
        query = "SELECT name FROM samples GROUP BY name HAVING count(*) > 1 LIMIT 1"
        with on_disk(self._database) as database:
            found = database.execute(query).fetchone()
        return found and found[0]

    def empty_classes(self, class_names: Sequence[str]) -> list[str]:
        """The classes without an image."""
        filled = self.labels()
        return [name for label, name in enumerate(class_names) if label not in filled]

    def labels(self) -> set[int]:
        """Those that samples have; -1, which stands for none, is not among them."""
        found = self._database.execute("SELECT DISTINCT label FROM samples WHERE label >= 0")
        return {label for (label,) in found}


def to_row(sample: RawSample) -> Row:
    """Halves of surrogate pairs, which JSON can carry and UTF-8 cannot, become question marks in captions."""
    proper = [caption.encode("utf-8", "replace").decode() for caption in sample.captions]
    captions = json.dumps(proper, ensure_ascii=False) if proper else ""
    return sample.name, sample.index, sample.label, captions, *(sample.extent or (None, None, None))


def to_sample(row: Sequence[Any]) -> RawSample:
    """The sample whose COLUMNS are the row's first."""
    name, index, label, captions, file, offset, num_bytes = row[:7]
    return RawSample(
        name=name,
        index=index,
        label=label,
        captions=tuple(json.loads(captions)) if captions else (),
        extent=None if file is None else Extent(file, offset, num_bytes),
    )


def _composed(name: str) -> str | None:
    """The name in Unicode's composed form, None where it is."""
    return None if unicodedata.is_normalized("NFC", name) else unicodedata.normalize("NFC", name)
