"""A built split as a list, for evaluation, notebooks and map-style DataLoaders: `SplitView(place)[i]` is sample i."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final, overload

import numpy as np
from numpy.typing import NDArray

from hjepa_shards.loader.remote_store import store_at
from hjepa_shards.loader.sample_reader import SampleReader
from hjepa_shards.shards.location import Place, manifest_at
from hjepa_shards.storage.remote_files import is_remote


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample of a split."""

    image: NDArray[np.uint8]
    """RGB [H, W, 3], upright."""
    label: int
    """-1: none."""
    captions: tuple[str, ...]


@final
class SplitView(Sequence[Sample]):
    """The samples in manifest order, each read when it is needed. Threads and workers may share it."""

    def __init__(self, place: str | Path) -> None:
        """place: a folder or URL. InputError or ManifestError where there is no built split."""
        self.place: Place = str(place).rstrip("/") if is_remote(str(place)) else Path(place)
        self.manifest = manifest_at(self.place)
        self._reader = SampleReader(store_at(self.place, self.manifest), self.manifest)

    @property
    def class_names(self) -> Sequence[str]:
        return self.manifest.class_names

    def __len__(self) -> int:
        return self.manifest.num_samples

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | Sequence[Sample]:
        places = range(len(self))[index]
        return self._at(places) if isinstance(places, range) else self._at([places])[0]

    def close(self) -> None:
        """Close the shards; they open again when they are needed."""
        self._reader.close()

    def __reduce__(self) -> tuple[type["SplitView"], tuple[Place]]:
        return SplitView, (self.place,)  # a spawned worker opens its own

    def _at(self, samples: Sequence[int]) -> list[Sample]:
        located = self._reader.locate_all(samples)
        return [
            Sample(self._reader.pixels(found, data), found.label, self._reader.captions(found))
            for found, data in zip(located, self._reader.gather(located), strict=True)
        ]
