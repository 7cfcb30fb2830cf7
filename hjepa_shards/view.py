"""A built split as a list, for evaluation, notebooks and map-style DataLoaders: `SplitView(folder)[i]` is sample i."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final, overload

import numpy as np
from numpy.typing import NDArray

from hjepa_shards.manifest import load_manifest
from hjepa_shards.reader import SampleReader
from hjepa_shards.store import LocalStore


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
    """The samples in manifest order, each read when it is asked for. Threads and workers may share it."""

    def __init__(self, folder: str | Path) -> None:
        """ManifestError where no built split lies there."""
        self.folder = Path(folder)
        self.manifest = load_manifest(self.folder)
        self._reader = SampleReader(LocalStore(self.folder, self.manifest), self.manifest)

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
        return [self._at(place) for place in places] if isinstance(places, range) else self._at(places)

    def close(self) -> None:
        """Close the shards; they open again when they are asked for."""
        self._reader.close()

    def __reduce__(self) -> tuple[type["SplitView"], tuple[Path]]:
        return SplitView, (self.folder,)  # a spawned worker opens its own

    def _at(self, sample: int) -> Sample:
        located = self._reader.locate(sample)
        return Sample(self._reader.pixels(located), located.label, self._reader.captions(located))
