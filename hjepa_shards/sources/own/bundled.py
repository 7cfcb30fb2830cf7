"""Real images that ship inside scikit-learn, so that everything runs without a download.

    digits      1,797 handwritten digits, 8x8 gray
    photos      64x64 tiles of two photographs; train and val from disjoint parts of both
    scattered   a digit at a keyed random location on a 32x32 photo tile, darker or lighter than what it covers:
                a person reads it, a linear model on pixels does not

The files are read where scikit-learn keeps them: importing `sklearn.datasets` takes seconds in every worker
process. Choices are keyed, arithmetic is on integers: the same pixels wherever the JPEG decoders agree.
"""

import gzip
import importlib.util
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import final

import numpy as np
from PIL import Image

from hjepa_shards.base.keyed_random import derive_key, permutation, philox_words
from hjepa_shards.errors import InputError
from hjepa_shards.shards.raw_sample import RawSample
from hjepa_shards.sources.base import Provenance, RawSplit, Source

NUM_DIGITS = 1797
NUM_TEST_DIGITS = 450
NUM_SCATTERED = {"train": 8192, "test": 2048}

_PHOTO_NAMES = ("china", "flower")
_DIGIT = 8
_SCENE = 32
_TILE = 64
_STRIDE = 32
_TRAIN_FROM = 224
"""Columns of a photograph (640 wide) from here on are train, those before are val; both show all there is."""

_DIGITS_FROM = Provenance(
    upstream="scikit-learn `load_digits`: the test set of UCI's optical recognition of handwritten digits",
    licence="CC BY 4.0",
    citation="E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits, UCI ML Repository, 1998",
)
_PHOTOS_FROM = Provenance(
    upstream="scikit-learn `load_sample_images`: china.jpg, flower.jpg",
    licence="CC BY 2.0",
    citation="photographs by danielbuechele (china.jpg) and vultilion (flower.jpg), flickr.com, 2011",
)


