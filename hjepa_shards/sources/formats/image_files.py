"""Image files of a raw dataset by their names, wherever they are: in a folder, or in a tar that is read in place.

A source says what a file's label or caption is; here is only which files there are and how to read one. So a dataset
gives the same samples unpacked and not.
"""

import sqlite3
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, final

from hjepa_shards.errors import InputError, ShardError
from hjepa_shards.shards.raw_sample import Extent, extension_of
from hjepa_shards.shards.sample_table import on_disk, temporary
from hjepa_shards.sources.formats.class_folders import image_names, path_of, proper_text, read_file
from hjepa_shards.sources.formats.tar_members import TarMember, read_member, tar_members

MAX_ABSENT_SHARE = 0.01
"""Of the files that a list names. A few may have been lost or removed; more means that something is not unpacked."""


class RawFiles(ABC):
    """Image files by name. Listed in the builder's process, read in its workers': an object travels small."""

    where: Path
    """What errors name."""

    @abstractmethod
    def members(self) -> Iterator[tuple[str, Extent | None]]:
        """Every image file and its location, in any order: relative paths with forward slashes, except hidden ones."""

    @abstractmethod
    def read(self, name: str, extent: Extent | None) -> bytes:
        """One file. InputError where it cannot be read."""

    def path(self, name: str) -> Path:
        """The file on disk that holds an image."""
        return self.where

    def names(self) -> Iterator[str]:
        return (name for name, _ in self.members())

    def __contains__(self, name: str) -> bool:
        return self._found.execute("SELECT 1 FROM files WHERE name = ?", (name,)).fetchone() is not None

    def __len__(self) -> int:
        return int(self._found.execute("SELECT COUNT(*) FROM files").fetchone()[0])

    def extent(self, name: str) -> Extent | None:
        """The location of a file; None where it has none, or there is no such file."""
        row = self._found.execute("SELECT file, offset, num_bytes FROM files WHERE name = ?", (name,)).fetchone()
        return Extent(*row) if row and row[0] is not None else None

    @cached_property
    def _found(self) -> sqlite3.Connection:
        """The files, to be looked up by name."""
        return _table(self.where, self.members())

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_found"}


@final
class FolderFiles(RawFiles):
    """The image files below some folders of `root` ('': root itself). Listing makes no stat a file."""

    def __init__(self, root: Path, folders: Sequence[str] = ("",)) -> None:
        self.where = root
        self.folders = tuple(folders)

    def members(self) -> Iterator[tuple[str, Extent | None]]:
        return ((proper_text(name), None) for folder in self.folders for name in image_names(self.where, folder))

    def read(self, name: str, extent: Extent | None) -> bytes:
        return read_file(self.where, name)

    def path(self, name: str) -> Path:
        return path_of(self.where, name)


@final
class TarFiles(RawFiles):
    """The image files in a tar. The headers are read once."""

    def __init__(self, path: Path, scan: Callable[[Path], Iterable[TarMember]] = tar_members) -> None:
        """scan: lists the members under the names that the files shall have."""
        self.where = path
        self.scan = scan

    def members(self) -> Iterator[tuple[str, Extent | None]]:
        for name, *extent in self._found.execute("SELECT name, file, offset, num_bytes FROM files"):
            yield name, Extent(*extent)

    def read(self, name: str, extent: Extent | None) -> bytes:
        assert extent is not None, name
        return read_member(self.where, name, extent.offset, extent.num_bytes)

    @cached_property
    def _found(self) -> sqlite3.Connection:
        images = (
            (member.name, Extent(0, member.offset, member.num_bytes))
            for member in self.scan(self.where)
            if extension_of(member.name) and "/." not in f"/{member.name}"
        )
        return _table(self.where, images)


def _table(where: Path, members: Iterable[tuple[str, Extent | None]]) -> sqlite3.Connection:
    database = temporary("CREATE TABLE files (name TEXT PRIMARY KEY, file, offset, num_bytes) WITHOUT ROWID")
    last = ""

    def rows() -> Iterator[tuple[object, ...]]:
        nonlocal last
        for last, extent in members:
            yield last, *(extent or (None, None, None))

    try:
        with on_disk(database):
            database.executemany("INSERT INTO files VALUES (?, ?, ?, ?)", rows())
    except sqlite3.IntegrityError as error:
        raise ShardError(f"{where}: holds {last} twice; fetch it again, or unpack it") from error
    return database


def absent(files: RawFiles, listed: Iterable[str], list_path: Path) -> frozenset[str]:
    """Those of the `listed` names that are not among the files: reading them is a DecodeError, and they are excluded.

    InputError where they are more than a few.
    """
    count, missing = 0, list[str]()
    for name in listed:
        count += 1
        if name not in files:
            missing.append(name)
    if len(missing) > MAX_ABSENT_SHARE * count:
        raise InputError(
            f"{files.where}: {count:,} images expected, as {list_path} names them, {len(missing):,} of them missing, "
            f"{missing[0]} the first; unpack or fetch the images again, or take the missing ones out of the list"
        )
    return frozenset(missing)
