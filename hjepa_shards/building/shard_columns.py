"""The samples of one shard as columns: what a task is sent, some seventy bytes a sample instead of 300 as objects."""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, final

from hjepa_shards.shards.raw_sample import RawSample, digest_key, plain_key
from hjepa_shards.shards.sample_table import to_sample


@final
class Texts:
    """Many strings in one buffer."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._ends = array("q", [0])
        """Where each ends in `data`, after a zero."""

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))

    def __getitem__(self, i: int) -> str:
        return self._data[self._ends[i] : self._ends[i + 1]].decode()

    def append(self, text: str) -> None:
        self._data += text.encode()
        self._ends.append(len(self._data))


@final
class Slice:
    """The samples of one shard with their keys, in order."""

    def __init__(self, rows: Iterable[Sequence[Any]]) -> None:
        """rows: COLUMNS of a table, then whether the key is a digest."""
        self._names, self._captions = Texts(), Texts()
        self._numbers = tuple(array(kind) for kind in "qiiqqb")
        """idx, label, file, offset, num_bytes; has_digest."""
        for name, index, label, captions, *extent, has_digest in rows:
            self._names.append(name)
            self._captions.append(captions)
            file, offset, num_bytes = extent if extent[0] is not None else (-1, 0, 0)
            for column, number in zip(self._numbers, (index, label, file, offset, num_bytes, has_digest), strict=True):
                column.append(number)

    def __len__(self) -> int:
        return len(self._names)

    def keyed(self) -> Iterator[tuple[str, RawSample]]:
        for name, captions, index, label, *extent, has_digest in zip(
            self._names, self._captions, *self._numbers, strict=True
        ):
            sample = to_sample((name, index, label, captions, *(extent if extent[0] >= 0 else (None, None, None))))
            yield key_of(sample.name, sample.index, has_digest), sample


def key_of(name: str, index: int, has_digest: bool | int) -> str:
    return digest_key(name, index) if has_digest else plain_key(name)
