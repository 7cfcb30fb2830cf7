"""CIFAR-10 and CIFAR-100 as published: python pickles (`-py`, `-python`) or records (`-bin`, `-binary`).

A pickle holds the original file names, and samples are called by them; they repeat in CIFAR-100, but not with
the same row. Records hold no names: their samples are numbered, and a build from them has another order.
"""

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, final

import numpy as np

from hjepa_shards.errors import InputError, ShardError
from hjepa_shards.shards.raw_sample import RawSample
from hjepa_shards.sources.base import Provenance, RawSplit, Source, raw_folder
from hjepa_shards.sources.formats.pickles import load_pickle

SIDE = 32
_PIXEL_BYTES = 3 * SIDE * SIDE

CIFAR10_CLASSES = (
    *("airplane", "automobile", "bird", "cat", "deer"),
    *("dog", "frog", "horse", "ship", "truck"),
)

CIFAR100_GROUPS = {
    "aquatic_mammals": ("beaver", "dolphin", "otter", "seal", "whale"),
    "fish": ("aquarium_fish", "flatfish", "ray", "shark", "trout"),
    "flowers": ("orchid", "poppy", "rose", "sunflower", "tulip"),
    "food_containers": ("bottle", "bowl", "can", "cup", "plate"),
    "fruit_and_vegetables": ("apple", "mushroom", "orange", "pear", "sweet_pepper"),
    "household_electrical_devices": ("clock", "keyboard", "lamp", "telephone", "television"),
    "household_furniture": ("bed", "chair", "couch", "table", "wardrobe"),
    "insects": ("bee", "beetle", "butterfly", "caterpillar", "cockroach"),
    "large_carnivores": ("bear", "leopard", "lion", "tiger", "wolf"),
    "large_man-made_outdoor_things": ("bridge", "castle", "house", "road", "skyscraper"),
    "large_natural_outdoor_scenes": ("cloud", "forest", "mountain", "plain", "sea"),
    "large_omnivores_and_herbivores": ("camel", "cattle", "chimpanzee", "elephant", "kangaroo"),
    "medium_mammals": ("fox", "porcupine", "possum", "raccoon", "skunk"),
    "non-insect_invertebrates": ("crab", "lobster", "snail", "spider", "worm"),
    "people": ("baby", "boy", "girl", "man", "woman"),
    "reptiles": ("crocodile", "dinosaur", "lizard", "snake", "turtle"),
    "small_mammals": ("hamster", "mouse", "rabbit", "shrew", "squirrel"),
    "trees": ("maple_tree", "oak_tree", "palm_tree", "pine_tree", "willow_tree"),
    "vehicles_1": ("bicycle", "bus", "motorcycle", "pickup_truck", "train"),
    "vehicles_2": ("lawn_mower", "rocket", "streetcar", "tank", "tractor"),
}
"""Coarse label -> fine labels. Both are numbered in alphabetical order."""

_GROUP_OF = {name: group for group, names in CIFAR100_GROUPS.items() for name in names}
CIFAR100_CLASSES = tuple(sorted(_GROUP_OF))

