"""What third-party tars say of each sample, in a temporary file: names and labels depend on all of them."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, final

from hjepa_shards.shards.sample_table import on_disk, temporary


class TarSample(NamedTuple):
    """The members of one key."""

    tar: int
    key: str
    extension: str
    """Of the image; '' where there is none."""
    offset: int | None
    num_bytes: int | None
    """Of the image; None where there is none, below 0 where `offset` is that of a header that says why."""
    label: str
    """What .cls says, '' where there is none."""
    captions: str
    """JSON, '' where there are none."""


@final
class TarTable:
    """The samples, in the order of the tars."""

    def __init__(self, samples: Iterable[TarSample]) -> None:
        self._database = temporary(
            "CREATE TABLE samples (place INTEGER PRIMARY KEY, tar, key, extension, offset, num_bytes, label, captions)"
        )
        with on_disk(self._database) as database:
            database.executemany(
                "INSERT INTO samples VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                ((place, *sample) for place, sample in enumerate(samples)),
            )
            database.execute(
                "CREATE TABLE in_several AS SELECT key FROM samples GROUP BY key HAVING count(*) > 1"
            )  # a key is one sample of its tar
        [self._len] = self._one("SELECT count(*) FROM samples")

    def __len__(self) -> int:
        return self._len

    def rows(self) -> Iterator[tuple[int, TarSample, bool]]:
        """Place, sample, and whether other tars have its key too."""
        for place, *sample, several in self._database.execute(
            "SELECT place, tar, key, extension, offset, num_bytes, label, captions, key IN in_several "
            "FROM samples ORDER BY place"
        ):
            yield place, TarSample(*sample), bool(several)

    def has_images(self) -> bool:
        """Whether any sample has one."""
        return bool(self._one("SELECT EXISTS (SELECT 1 FROM samples WHERE num_bytes >= 0)")[0])

    def labels(self) -> set[str]:
        """The different ones."""
        return {label for (label,) in self._database.execute("SELECT DISTINCT label FROM samples WHERE label != ''")}

    def unlabelled(self) -> tuple[int, str]:
        """How many have no label, and the key of the first of them."""
        [count] = self._one("SELECT count(*) FROM samples WHERE label = ''")
        first = self._one("SELECT key FROM samples WHERE label = '' ORDER BY place LIMIT 1")
        return count, first[0] if first else ""

    def _one(self, query: str) -> tuple[Any, ...]:
        return self._database.execute(query).fetchone()
