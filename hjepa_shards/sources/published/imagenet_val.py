"""ImageNet's validation files as published, all in one folder or tar: which synset each of them is of.

From the devkit, or Kaggle's csv, where one is beside the images; else from the list that ships here (67 kB: gzip
over 50,000 high bytes, then 50,000 low ones, of the line number in imagenet1000.tsv). All three say the same.
"""

import gzip
import re
import tarfile
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import final

import numpy as np

from hjepa_shards.errors import InputError, ShardError
from hjepa_shards.shards.raw_sample import Extent
from hjepa_shards.sources.formats.image_files import RawFiles
from hjepa_shards.sources.formats.matlab import read_structs

NUM_FILES = 50_000
SYNSET = re.compile(r"n\d{8}")
_FILE = re.compile(r"ILSVRC2012_val_(\d{8})\.\w+")
_DEVKIT = "ILSVRC2012_devkit_t12"
_GROUND_TRUTH = "data/ILSVRC2012_validation_ground_truth.txt"
_META = "data/meta.mat"
_KAGGLE = "LOC_val_solution.csv"
_MAX_MEMBER_BYTES = 1 << 26
_OTHERWISE = "fetch it again, or remove it: the list that comes with this program serves too"


@final
class FlatVal(RawFiles):
    """Files named ILSVRC2012_val_00000001.JPEG, under the names <synset>/ILSVRC2012_val_00000001.JPEG."""

    def __init__(self, files: RawFiles, synsets: Mapping[int, str]) -> None:
        """synsets: by the number of the file, from 1."""
        self.where = files.where
        self.files = files
        self.synsets = synsets

    def members(self) -> Iterator[tuple[str, Extent | None]]:
        return ((f"{self._synset(name)}/{name}", extent) for name, extent in self.files.members())

    def read(self, name: str, extent: Extent | None) -> bytes:
        return self.files.read(name.partition("/")[2], extent)

    def path(self, name: str) -> Path:
        return self.files.path(name.partition("/")[2])

    def _synset(self, name: str) -> str:
        numbered = _FILE.fullmatch(name)
        if numbered is None:
            raise InputError(
                f"{self.where}: files such as ILSVRC2012_val_00000001.JPEG expected, {name!a} found; remove it"
            )
        if (number := int(numbered[1])) not in self.synsets:
            raise InputError(f"{self.where}: {len(self.synsets):,} files have a synset, {name} has none; remove it")
        return self.synsets[number]


def val_synsets(folders: Iterable[Path], shipped: Sequence[str]) -> Mapping[int, str]:
    """Number of a validation file, from 1 -> its synset: the first list that is in one of the folders.

    shipped: the thousand synsets, sorted, for the list that comes with this program.
    """
    folders = list(folders)
    for folder in folders:
        if (folder / _DEVKIT).is_dir():
            return _from_devkit(folder / _DEVKIT, *(_contents(folder / _DEVKIT / name) for name in _DEVKIT_FILES))
        if (path := folder / f"{_DEVKIT}.tar.gz").is_file():
            return _from_devkit(path, *_from_archive(path))
    for folder in folders:
        if (path := folder / _KAGGLE).is_file():
            return _from_kaggle(path)
    return {number: shipped[row] for number, row in enumerate(_shipped_rows(), start=1)}


@cache
def _shipped_rows() -> list[int]:
    """Places in imagenet1000.tsv, one a file."""
    data = resources.files("hjepa_shards.sources.published").joinpath("imagenet_val.gz").read_bytes()
    high, low = np.frombuffer(gzip.decompress(data), dtype=np.uint8).reshape(2, NUM_FILES).astype(int)
    return (high * 256 + low).tolist()


# ---- the devkit


_DEVKIT_FILES = (_GROUND_TRUTH, _META)


def _from_archive(path: Path) -> list[bytes]:
    contents = []
    try:
        with tarfile.open(path, "r:gz") as tar:
            for name in _DEVKIT_FILES:
                member = tar.extractfile(f"{_DEVKIT}/{name}")
                contents.append(member.read(_MAX_MEMBER_BYTES) if member else b"")
    except (tarfile.TarError, OSError, EOFError, ValueError, KeyError, zlib.error) as error:
        raise ShardError(
            f"{path}: the devkit with {_GROUND_TRUTH} and {_META} expected ({error}); {_OTHERWISE}"
        ) from error
    return contents


def _from_devkit(where: Path, ground_truth: bytes, meta: bytes) -> dict[int, str]:
    by_id = _synsets_by_id(where, meta)
    synsets = {}
    for number, line in enumerate(ground_truth.split(), start=1):
        synset = by_id.get(int(line)) if line.isdigit() and len(line) < 9 else None
        if synset is None:
            raise ShardError(
                f"{where}/{_GROUND_TRUTH}, line {number}: a synset's id expected, {line[:20]!r} found; {_OTHERWISE}"
            )
        synsets[number] = synset
    return synsets


def _synsets_by_id(where: Path, meta: bytes) -> dict[int, str]:
    """ILSVRC2012_ID -> synset; the devkit numbers them in an order of its own."""
    try:
        rows = read_structs(meta, "synsets", ["ILSVRC2012_ID", "WNID"])
    except ValueError as error:
        raise ShardError(f"{where}/{_META}: a table of synsets expected ({error}); {_OTHERWISE}") from error
    by_id = {}
    for row in rows:
        match row:
            case (int() | float() as number, str() as synset) if number % 1 == 0 and SYNSET.fullmatch(synset):
                by_id[int(number)] = synset
            case _:
                raise ShardError(
                    f"{where}/{_META}: an id and a synset such as n01440764 expected, {row!a} found; {_OTHERWISE}"
                )
    return by_id


# ---- Kaggle's csv


def _from_kaggle(path: Path) -> dict[int, str]:
    """Lines such as `ILSVRC2012_val_00048981,n03995372 85 1 499 272`."""
    synsets = {}
    for line, text in enumerate(_contents(path).decode("utf-8", "replace").splitlines()[1:], start=2):
        image, _, prediction = text.partition(",")
        numbered, synset = _FILE.fullmatch(f"{image}.JPEG"), prediction.partition(" ")[0]
        if numbered is None or not SYNSET.fullmatch(synset):
            raise ShardError(
                f"{path}, line {line}: a file and its synset, as ILSVRC2012_val_00000001,n01751748, expected, "
                f"{text[:60]!a} found; {_OTHERWISE}"
            )
        synsets[int(numbered[1])] = synset
    return synsets


def _contents(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}; {_OTHERWISE}") from error
