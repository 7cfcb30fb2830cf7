"""The samples of somebody else's tars as columns, where objects took four times as much memory."""

from array import array
from collections.abc import Iterator, Sequence
from typing import final

import numpy as np
from numpy.typing import NDArray

from hjepa_shards.columns import Captions, Texts
from hjepa_shards.listing import repeated
from hjepa_shards.sample import RawSample
from hjepa_shards.sidecar import key_hash
from hjepa_shards.sources.tar_members import TarMember


@final
class Words:
    """A few different strings, many times: four bytes each."""

    def __init__(self) -> None:
        self._codes = array("i")
        self._code_of: dict[str, int] = {}
        self._words: list[str] = []

    def __getitem__(self, i: int) -> str:
        return self._words[self._codes[i]]

    def __iter__(self) -> Iterator[str]:
        return map(self._words.__getitem__, self._codes)

    def append(self, word: str) -> None:
        code = self._code_of.setdefault(word, len(self._words))
        if code == len(self._words):
            self._words.append(word)
        self._codes.append(code)

    def different(self) -> set[str]:
        return set(self._words)


@final
class TarTable:
    """What the tars say, in their order; a column a thing."""

    def __init__(self) -> None:
        self.keys = Texts()
        self.tars = array("i")
        self.extensions = Words()
        """Of the images; '' where there is none."""
        self.offsets = array("q")
        """Of the images; -1 where there is none."""
        self.num_bytes = array("q")
        self.labels = Words()
        """What .cls says."""
        self.captions = Captions()

    def __len__(self) -> int:
        return len(self.keys)

    def add(
        self, tar: int, key: str, extension: str, image: TarMember | None, label: str, captions: tuple[str, ...]
    ) -> None:
        self.keys.append(key)
        self.tars.append(tar)
        self.extensions.append(extension)
        self.offsets.append(image.offset if image else -1)
        self.num_bytes.append(image.num_bytes if image else 0)
        self.labels.append(label)
        self.captions.append(captions)

    def places(self) -> NDArray[np.int64]:
        """[samples, 3]: tar, offset and bytes of the image; offset -1 where there is none."""
        places = np.empty((len(self), 3), np.int64)
        places[:, 0], places[:, 1], places[:, 2] = self.tars, self.offsets, self.num_bytes
        return places

    def samples(self, stems: Sequence[str], labels: Sequence[int]) -> Iterator[RawSample]:
        """stems: what stands before the keys of each tar that are in another tar too. labels: one a sample."""
        in_several = self._keys_in_several() if len(stems) > 1 else frozenset()
        for place, (key, extension) in enumerate(zip(self.keys, self.extensions, strict=True)):
            name = f"{key}.{extension}" if extension else key
            if key in in_several:
                name = f"{stems[self.tars[place]]}/{name}"
            yield RawSample(name=name, index=place, label=labels[place], captions=self.captions[place])

    def _keys_in_several(self) -> frozenset[str]:
        hashes = np.fromiter(map(key_hash, self.keys), np.uint64, len(self))
        return frozenset(self.keys[i] for i in np.flatnonzero(np.isin(hashes, repeated(hashes))).tolist())
