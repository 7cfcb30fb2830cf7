"""Image files in a folder, or in one folder a class: what `folder` and `imagenet` have in common.

Listing asks the directory only (names and kinds, no stat a file): ImageNet's 1.28 million take seconds on a local disk.
Files without an extension are images by their first bytes. What is not read is counted, for a note.
"""

import contextlib
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import final

from hjepa_shards.errors import DecodeError, InputError
from hjepa_shards.images.image_magic import NUM_MAGIC_BYTES, has_image_magic
from hjepa_shards.shards.raw_sample import RawSample, extension_of
from hjepa_shards.sources.base import Provenance, RawSplit, Remarks

_NOT_DATA = frozenset({"__MACOSX"})
"""Folders that archivers add; there is no image in them."""
_NOT_COUNTED = frozenset({"thumbs.db", "desktop.ini"})
"""Files that Windows adds, hidden there."""
_TEXTS = frozenset(
    (".txt", ".md", ".rst", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".html", ".htm", ".pdf")
    + (".log", ".ini", ".cfg", ".toml", ".lst", ".py", ".sh", ".md5", ".sha256")
)
"""What is beside images and is none: no reason for a note."""
_BARE = "without an extension"
_HEIC = frozenset({".heic", ".heif"})


@final
class TreeSplit(RawSplit):
    """The images below `root`, named by their path there. Bytes are read as they are on disk."""

    def __init__(
        self,
        root: Path,
        *,
        labels: Mapping[str, int],
        class_names: tuple[str, ...],
        provenance: Provenance,
        remarks: tuple[str, ...] = (),
        beside: tuple[str, ...] = (),
    ) -> None:
        """labels: of each folder, a class; none: the images are in `root` and have no labels.

        class_names: by label, whether this split has a folder for it or not.  remarks: what else a user should know.
        beside: files beside the folders that are not read.
        """
        self.root = root
        self.labels = dict(labels)
        self.class_names = class_names
        self.provenance = provenance
        self.remarks = remarks
        self.beside = beside
        self.unread: tuple[str, ...] = ()

    @property
    def notes(self) -> tuple[str, ...]:
        empty = self.samples.empty_classes(self.class_names)
        no_image = (f"classes without an image: {', '.join(empty)}",) if empty else ()
        return (*self.remarks, *no_image, *self.unread)

    def list_samples(self) -> Iterator[RawSample]:
        walk = Walk(self.root)
        for name in self.beside:
            walk.count_unread(name)
        none = True
        for name, folder in walk.images(tuple(self.labels) or ("",)):
            none = False
            yield RawSample(name=proper_text(name), index=0, label=self.labels.get(folder, -1))
        self.unread = walk.notes()
        if none:
            more = "".join(f"; {note}" for note in self.unread)
            raise InputError(f"{self.root}: images expected, none found{more}; is it the right folder?")

    def read(self, sample: RawSample) -> bytes:
        return read_file(self.root, sample.name)

    def files_of(self, samples: Iterable[RawSample]) -> Iterator[Path]:
        return (path_of(self.root, sample.name) for sample in samples)


def read_file(root: Path, name: str) -> bytes:
    """The bytes of a file below `root`, by its name as `proper_text`.

    DecodeError for a link to nothing and for what is no file, InputError where it cannot be read otherwise.
    """
    path = root / name
    try:
        path = path_of(root, name)
        if not stat.S_ISREG(path.stat().st_mode):  # to open a FIFO is to wait until something is written to it
            raise DecodeError("no file: a folder, FIFO, socket or device")
        return path.read_bytes()
    except OSError as error:
        if isinstance(error, FileNotFoundError) and path.is_symlink():
            raise DecodeError("a link to nothing") from error
        raise InputError(f"{path}: cannot be read: {error.strerror or error}; make it readable or remove it") from error


