"""Places365 as published: file lists with labels, and the images in folders or in the official tars.

The file list decides what belongs to a split. A few images that it names may be absent: each is excluded by name; more
of them mean that something was not unpacked, and are refused before anything is built. The large images and the small
ones (squeezed to 256x256) have the same names; which are meant follows from what is there, or from --raw.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import final

from hjepa_shards.errors import DecodeError, InputError, ShardError
from hjepa_shards.shards.raw_sample import RawSample
from hjepa_shards.sources.base import Provenance, RawSplit, Source, raw_folder
from hjepa_shards.sources.formats.image_files import FolderFiles, RawFiles, TarFiles, absent
from hjepa_shards.sources.formats.tar_members import TarMember, tar_members

_CATEGORIES = "categories_places365.txt"
_URL = "http://places2.csail.mit.edu"
_SIZES = {"large": "large images", "256": "small images, squeezed to 256x256"}


@dataclass(frozen=True, slots=True)
class _Published:
    """How a split was published; `{}` stands for large or 256."""

    file_list: str
    folders: tuple[str, ...]
    """As torchvision names it, and as it is unpacked."""
    tar: str


_SPLITS = {
    "train": _Published(
        "places365_train_standard.txt", ("data_{}_standard", "data_{}"), "train_{}_places365standard.tar"
    ),
    "val": _Published("places365_val.txt", ("val_{}",), "val_{}.tar"),
    "test": _Published("places365_test.txt", ("test_{}",), "test_{}.tar"),
    "train-challenge": _Published(
        "places365_train_challenge.txt", ("data_{}_challenge", "data_{}"), "train_{}_places365challenge.tar"
    ),
}


@final
class PlacesSplit(RawSplit):
    """The images that a file list names, by the names that it gives them."""

    def __init__(self, files: RawFiles, file_list: Path, class_names: tuple[str, ...], size: str) -> None:
        """class_names: in the order of labels; none where the list has no labels. size: what the images are."""
        self.files = files
        self.file_list = file_list
        self.class_names = class_names
        self.provenance = Provenance(
            upstream=f"Places365, {size}, {_URL}",
            licence="lists and categories: MIT; images: their owners', for research and education",
            citation="B. Zhou, A. Lapedriza, A. Khosla, A. Oliva, A. Torralba: Places: A 10 million Image Database "
            "for Scene Recognition, PAMI 2017",
        )
        if twice := self.samples.twice():
            raise ShardError(f"{file_list}: names {twice} twice; remove one of the lines")
        self.absent = absent(files, (sample.name for sample in self.samples), file_list)

    @property
    def notes(self) -> tuple[str, ...]:
        empty = self.samples.empty_classes(self.class_names)
        return (f"classes without an image: {', '.join(empty)}",) if empty else ()

    def list_samples(self) -> Iterator[RawSample]:
        none = True
        for name, label in _read_list(self.file_list, len(self.class_names)):
            none = False
            yield RawSample(name=name, index=0, label=label, extent=self.files.extent(name))
        if none:
            raise ShardError(f"{self.file_list}: a list of images expected, it is empty; unpack or fetch it again")

    def read(self, sample: RawSample) -> bytes:
        if sample.name in self.absent:
            raise DecodeError(f"named by {self.file_list.name}, not among the images")
        return self.files.read(sample.name, sample.extent)

    def files_of(self, samples: Iterable[RawSample]) -> Iterator[Path]:
        yield self.file_list
        yield from (self.files.path(sample.name) for sample in samples)


def _read_list(path: Path, num_classes: int) -> Iterator[tuple[str, int]]:
    """Name and label of lines such as `/a/airfield/00000001.jpg 0`; without the number where there are no classes."""
    for number, words in _lines(path):
        name = words[0].lstrip("/")
        if len(words) != 1 + (num_classes > 0) or "/../" in f"/{name}/" or "\0" in name:
            raise ShardError(
                f"{path}, line {number}: an image{' and its label' * (num_classes > 0)} expected, "
                f"{' '.join(words)[:80]!a} found; unpack or fetch it again"
            )
        label = _label(words[1]) if num_classes else -1
        if num_classes and not 0 <= label < num_classes:
            raise ShardError(
                f"{path}, line {number}: a label in 0..{num_classes - 1} expected, {words[1][:20]!a} found; "
                "unpack or fetch it again"
            )
        yield name, label


def _label(word: str) -> int:
    return int(word) if len(word) < 9 and word.isascii() and word.isdigit() else -1


def _read_categories(path: Path) -> tuple[str, ...]:
    """Lines such as `/a/airfield 0`, in the order of the numbers."""
    names: list[str] = []
    for number, words in _lines(path):
        if len(words) != 2 or words[1] != str(len(names)):
            raise ShardError(
                f"{path}, line {number}: a category and its number {len(names)} expected, "
                f"{' '.join(words)[:80]!a} found; unpack or fetch it again"
            )
        names.append(words[0])
    if not names:
        raise ShardError(f"{path}: categories expected, it is empty; unpack or fetch it again")
    return tuple(names)


def _lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """(number, words) of each line that has any."""
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if words := line.split():
                    yield number, words
    except UnicodeDecodeError as error:
        raise ShardError(f"{path}: a list in UTF-8 expected, {error}; unpack or fetch it again") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def _open(raw: Path | None, split: str, classes: Path | None) -> PlacesSplit:
    published = _SPLITS[split]
    root, sizes = _meant(raw)
    folders = [pattern.format(size) for size in sizes for pattern in published.folders]
    needed = (_CATEGORIES,) if split != "test" else ()
    advice = (
        f"unpack filelist_places365-{'challenge' if 'challenge' in split else 'standard'}.tar there (from {_URL}/"
        f"download.html); images are looked for in {', '.join(folders)}, or in the tar as it was fetched"
    )
    root = raw_folder(root, (), (*needed, published.file_list), advice)
    found = {size: files for size in sizes if (files := _files(root, published, size))}
    if not found:
        tars = ", ".join(published.tar.format(size) for size in sizes)
        raise InputError(f"{root}: one of {', '.join(folders)}, {tars} expected, none of them found; fetch {_URL}")
    if len(found) > 1:
        ways = " or ".join(f"--raw {files.where}" for files in found.values())
        raise InputError(f"{root}: large or small images expected, both found; choose with {ways}")
    [(size, files)] = found.items()
    names = _read_categories(root / _CATEGORIES) if split != "test" else ()
    return PlacesSplit(files, root / published.file_list, names, _SIZES[size])


def _meant(raw: Path | None) -> tuple[Path | None, tuple[str, ...]]:
    """The folder with the file lists, and the sizes that may be read: one, where `raw` is one of the image folders."""
    for size in _SIZES:
        known = [name.format(size) for split in _SPLITS.values() for name in (*split.folders, split.tar)]
        if raw is not None and raw.name in known:
            return raw.parent, (size,)
    return raw, tuple(_SIZES)


def _files(root: Path, published: _Published, size: str) -> RawFiles | None:
    for pattern in published.folders:
        if (folder := root / pattern.format(size)).is_dir():
            return FolderFiles(folder)
    path = root / published.tar.format(size)
    return TarFiles(path, _below_first_folder) if path.is_file() else None


def _below_first_folder(path: Path) -> Iterator[TarMember]:
    """The tars hold one folder, named as it is unpacked; the file list does not know it."""
    return (member._replace(name=member.name.partition("/")[2]) for member in tar_members(path))


PLACES365 = Source(
    name="places365",
    description="photographs of 365 kinds of places",
    layout="places365_{train_standard,val}.txt, categories_places365.txt, and the images: data_{large,256}_standard/ "
    "or data_{large,256}/, val_{large,256}/; or the official tars",
    classes="365",
    images="train 1,803,460, val 36,500, test 328,500; train-challenge 8,026,628",
    download="yes",
    splits=("train", "val", "test", "train-challenge"),
    default_splits=("train", "val"),
    pixels="jpeg",
    open=_open,
)
