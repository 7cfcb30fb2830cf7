"""The samples of somebody else's tars as columns, where objects took four times as much memory."""

from array import array
from collections.abc import Iterator, Sequence
from typing import final

import numpy as np
from numpy.typing import NDArray

from hjepa_shards.columns import Captions, Samples, Texts
from hjepa_shards.listing import repeated
from hjepa_shards.sidecar import key_hash
from hjepa_shards.sources.tar_members import TarMember
from hjepa_shards.tar import split_name


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
        self.names = Texts()
        """<key>.<extension of the image>; the key alone where there is no image."""
        self.key_hashes = array("Q")
        self.tars = array("i")
        self.offsets = array("q")
        """Of the images; -1 where there is none."""
        self.num_bytes = array("q")
        self.labels = Words()
        """What .cls says."""
        self.captions = Captions()

    def __len__(self) -> int:
        return len(self.names)

    def add(
        self, tar: int, key: str, extension: str, image: TarMember | None, label: str, captions: tuple[str, ...]
    ) -> None:
        self.names.append(f"{key}.{extension}" if extension else key)
        self.key_hashes.append(key_hash(key))
        self.tars.append(tar)
        self.offsets.append(image.offset if image else -1)
        self.num_bytes.append(image.num_bytes if image else 0)
        self.labels.append(label)
        self.captions.append(captions)

    def key(self, place: int) -> str:
        key, _ = split_name(self.names[place])
        return key

    def samples(self, stems: Sequence[str], labels: NDArray[np.int32]) -> Samples:
        """The same columns, nothing is copied.

        stems: what stands before the keys of each tar that are in another tar too.  labels: int32 [samples].
        """
        indices = np.arange(len(self), dtype=np.int64)
        return Samples(self._unique_names(stems), indices, labels, self.captions)

    def _unique_names(self, stems: Sequence[str]) -> Texts:
        hashes = np.frombuffer(self.key_hashes, np.uint64)
        in_several = np.isin(hashes, repeated(hashes)) if len(stems) > 1 else np.zeros(0, np.bool_)
        if not in_several.any():
            return self.names
        names = Texts()
        for name, tar, several in zip(self.names, self.tars, in_several.tolist(), strict=True):
            names.append(f"{stems[tar]}/{name}" if several else name)
        return names