@final
class Walk:
    """The image files below some folders of `root`, each folder of the disk once, and what else there is."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._seen: dict[tuple[int, int], str] = {}
        """(device, inode) of a folder -> the name under which it was read; '' for `root` and what it is in."""
        for above in (root, *root.resolve().parents):
            with contextlib.suppress(OSError):  # whatever is not to be seen, no link that is followed leads there
                self._seen[_identity(above)] = ""
        self._links: list[tuple[str, str]] = []
        """Linked folders that are still to be read, and what they are below."""
        self._extensions: Counter[str] = Counter()
        self._odd = Remarks()

    def images(self, folders: tuple[str, ...]) -> Iterator[tuple[str, str]]:
        """(path relative to `root`, the one of `folders` that it is below), except hidden names.

        Folders first and what is linked after them: a folder keeps the names of its own place.
        """
        for folder in folders:
            for name in self._below(folder, folder):
                yield name, folder
        while self._links:
            link, folder = self._links.pop(0)
            if self._is_new(link):
                for name in self._below(link, folder):
                    yield name, folder

    def count_unread(self, name: str) -> None:
        """Remember a file that is not read."""
        base = name.rpartition("/")[2]
        if base.lower() not in _NOT_COUNTED:
            _, dot, extension = base.rpartition(".")
            is_usual = extension.isascii() and extension.isalnum() and len(extension) <= 12
            kind = f".{extension.lower()}" if dot and is_usual else "of odd names" if dot else _BARE
            self._extensions[kind] += 1

    def notes(self) -> tuple[str, ...]:
        """A line a kind: what was not read, and why. Nothing where texts alone were not."""
        notes = list(self._odd.lines())
        if not self._extensions.keys() <= {*_TEXTS, _BARE}:
            kinds = sorted(self._extensions.items(), key=lambda kind: (-kind[1], kind[0]))
            shown = ", ".join(f"{count:,} {kind}" for kind, count in kinds[:8])
            more = f" and {len(kinds) - 8:,} more kinds" if len(kinds) > 8 else ""
            notes.append(f"files that are no images by their names, not read: {shown}{more}")
        if not _HEIC.isdisjoint(self._extensions):
            notes.append("HEIC is not read: convert it to JPEG or PNG first, with Pillow and pillow-heif for example")
        return tuple(notes)

    def _below(self, folder: str, top: str) -> Iterator[str]:
        """Path of each image below a folder; links to folders are put off."""
        with _listing(self._root / folder):
            self._seen.setdefault(_identity(self._root / folder), folder)
        inner = []
        for entry in entries(self._root / folder):
            name = f"{folder}/{entry.name}" if folder else entry.name
            if entry.is_dir(follow_symlinks=False):
                if entry.name not in _NOT_DATA:
                    inner.append(name)
            elif entry.is_symlink() and not extension_of(entry.name) and entry.is_dir():
                self._links.append((name, top))
            elif is_image(entry):
                yield name
            elif entry.is_file() or entry.is_symlink():
                self.count_unread(name)
            else:
                self._odd.add("FIFOs, sockets and devices, not read", proper_text(name))
        for name in inner:
            if self._is_new(name):
                yield from self._below(name, top)

    def _is_new(self, folder: str) -> bool:
        """Whether a folder was not read yet; what was is remembered, a link to where it is itself by that name."""
        with _listing(self._root / folder):
            before = self._seen.get(_identity(self._root / folder))
        if before is None:
            return True
        if not before or f"{folder}/".startswith(f"{before}/"):
            self._odd.add("links to a folder that they are in, not followed", proper_text(folder))
        else:
            self._odd.add(
                "linked folders that are read under another name, not read twice",
                f"{proper_text(folder)}, which is {proper_text(before)}",
            )
        return False


def path_of(root: Path, name: str) -> Path:
    """Where a file below `root` is, by its name as `proper_text`."""
    path = root / name
    return root / _original(name) if "\\x" in name and not path.exists() else path


def image_names(root: Path, folder: str) -> Iterator[str]:
    """Paths, relative to `root`, of the image files below `root/folder`; except hidden names."""
    return (name for name, _ in Walk(root).images((folder,)))


def is_image(entry: os.DirEntry[str]) -> bool:
    """Whether a file is an image: by its extension, or by its first bytes where it has none.

    A link with the extension of an image is one: to look at where it leads takes a stat a file.
    """
    if extension_of(entry.name):
        return entry.is_symlink() or entry.is_file(follow_symlinks=False)
    if "." in entry.name or not entry.is_file():
        return False
    try:
        with open(entry.path, "rb", buffering=0) as file:
            return has_image_magic(file.read(NUM_MAGIC_BYTES))
    except OSError as error:
        raise InputError(
            f"{entry.path}: cannot be read: {error.strerror or error}; make it readable or remove it"
        ) from error


def class_folders(found: list[os.DirEntry[str]]) -> tuple[str, ...]:
    """Names of the folders among entries, without those that archivers add."""
    return tuple(entry.name for entry in found if entry.is_dir() and entry.name not in _NOT_DATA)


def proper_text(name: str) -> str:
    r"""A name as proper text: bytes that are not UTF-8 become \xNN."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def entries(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, except hidden names, sorted."""
    with _listing(folder), os.scandir(folder) as found:
        return sorted((e for e in found if not e.name.startswith(".")), key=lambda e: e.name)


@contextmanager
def _listing(folder: Path) -> Iterator[None]:
    """InputError where a folder cannot be looked into."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{folder}: a folder expected, {error.strerror or error}") from error


def _identity(folder: Path) -> tuple[int, int]:
    found = folder.stat()
    return found.st_dev, found.st_ino


def _original(text: str) -> str:
    r"""The name on disk for a text with \xNN in it."""
    return os.fsdecode(re.sub(rb"\\x([0-9a-f]{2})", lambda m: bytes.fromhex(m[1].decode()), os.fsencode(text)))
