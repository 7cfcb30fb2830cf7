"""Image files of a raw dataset by their names, wherever they are: in a folder, or in a tar that is read in place.

A source says what a file's label or caption is; here is only which files there are and how to read one. So a dataset
gives the same samples unpacked and not.
"""

import hashlib
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from hjepa_shards.errors import InputError, ShardError
from hjepa_shards.sample import extension_of
from hjepa_shards.sources.tar_members import TarMember, read_member, tar_members
from hjepa_shards.sources.tree import image_names, proper_text, read_file

MAX_ABSENT_SHARE = 0.01
"""Of the files that a list names. A few may have been lost or removed; more means that something is not unpacked."""


class RawFiles(ABC):
    """Image files by name. Listed in the builder's process, read in its workers': an object travels small."""

    where: Path
    """What errors name."""

    @abstractmethod
    def names(self) -> Iterable[str]:
        """Every image file, in any order: relative paths with forward slashes, hidden ones left out."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """One file. InputError where it cannot be read."""


@final
class FolderFiles(RawFiles):
    """The image files below some folders of `root` ('': root itself). Listing makes no stat a file."""

    def __init__(self, root: Path, folders: Sequence[str] = ("",)) -> None:
        self.where = root
        self.folders = tuple(folders)

    def names(self) -> Iterable[str]:
        return (proper_text(name) for folder in self.folders for name in image_names(self.where, folder))

    def read(self, name: str) -> bytes:
        return read_file(self.where, name)


@final
class TarFiles(RawFiles):
    """The image files in a tar. The headers are read once; what travels is 24 bytes a file."""

    def __init__(self, path: Path, scan: Callable[[Path], Iterable[TarMember]] = tar_members) -> None:
        """scan: lists the members under the names that the files shall have."""
        self.where = path
        self.scan = scan

    def names(self) -> Iterable[str]:
        return self._listing[0]

    def read(self, name: str) -> bytes:
        offset, num_bytes = self._places.find(name)
        return read_member(self.where, name, offset, num_bytes)

    @cached_property
    def _listing(self) -> tuple[list[str], "_Places"]:
        names: list[str] = []
        offsets, sizes = array("q"), array("q")
        for member in self.scan(self.where):
            if extension_of(member.name) and "/." not in f"/{member.name}":
                names.append(member.name)
                offsets.append(member.offset)
                sizes.append(member.num_bytes)
        keys = np.frombuffer(b"".join(map(_key, names)), dtype=np.uint64)
        order = np.argsort(keys, kind="stable")
        keys = keys[order]
        twice = np.flatnonzero(keys[1:] == keys[:-1])
        if len(twice):
            raise ShardError(f"{self.where}: holds {names[order[twice[0]]]} twice; fetch it again, or unpack it")
        places = _Places(keys, np.array(offsets, dtype=np.int64)[order], np.array(sizes, dtype=np.int64)[order])
        return names, places

    @cached_property
    def _places(self) -> "_Places":
        return self._listing[1]

    def __getstate__(self) -> dict[str, Any]:
        return {"where": self.where, "scan": self.scan, "_places": self._places}


@dataclass(frozen=True, slots=True)
class _Places:
    """Where each file lies; one row a file, in the order of keys."""

    keys: NDArray[np.uint64]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]

    def find(self, name: str) -> tuple[int, int]:
        """(offset, bytes) of a file that was listed."""
        key = np.frombuffer(_key(name), dtype=np.uint64)[0]
        row = int(np.searchsorted(self.keys, key))
        assert self.keys[row : row + 1].tolist() == [int(key)], name
        return int(self.offsets[row]), int(self.sizes[row])


def _key(name: str) -> bytes:
    """8 bytes that stand for a name; two names with the same ones are refused when they are listed."""
    return hashlib.blake2b(name.encode(), digest_size=8).digest()


def absent(files: RawFiles, listed: Iterable[str], list_path: Path) -> frozenset[str]:
    """Those of the `listed` names that are not among the files: reading them is a DecodeError, and they are left out.

    InputError where they are more than a few.
    """
    listed = list(listed)
    missing = set(listed).difference(files.names())
    if len(missing) > MAX_ABSENT_SHARE * len(listed):
        first = next(name for name in listed if name in missing)
        raise InputError(
            f"{files.where}: {len(listed):,} images expected, as {list_path} names them, {len(missing):,} of them "
            f"missing, {first} the first; unpack or fetch the images again, or take the missing ones out of the list"
        )
    return frozenset(missing)