PUBLISHED_MD5 = {
    "data_batch_1": "c99cafc152244af753f735de768cd75f",
    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
    "data_batch_4": "634d18415352ddfa80567beed471001a",
    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
    "test_batch": "40351d587109b95175f43aff81a1287e",
    "train": "16019d7e3df5f24257cddd939b257f8d",
    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
}
"""Of the pickles, by file name; from torchvision's definition of the same files."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """The content of one file."""

    pixels: np.ndarray
    """uint8 [images, 3, 32, 32]"""
    labels: list[int]
    names: list[str]


@dataclass(frozen=True, kw_only=True, slots=True)
class Edition:
    """One of the two datasets in one of its two forms."""

    folder: str
    """The name that its archive unpacks to."""
    files: dict[str, tuple[str, ...]]
    """By split."""
    load: Callable[[Path, int], Batch]
    """(file, number of classes) -> its content."""
    class_names: tuple[str, ...]
    url: str

    @property
    def name(self) -> str:
        return f"cifar{len(self.class_names)}"


@final
class CifarSplit(RawSplit):
    """One split: uint8 [32, 32, 3]. Its files are in memory, once a process (CIFAR-10 train: 155 MB)."""

    def __init__(self, folder: Path, edition: Edition, split: str) -> None:
        self.folder = folder
        self.edition = edition
        self.files = edition.files[split]
        self.class_names = edition.class_names
        self.class_groups = tuple(_GROUP_OF[name] for name in edition.class_names if name in _GROUP_OF)
        self.provenance = Provenance(
            upstream=edition.url,
            licence="none stated",
            citation="A. Krizhevsky: Learning Multiple Layers of Features from Tiny Images, 2009",
        )

    def list_samples(self) -> Sequence[RawSample]:
        return [
            RawSample(name=f"{stem}/{name}", index=row, label=label)
            for stem, batch in self._batches.items()
            for row, (name, label) in enumerate(zip(batch.names, batch.labels, strict=True))
        ]

    def read(self, sample: RawSample) -> np.ndarray:
        stem = sample.name.partition("/")[0]
        return self._batches[stem].pixels[sample.index].transpose(1, 2, 0)

    def files_of(self, samples: Iterable[RawSample]) -> Iterator[Path]:
        return (self.folder / file for file in self.files)

    @cached_property
    def _batches(self) -> dict[str, Batch]:
        return {Path(file).stem: self._load(self.folder / file) for file in self.files}

    def _load(self, path: Path) -> Batch:
        try:
            return self.edition.load(path, len(self.class_names))
        except (InputError, ShardError) as error:
            checked = _compared_with_published(path)
            raise type(error)(f"{error}; {checked}download it again: {self.edition.url}") from error


def _load_pickled(path: Path, num_classes: int, label_key: str) -> Batch:
    content = load_pickle(path)
    if not isinstance(content, dict):
        raise ShardError(f"{path}: a dict expected in the pickle, {type(content).__name__} found")
    pixels = content.get("data")
    if not isinstance(pixels, np.ndarray) or pixels.ndim != 2 or pixels.shape[1] != _PIXEL_BYTES:
        raise ShardError(f"{path}: `data` of uint8 [images, 3072] expected, {_kind(pixels)} found")
    return _checked(
        path,
        num_classes,
        Batch(
            pixels=_planes(pixels),
            labels=_column(path, content, label_key, int, len(pixels)),
            names=_column(path, content, "filenames", str, len(pixels)),
        ),
    )


def _column(path: Path, content: dict[str, Any], key: str, kind: type, num_images: int) -> list[Any]:
    values = content.get(key)
    if not isinstance(values, list) or not all(type(value) is kind for value in values):
        raise ShardError(f"{path}: `{key}`, a list of {kind.__name__}, expected, {_kind(values)} found")
    if len(values) != num_images:
        raise ShardError(f"{path}: {num_images:,} entries of `{key}` expected, {len(values):,} found")
    return values


def _load_records(path: Path, num_classes: int, label_bytes: int) -> Batch:
    """label_bytes: in front of each image's pixels; the last of them is the label."""
    try:
        data = np.fromfile(path, np.uint8)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    record = label_bytes + _PIXEL_BYTES
    if len(data) == 0 or len(data) % record:
        raise ShardError(f"{path}: a multiple of {record:,} bytes expected, {len(data):,} found")
    records = data.reshape(-1, record)
    labels = records[:, label_bytes - 1].tolist()
    names = [f"{row:05d}" for row in range(len(labels))]
    return _checked(path, num_classes, Batch(pixels=_planes(records[:, label_bytes:]), labels=labels, names=names))


