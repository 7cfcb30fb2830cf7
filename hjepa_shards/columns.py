"""The samples of a raw split as columns: some fifty bytes a sample and its name, instead of 300 as objects."""

import json
from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from hjepa_shards.errors import InputError
from hjepa_shards.sample import RawSample


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

    def columns(self) -> tuple[bytearray, memoryview]:
        """What a digest covers: no two lists have the same."""
        return self._data, np.frombuffer(self._ends, np.int64).astype("<i8", copy=False).data

    def _utf8(self, i: int) -> bytearray:
        return self._data[self._ends[i] : self._ends[i + 1]]

    def _append(self, utf8: bytes | bytearray) -> None:
        self._data += utf8
        self._ends.append(len(self._data))


@final
class Captions:
    """Each sample's captions: JSON, '' where there are none."""

    def __init__(self, texts: Texts | None = None) -> None:
        self.texts = texts or Texts()

    def __getitem__(self, i: int) -> tuple[str, ...]:
        text = self.texts[i]
        return tuple(json.loads(text)) if text else ()

    def append(self, captions: tuple[str, ...]) -> None:
        """Halves of surrogate pairs, which JSON can carry and UTF-8 cannot, become question marks."""
        proper = [caption.encode("utf-8", "replace").decode() for caption in captions]
        self.texts.append(json.dumps(proper, ensure_ascii=False) if proper else "")


@final
@dataclass(frozen=True, slots=True)
class Samples:
    """Samples in some order; each is made when it is asked for."""

    names: Texts
    indices: NDArray[np.int64]
    labels: NDArray[np.int32]
    captions: Captions

    @classmethod
    def of(cls, samples: Iterable[RawSample]) -> "Samples":
        """As they come. InputError for a name that is no proper text."""
        names, captions, indices, labels = Texts(), Captions(), array("q"), array("i")
        for sample in samples:
            try:
                names.append(sample.name)
            except UnicodeEncodeError as error:
                raise InputError(f"{sample.name!a}: a name of proper Unicode expected; rename it") from error
            captions.append(sample.captions)
            indices.append(sample.index)
            labels.append(sample.label)
        return cls(names, np.frombuffer(indices, np.int64), np.frombuffer(labels, np.int32), captions)

    def __len__(self) -> int:
        return len(self.names)

    def __iter__(self) -> Iterator[RawSample]:
        return (self[place] for place in range(len(self)))

    def __getitem__(self, place: int) -> RawSample:
        return RawSample(
            name=self.names[place],
            index=int(self.indices[place]),
            label=int(self.labels[place]),
            captions=self.captions[place],
        )

    def take(self, chosen: NDArray[np.int64]) -> "Samples":
        return Samples(
            self.names.take(chosen),
            self.indices[chosen],
            self.labels[chosen],
            Captions(self.captions.texts.take(chosen)),
        )

    def empty_classes(self, class_names: Sequence[str]) -> list[str]:
        """The classes without an image."""
        filled = set(np.unique(self.labels).tolist())
        return [name for label, name in enumerate(class_names) if label not in filled]
