"""STL-10 as published: whole files of uint8, each image as three planes in column-major order, labels 1 to 10.

Files are memory-mapped: the unlabelled one has 2.8 GB. Its role in a mixture is pretraining; it has no labels.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import final

import numpy as np

from hjepa_shards.errors import InputError, ShardError
from hjepa_shards.shards.raw_sample import RawSample
from hjepa_shards.sources.base import Provenance, RawSplit, Source, raw_folder

SIDE = 96
CLASSES = (
    *("airplane", "bird", "car", "cat", "deer"),
    *("dog", "horse", "monkey", "ship", "truck"),
)
_IMAGE_BYTES = 3 * SIDE * SIDE
_URL = "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz"
_FILES = {
    "train": ("train_X.bin", "train_y.bin"),
    "test": ("test_X.bin", "test_y.bin"),
    "unlabeled": ("unlabeled_X.bin",),
}


@final
class Stl10Split(RawSplit):
    """One split, images uint8 [96, 96, 3], named by split and row."""

    provenance = Provenance(
        upstream=_URL,
        licence="none stated; the images were taken from ImageNet",
        citation="A. Coates, H. Lee, A. Ng: An Analysis of Single-Layer Networks in Unsupervised Feature "
        "Learning, AISTATS 2011",
    )

    def __init__(self, folder: Path, split: str) -> None:
        self.split = split
        self.paths = [folder / file for file in _FILES[split]]
        self.class_names = CLASSES if len(self.paths) > 1 else ()

    def list_samples(self) -> Sequence[RawSample]:
        return [
            RawSample(name=f"{self.split}/{row:06d}", index=row, label=label)
            for row, label in enumerate(self._labels())
        ]

    def read(self, sample: RawSample) -> np.ndarray:
        return np.ascontiguousarray(self._images[sample.index].transpose(2, 1, 0))

    def files_of(self, samples: Iterable[RawSample]) -> Iterator[Path]:
        return iter(self.paths)

    @cached_property
    def _images(self) -> np.ndarray:
        """uint8 [images, channel, column, row], as on disk."""
        path = self.paths[0]
        num_bytes = _size(path)
        if num_bytes == 0 or num_bytes % _IMAGE_BYTES:
            raise ShardError(
                f"{path}: a multiple of {_IMAGE_BYTES:,} bytes expected, {num_bytes:,} found; download it again: {_URL}"
            )
        try:
            return np.memmap(path, np.uint8, "r").reshape(-1, 3, SIDE, SIDE)
        except OSError as error:
            raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error

    def _labels(self) -> list[int]:
        """From 0; -1 for each image where there are none."""
        num_images = len(self._images)
        if not self.class_names:
            return [-1] * num_images
        path = self.paths[1]
        if _size(path) != num_images:
            raise ShardError(
                f"{path}: a byte for each of the {num_images:,} images of {self.paths[0].name} expected, "
                f"{_size(path):,} bytes found; download both again: {_URL}"
            )
        labels = np.fromfile(path, np.uint8).astype(int) - 1
        wrong = np.flatnonzero((labels < 0) | (labels >= len(CLASSES)))
        if len(wrong):
            raise ShardError(
                f"{path}: labels in 1..10 expected, {labels[wrong[0]] + 1} found at image {wrong[0]:,}; "
                f"download it again: {_URL}"
            )
        return labels.tolist()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def _open(raw: Path | None, split: str, classes: Path | None) -> Stl10Split:
    advice = (
        "`hjepa-shards download stl10` fetches it into data/raw/stl10; give the folder that holds stl10_binary, or "
        "build a part of it with --split"
    )
    return Stl10Split(raw_folder(raw, ("stl10_binary",), _FILES[split], advice), split)


STL10 = Source(
    name="stl10",
    description="photographs of ten kinds of objects, most of them unlabelled",
    layout="stl10_binary/{train_X,train_y,test_X,test_y,unlabeled_X}.bin",
    classes="10",
    images="train 5,000, test 8,000, unlabeled 100,000 of 96x96",
    download="yes",
    splits=("train", "test", "unlabeled"),
    default_splits=("train", "test", "unlabeled"),
    pixels="png",
    open=_open,
)