def _planes(pixels: np.ndarray) -> np.ndarray:
    return pixels.reshape(-1, 3, SIDE, SIDE)


def _checked(path: Path, num_classes: int, batch: Batch) -> Batch:
    wrong = next((row for row, label in enumerate(batch.labels) if not 0 <= label < num_classes), None)
    if wrong is not None:
        found = batch.labels[wrong]
        raise ShardError(f"{path}: labels in 0..{num_classes - 1} expected, {found} found at image {wrong:,}")
    return batch


def _kind(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {list(value.shape)}"
    return "nothing" if value is None else type(value).__name__.strip("_")


def _compared_with_published(path: Path) -> str:
    if path.name not in PUBLISHED_MD5 or not path.is_file():
        return ""
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    return f"md5 {PUBLISHED_MD5[path.name]} expected, {found} found; "


def _open(editions: tuple[Edition, ...], raw: Path | None, split: str, classes: Path | None) -> CifarSplit:
    begun = (edition for edition in editions if raw is not None and _stands_in(raw, edition, split))
    edition = next(begun, editions[0])
    advice = (
        f"`hjepa-shards download {edition.name}` fetches all of it into data/raw/{edition.name}; give the folder "
        f"that holds {edition.folder}, or build a part of it with --split"
    )
    return CifarSplit(raw_folder(raw, (edition.folder,), edition.files[split], advice), edition, split)


def _stands_in(raw: Path, edition: Edition, split: str) -> bool:
    return any(os.path.exists(raw / inner / file) for inner in ("", edition.folder) for file in edition.files[split])


_URL = "https://www.cs.toronto.edu/~kriz/"

_CIFAR10_EDITIONS = (
    Edition(
        folder="cifar-10-batches-py",
        files={"train": tuple(f"data_batch_{part}" for part in range(1, 6)), "test": ("test_batch",)},
        load=partial(_load_pickled, label_key="labels"),
        class_names=CIFAR10_CLASSES,
        url=_URL + "cifar-10-python.tar.gz",
    ),
    Edition(
        folder="cifar-10-batches-bin",
        files={"train": tuple(f"data_batch_{part}.bin" for part in range(1, 6)), "test": ("test_batch.bin",)},
        load=partial(_load_records, label_bytes=1),
        class_names=CIFAR10_CLASSES,
        url=_URL + "cifar-10-binary.tar.gz",
    ),
)
_CIFAR100_EDITIONS = (
    Edition(
        folder="cifar-100-python",
        files={"train": ("train",), "test": ("test",)},
        load=partial(_load_pickled, label_key="fine_labels"),
        class_names=CIFAR100_CLASSES,
        url=_URL + "cifar-100-python.tar.gz",
    ),
    Edition(
        folder="cifar-100-binary",
        files={"train": ("train.bin",), "test": ("test.bin",)},
        load=partial(_load_records, label_bytes=2),
        class_names=CIFAR100_CLASSES,
        url=_URL + "cifar-100-binary.tar.gz",
    ),
)

CIFAR10 = Source(
    name="cifar10",
    description="small photographs of ten kinds of objects",
    layout="cifar-10-batches-py/{data_batch_1..5,test_batch} or cifar-10-batches-bin/*.bin",
    classes="10",
    images="train 50,000, test 10,000 of 32x32",
    download="yes",
    splits=("train", "test"),
    default_splits=("train", "test"),
    pixels="png",
    open=partial(_open, _CIFAR10_EDITIONS),
)
CIFAR100 = Source(
    name="cifar100",
    description="small photographs of a hundred kinds of objects; fine labels, coarse ones as class groups",
    layout="cifar-100-python/{train,test} or cifar-100-binary/{train,test}.bin",
    classes="100 (20)",
    images="train 50,000, test 10,000 of 32x32",
    download="yes",
    splits=("train", "test"),
    default_splits=("train", "test"),
    pixels="png",
    open=partial(_open, _CIFAR100_EDITIONS),
)