@final
class Digits(RawSplit):
    """Handwritten digits, uint8 [8, 8]: ink is bright, 0..16 of the original scaled to 0..255."""

    class_names = tuple("0123456789")
    provenance = _DIGITS_FROM

    def __init__(self, split: str) -> None:
        self.split = split

    def list_samples(self) -> Sequence[RawSample]:
        _, labels = self._table
        return [RawSample(name=f"{row:04d}", index=row, label=int(labels[row])) for row in _digit_rows(self.split)]

    def read(self, sample: RawSample) -> np.ndarray:
        ink, _ = self._table
        return ((ink[sample.index].astype(np.uint16) * 255 + 8) // 16).astype(np.uint8)

    @cached_property
    def _table(self) -> tuple[np.ndarray, np.ndarray]:
        return _load_digits()


@final
class Photos(RawSplit):
    """Overlapping tiles of the two photographs, uint8 [64, 64, 3], without labels."""

    class_names = ()
    provenance = _PHOTOS_FROM

    def __init__(self, split: str) -> None:
        self.split = split

    def list_samples(self) -> Sequence[RawSample]:
        return [RawSample(name=name, index=index) for index, name in enumerate(self._locations)]

    def read(self, sample: RawSample) -> np.ndarray:
        photo, top, left = self._locations[sample.name]
        return self._regions[photo][top : top + _TILE, left : left + _TILE]

    @cached_property
    def _regions(self) -> list[np.ndarray]:
        return _load_photos(self.split)

    @cached_property
    def _locations(self) -> dict[str, tuple[int, int, int]]:
        return {
            f"{name}/{top:03d}-{left:03d}": (photo, top, left)
            for photo, name in enumerate(_PHOTO_NAMES)
            for top in range(0, self._regions[photo].shape[0] - _TILE + 1, _STRIDE)
            for left in range(0, self._regions[photo].shape[1] - _TILE + 1, _STRIDE)
        }


@final
class Scattered(RawSplit):
    """Digits on photo tiles, uint8 [32, 32, 3]. Digits and photo regions of the test are not in train."""

    class_names = tuple("0123456789")
    provenance = Provenance(
        upstream=f"{_DIGITS_FROM.upstream}; {_PHOTOS_FROM.upstream}",
        licence="CC BY 4.0 (digits), CC BY 2.0 (photographs)",
        citation=f"{_DIGITS_FROM.citation}; {_PHOTOS_FROM.citation}",
    )

    def __init__(self, split: str) -> None:
        self.split = split

    def list_samples(self) -> Sequence[RawSample]:
        count = NUM_SCATTERED[self.split]
        return [RawSample(name=f"{index:05d}", index=index, label=index % 10) for index in range(count)]

    def read(self, sample: RawSample) -> np.ndarray:
        draws = self._draws[sample.index].tolist()
        digits = self._digits[sample.label]
        digit = digits[draws[0] % len(digits)].astype(np.int32)
        region = self._regions[draws[1] % len(_PHOTO_NAMES)]
        height, width, _ = region.shape
        top, left = draws[2] % (height - _SCENE + 1), draws[3] % (width - _SCENE + 1)
        down, across = draws[4] % (_SCENE - _DIGIT + 1), draws[5] % (_SCENE - _DIGIT + 1)
        scene = region[top : top + _SCENE, left : left + _SCENE].copy()
        patch = scene[down : down + _DIGIT, across : across + _DIGIT]
        colour = 0 if int(patch.sum(dtype=np.int64)) > 127 * patch.size else 255
        patch[:] = (patch * (16 - digit[:, :, None]) + colour * digit[:, :, None] + 8) // 16
        return scene

    @cached_property
    def _digits(self) -> list[np.ndarray]:
        """By label: uint8 [digits of this split, 8, 8]."""
        ink, labels = _load_digits()
        rows = _digit_rows(self.split)
        return [ink[rows][labels[rows] == label] for label in range(10)]

    @cached_property
    def _regions(self) -> list[np.ndarray]:
        return _load_photos(self.split)

    @cached_property
    def _draws(self) -> np.ndarray:
        """uint64 [samples, 6]: digit, photograph, top and left of the tile, of the digit in the tile."""
        count = NUM_SCATTERED[self.split]
        return philox_words(derive_key(0, "scattered", self.split), count * 6).reshape(count, 6)


def _digit_rows(split: str) -> list[int]:
    """Rows of the digits table that belong to a split; the same for `digits` and `scattered`."""
    order = permutation(derive_key(0, "digits", "split"), NUM_DIGITS)
    rows = order[:NUM_TEST_DIGITS] if split == "test" else order[NUM_TEST_DIGITS:]
    return sorted(rows.tolist())


def _load_digits() -> tuple[np.ndarray, np.ndarray]:
    """uint8 [1797, 8, 8] ink in 0..16, int64 [1797] labels."""
    path = inside_sklearn("datasets/data/digits.csv.gz")
    with gzip.open(path, "rt", encoding="ascii") as lines:
        table = np.array([line.split(",") for line in lines], dtype=np.float64).astype(np.int64)
    if table.shape != (NUM_DIGITS, _DIGIT * _DIGIT + 1):
        raise InputError(
            f"{path}: {NUM_DIGITS} rows of 65 numbers expected, {table.shape} found; reinstall scikit-learn"
        )
    return table[:, :-1].astype(np.uint8).reshape(-1, _DIGIT, _DIGIT), table[:, -1]


def _load_photos(split: str) -> list[np.ndarray]:
    """uint8 [427, 416 (train) or 224 (val, test), 3] of each photograph."""
    columns = slice(_TRAIN_FROM, None) if split == "train" else slice(_TRAIN_FROM)
    regions = []
    for name in _PHOTO_NAMES:
        with Image.open(inside_sklearn(f"datasets/images/{name}.jpg")) as photo:
            regions.append(np.asarray(photo.convert("RGB"))[:, columns])
    return regions


def inside_sklearn(relative: str) -> Path:
    """A file that ships with scikit-learn. InputError where it is not installed."""
    spec = importlib.util.find_spec("sklearn")
    folders = (spec.submodule_search_locations or []) if spec else []
    for folder in folders:
        if (path := Path(folder) / relative).is_file():
            return path
    raise InputError(
        f"scikit-learn's {relative} expected, {'none' if folders else 'no scikit-learn'} found; "
        "pip install scikit-learn"
    )


DIGITS = Source(
    name="digits",
    description="handwritten digits inside scikit-learn",
    layout="",
    classes="10",
    images="train 1,347, test 450 of 8x8",
    download="no need",
    splits=("train", "test"),
    default_splits=("train", "test"),
    pixels="png",
    open=lambda raw, split, classes: Digits(split),
)

PHOTOS = Source(
    name="photos",
    description="tiles of the two photographs inside scikit-learn",
    layout="",
    classes="none",
    images="train 288, val 144 of 64x64",
    download="no need",
    splits=("train", "val"),
    default_splits=("train", "val"),
    pixels="png",
    open=lambda raw, split, classes: Photos(split),
)

SCATTERED = Source(
    name="scattered",
    description="digits at random locations on photo tiles: a small task that pixels alone do not solve",
    layout="",
    classes="10",
    images="train 8,192, test 2,048 of 32x32",
    download="no need",
    splits=("train", "test"),
    default_splits=("train", "test"),
    pixels="png",
    open=lambda raw, split, classes: Scattered(split),
)
