"""Image files in a folder, or in one folder a class: what `folder` and `imagenet` have in common.

Listing asks the directory only (names and kinds, no stat a file): ImageNet's 1.28 million take seconds on a local disk.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import final

from hjepa_shards.errors import DecodeError, InputError
from hjepa_shards.shards.raw_sample import RawSample, extension_of
from hjepa_shards.sources.base import Provenance, RawSplit


@final
class TreeSplit(RawSplit):
    """The images below `root`, named by their path there. Bytes are read as they are on disk."""

    def __init__(
        self,
        root: Path,
        *,
        folders: tuple[str, ...],
        class_names: tuple[str, ...],
        provenance: Provenance,
        remarks: tuple[str, ...] = (),
    ) -> None:
        """folders: one a class, in the order of labels; none: the images are in `root` and have no labels.

        remarks: what else a user should know.
        """
        self.root = root
        self.folders = folders
        self.class_names = class_names
        self.provenance = provenance
        self.remarks = remarks

    @property
    def notes(self) -> tuple[str, ...]:
        empty = self.samples.empty_classes(self.folders)
        no_image = (f"classes without an image: {', '.join(map(proper_text, empty))}",) if empty else ()
        return (*self.remarks, *no_image)

    def list_samples(self) -> Iterator[RawSample]:
        none = True
        for label, folder in enumerate(self.folders) if self.folders else ((-1, ""),):
            for name in image_names(self.root, folder):
                none = False
                yield RawSample(name=proper_text(name), index=0, label=label)
        if none:
            raise InputError(f"{self.root}: images expected, none found; is it the right folder?")

    def read(self, sample: RawSample) -> bytes:
        return read_file(self.root, sample.name)


def read_file(root: Path, name: str) -> bytes:
    """The bytes of a file below `root`, by its name as `proper_text`.

    DecodeError for a link to nothing, InputError where it cannot be read otherwise.
    """
    path = root / name
    try:
        if "\\x" in name and not path.exists():
            path = root / _original(name)
        return path.read_bytes()
    except OSError as error:
        if isinstance(error, FileNotFoundError) and path.is_symlink():
            raise DecodeError("a link to nothing") from error
        raise InputError(f"{path}: cannot be read: {error.strerror or error}; make it readable or remove it") from error


def image_names(root: Path, folder: str) -> Iterator[str]:
    """Paths, relative to `root`, of the image files below `root/folder`; except hidden names and linked folders."""
    inner = []
    for entry in entries(root / folder):
        name = f"{folder}/{entry.name}" if folder else entry.name
        if entry.is_dir(follow_symlinks=False):
            inner.append(name)
        elif extension_of(entry.name):
            yield name
    for name in inner:
        yield from image_names(root, name)


def proper_text(name: str) -> str:
    r"""A name as proper text: bytes that are not UTF-8 become \xNN."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, except hidden names, sorted."""
    try:
        with os.scandir(folder) as found:
            return sorted((e for e in found if not e.name.startswith(".")), key=lambda e: e.name)
    except OSError as error:
        raise InputError(f"{folder}: a folder expected, {error.strerror or error}") from error


def _original(text: str) -> str:
    r"""The name on disk for a text with \xNN in it."""
    return os.fsdecode(re.sub(rb"\\x([0-9a-f]{2})", lambda m: bytes.fromhex(m[1].decode()), os.fsencode(text)))
