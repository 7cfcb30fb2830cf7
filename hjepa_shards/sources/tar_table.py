"""The samples of somebody else's tars as columns: a hundred bytes a sample, where objects took four times as many."""

import sys
from array import array
from collections.abc import Iterable, Sequence
from typing import final, overload

from hjepa_shards.sample import RawSample
from hjepa_shards.sources.tar_members import TarMember


@final
class TarTable:
    """What the tars say, in their order; a column a thing."""

    def __init__(self) -> None:
        self.keys: list[str] = []
        self.tars = array("q")
        self.extensions: list[str] = []
        """Of the images; '' where there is none."""
        self.offsets = array("q")
        """Of the images; -1 where there is none."""
        self.num_bytes = array("q")
        self.labels: list[str] = []
        """What .cls says."""
        self.captions: list[tuple[str, ...]] = []

    def __len__(self) -> int:
        return len(self.keys)

    def add(
        self, tar: int, key: str, extension: str, image: TarMember | None, label: str, captions: tuple[str, ...]
    ) -> None:
        self.keys.append(key)
        self.tars.append(tar)
        self.extensions.append(sys.intern(extension))
        self.offsets.append(image.offset if image else -1)
        self.num_bytes.append(image.num_bytes if image else 0)
        self.labels.append(sys.intern(label))
        self.captions.append(captions)


@final
class TableSamples(Sequence[RawSample]):
    """The table as samples, each made when it is asked for."""

    def __init__(self, table: TarTable, stems: Sequence[str], labels: Sequence[int]) -> None:
        """stems: what stands before the keys of each tar that are in another tar too. labels: one a sample."""
        self._table, self._stems, self._labels = table, stems, labels
        self._in_several = _repeated(table.keys) if len(stems) > 1 else frozenset()

    def __len__(self) -> int:
        return len(self._table)

    @overload
    def __getitem__(self, index: int) -> RawSample: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[RawSample]: ...
    def __getitem__(self, index: int | slice) -> RawSample | Sequence[RawSample]:
        places = range(len(self))[index]
        return [self._at(place) for place in places] if isinstance(places, range) else self._at(places)

    def _at(self, place: int) -> RawSample:
        table = self._table
        key, extension = table.keys[place], table.extensions[place]
        name = f"{key}.{extension}" if extension else key
        if key in self._in_several:
            name = f"{self._stems[table.tars[place]]}/{name}"
        return RawSample(name=name, index=place, label=self._labels[place], captions=table.captions[place])


def _repeated(keys: Iterable[str]) -> frozenset[str]:
    seen: set[str] = set()
    return frozenset(key for key in keys if key in seen or seen.add(key))
