"""A built split as a list, for evaluation, notebooks and map-style DataLoaders: `SplitView(place)[i]` is sample i."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final, overload

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hjepa_shards.base.notebook_html import SHOWN_IMAGES, Figure, pictures
from hjepa_shards.base.shown_text import counted, proper
from hjepa_shards.errors import InputError, ShardError
from hjepa_shards.images.thumbnail import SIDE, thumbnail
from hjepa_shards.loader.remote_store import store_at
from hjepa_shards.loader.sample_reader import DAMAGE, Located, SampleReader
from hjepa_shards.shards.location import Place, manifest_at
from hjepa_shards.shards.manifest import class_name
from hjepa_shards.storage.remote_files import is_remote
from hjepa_shards.storage.shard_cache import CacheConfig, shard_cache

Transform = Callable[[Image.Image], Any]
"""An RGB image, as torchvision's datasets hand it to theirs -> what training or evaluation takes."""

_LABELS_AT_ONCE = 1 << 14


@dataclass(frozen=True, slots=True)
class Sample:
    """One sample of a split."""

    image: Any
    """RGB uint8 [H, W, 3], upright; what the view's transform made of it where it has one."""
    label: int
    """-1: none."""
    captions: tuple[str, ...]

    def __repr__(self) -> str:
        kind, shape = type(self.image).__name__, getattr(self.image, "shape", None)
        label = f"label {self.label}" if self.label >= 0 else "no label"
        return (
            f"<Sample: {kind}{'' if shape is None else f' {list(shape)}'}, {label}, "
            f"{counted(len(self.captions), 'caption', 'captions')}>"
        )

    def _repr_html_(self) -> str | None:
        """The picture; None, which leaves the line of text, where a transform made something else of it."""
        if not (isinstance(self.image, np.ndarray) and self.image.dtype == np.uint8 and self.image.shape[2:] == (3,)):
            return None
        line = f"label {self.label}" if self.label >= 0 else "no label"
        picture = thumbnail(Image.fromarray(self.image))
        return pictures("Sample", [Figure(image=picture, line=line, title=line)], self.captions[:5])


@final
class SplitView(Sequence[Sample]):
    """The samples in manifest order, each read when it is needed. Threads and workers may share it."""

    def __init__(self, place: str | Path, transform: Transform | None = None, cache: CacheConfig | None = None) -> None:
        """place: a folder or URL; cache: for a URL. InputError or ManifestError where there is no built split.

        transform: called with each image, a PIL.Image in RGB, when its sample is read; what it returns is the
        sample's `image`. A random one draws from its caller's generators, as with every map-style dataset. For workers
        that are spawned it must be picklable: a function of a module, or an object such as torchvision's Compose.
        """
        self.place: Place = str(place).rstrip("/") if is_remote(str(place)) else Path(place)
        self.transform = transform
        self.cache = cache
        self.manifest = manifest_at(self.place)
        self._reader = SampleReader(store_at(self.place, self.manifest, shard_cache(cache)), self.manifest)

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

    def labels(self, limit: int | None = None) -> NDArray[np.int64]:
        """Of all samples, or of the first `limit`, in manifest order; -1: none. No image is read.

        SidecarError where an index is damaged.
        """
        num = min(len(self), len(self) if limit is None else limit)
        labels = np.empty(num, np.int64)
        for start in range(0, num, _LABELS_AT_ONCE):
            samples = range(start, min(start + _LABELS_AT_ONCE, num))
            labels[samples.start : samples.stop] = [found.label for found in self._reader.locate_all(samples)]
        return labels

    def close(self) -> None:
        """Close the shards; they open again when they are needed."""
        self._reader.close()

    def __reduce__(self) -> tuple[type["SplitView"], tuple[Place, Transform | None, CacheConfig | None]]:
        return SplitView, (self.place, self.transform, self.cache)  # a spawned worker opens its own

    def __repr__(self) -> str:
        return f"<{self._title()}>"

    def _repr_html_(self) -> str:
        """The first images as they are stored, with their labels or captions; errors are shown, not raised."""
        figures, notes = [], []
        try:
            figures += self._figures()
        except (InputError, ShardError) as error:
            notes.append(str(error))
        more = len(self) - len(figures)
        return pictures(self._title(), figures, [*notes, f"and {more:,} more"] if more else notes)

    def _title(self) -> str:
        transform = self.transform
        named = "" if transform is None else f", transform {getattr(transform, '__name__', type(transform).__name__)}"
        return f"SplitView {self.manifest.in_words()}, at {proper(str(self.place))}{named}"

    def _figures(self) -> Iterator[Figure]:
        for index in range(min(len(self), SHOWN_IMAGES)):
            try:
                yield self._figure(index)
            except DAMAGE as error:
                yield Figure(image=b"", line="damaged", title=str(error))

    def _figure(self, index: int) -> Figure:
        located = self._reader.locate(index)
        least = min(located.width, located.height) // SIDE
        pixels = self._reader.pixels(located, shrink=next((scale for scale in (8, 4, 2) if scale <= least), 1))
        captions = self._reader.captions(located)
        name = class_name(self.class_names, located.label)
        words = " · ".join([*([name] if name else []), *captions[:1]])
        title = f"{words} · " if words else ""
        return Figure(
            image=thumbnail(Image.fromarray(pixels)),
            line=words or f"sample {index}",
            title=f"{title}{located.width} × {located.height} · sample {index:,}",
        )

    def _at(self, samples: Sequence[int]) -> list[Sample]:
        located = self._reader.locate_all(samples)
        return [
            Sample(self._image(found, data), found.label, self._reader.captions(found))
            for found, data in zip(located, self._reader.gather(located), strict=True)
        ]

    def _image(self, located: Located, data: bytes | None) -> Any:
        pixels = self._reader.pixels(located, data)
        return pixels if self.transform is None else self.transform(Image.fromarray(pixels))
