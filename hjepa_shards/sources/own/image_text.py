"""Images with captions: a list and the folder of its images (Flickr8k, Flickr30k, CC3M, any), or img2dataset's tars.

All captions of an image become those of one sample, in their order. A file that the list names and that is absent is
excluded by name; a list none of whose images can be found is an error. Lists are written by many tools on many systems,
so a name is also tried without a trailing .1 (Flickr8k: x.jpg.1), with / for \\, and in Unicode's other form.
"""

import json
import os
import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from typing import Any, final

from hjepa_shards.errors import DecodeError, InputError
from hjepa_shards.shards.raw_sample import IMAGE_EXTENSIONS, RawSample
from hjepa_shards.shards.sample_table import on_disk, temporary
from hjepa_shards.sources.base import Provenance, RawSplit, Remarks, Source
from hjepa_shards.sources.formats.caption_lists import read_captions
from hjepa_shards.sources.formats.captions import distinct
from hjepa_shards.sources.formats.split_from_name import in_split, of_no_split, of_split
from hjepa_shards.sources.formats.tar_patterns import tars_in
from hjepa_shards.sources.own.webdataset import TarSplit, tars_of_folder, tars_of_pattern

_LIST_SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".token", ".txt")
_FLICKR8K = "Flickr8k.token.txt"
_KNOWN_LISTS = (_FLICKR8K, "results_20130124.token", "results.csv", "captions.txt", "metadata.csv")
"""Taken before others that may be beside them."""
_SPLITS_OF_FLICKR8K = {
    "train": "Flickr_8k.trainImages.txt",
    "val": "Flickr_8k.devImages.txt",
    "test": "Flickr_8k.testImages.txt",
}
"""The images of each split, where they are beside the list."""
_NUMBERED = re.compile(rf"(.*\.(?:{'|'.join(IMAGE_EXTENSIONS)}))\.\d+", re.IGNORECASE | re.DOTALL)
_LOOKED_AT = 200
_COUNTED_SPLITS = 100
_MAX_IMAGE_BYTES = 1 << 30
_FORMATS = "a list (csv, tsv, jsonl, Flickr's token file) beside the images, or img2dataset's tars"


@final
class ImageTextSplit(RawSplit):
    """The images that a list names, below one folder. A sample's name is the one in the list."""

    class_names = ()
    provenance = Provenance(upstream="own images and captions", licence="not stated", citation="")

    def __init__(self, list_file: Path, raw: Path, split: str, chosen: Path | None = None) -> None:
        """raw: the folder of the images, or one above it.  split: whose images, where the list says that of each.

        chosen: a file of the names that are meant; None: all.
        """
        self.list_file = list_file
        self.split = split
        self.chosen = chosen
        self.remarks = Remarks()
        first = [_clean(found.image, raw) for found in islice(read_captions(list_file, Remarks()), _LOOKED_AT)]
        self.root = _folder_of(first, raw, list_file)

    @property
    def notes(self) -> tuple[str, ...]:
        _ = self.samples  # which is when the list is read
        return self.remarks.lines()

    @property
    def left_out(self) -> Sequence[Mapping[str, Any]]:
        _ = self.samples
        return self.remarks.left_out

    def list_samples(self) -> Iterator[RawSample]:
        self.remarks = Remarks()
        others = Counter[str]()
        chosen = {_clean(line, self.root) for line in _lines_of(self.chosen)} if self.chosen else None
        database = temporary("CREATE TABLE captions (name TEXT, number INTEGER, texts TEXT)")
        with on_disk(database):
            database.executemany("INSERT INTO captions VALUES (?, ?, ?)", self._captions(chosen, others))
        found = database.execute("SELECT name, texts FROM captions ORDER BY name, number, rowid")
        none = True
        for name, rows in groupby(found, key=itemgetter(0)):
            none = False
            yield RawSample(
                name=name, index=0, captions=distinct(text for _, said in rows for text in json.loads(said))
            )
        if none and others:
            there = ", ".join(f"{name} ({count:,})" for name, count in others.most_common(8))
            raise InputError(
                f"{self.list_file}: lines of split {self.split} expected, its column split says {there}; build one of "
                "those with --split"
            )
        if none:
            raise InputError(f"{self.list_file}: none of the images that {self.chosen} names are in it")

    def _captions(self, chosen: set[str] | None, others: Counter[str]) -> Iterator[tuple[str, int, str]]:
        """Sample, number among its captions, texts in JSON, a row a sample where the list has any.

        others: counts what the list says of lines that are of other splits.
        """
        for image, number, texts, split in read_captions(self.list_file, self.remarks):
            if split is not None and not in_split(split, self.split):
                self.remarks.add("lines of other splits, which --split builds", f"{image} is in {split[:40] or 'none'}")
                shown = split[:40]
                if shown in others or len(others) < _COUNTED_SPLITS:
                    others[shown] += 1
                continue
            name = self._name(image)
            if chosen is None or name in chosen:
                yield name, number, json.dumps(texts)

    def read(self, sample: RawSample) -> bytes:
        if os.path.isabs(sample.name) or sample.name.startswith("../"):
            raise DecodeError("a path out of the folder of the images")
        for name in _spellings(sample.name):
            path = self.root / name
            try:
                with path.open("rb") as file:
                    if os.fstat(file.fileno()).st_size > _MAX_IMAGE_BYTES:
                        raise DecodeError(f"an image of more than {_MAX_IMAGE_BYTES:,} bytes")
                    return file.read()
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError):
                continue
            except OSError as error:
                raise InputError(f"{path}: cannot be read: {error.strerror or error}; make it readable") from error
        raise DecodeError("no such file")

    def files_of(self, samples: Iterable[RawSample]) -> Iterator[Path]:
        yield self.list_file
        yield from (self.root / sample.name for sample in samples)

    def _name(self, image: str) -> str:
        """The sample of an image in the list: x.jpg.1 is x.jpg, where only that one is there."""
        name = _clean(image, self.root)
        numbered = _NUMBERED.fullmatch(name)
        if numbered and not _is_file(self.root / name) and _is_file(self.root / numbered[1]):
            return numbered[1]
        return name


def _lines_of(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8-sig").split()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: names of images expected, cannot be read: {error}") from error


def _clean(image: str, raw: Path) -> str:
    """A path of the list as a name: relative to the images' folder where it is in there."""
    name = posixpath.normpath(image.strip())
    below = f"{posixpath.abspath(raw)}/"
    return name.removeprefix(below) if name.startswith(below) else name


def _spellings(name: str) -> Iterator[str]:
    """How a file of the list may be called on this disk."""
    names = [name, name.replace("\\", "/")]
    for form in ("NFC", "NFD"):
        names += [unicodedata.normalize(form, name) for name in names[:2]]
    yield from dict.fromkeys(names)


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def _folder_of(names: Sequence[str], raw: Path, list_file: Path) -> Path:
    """`raw`, or the folder below it (at most two deep), that holds most of the images `names`."""
    if not names:
        raise InputError(f"{list_file}: images and captions expected, none found; is it the right file?")
    folders = [raw, *_folders_in(raw)]
    folders += [inner for folder in folders[1:] for inner in _folders_in(folder)]
    held = [sum(any(_is_file(folder / name) for name in _spellings(image)) for image in names) for folder in folders]
    if not any(held):
        raise InputError(
            f"{list_file}: names {names[0]}, but none of its first {len(names):,} images is in {raw} or in one of the "
            f"{len(folders) - 1} folders there; give the folder of the images with --raw and the list with --list"
        )
    return folders[held.index(max(held))]


def _folders_in(folder: Path, most: int = 50) -> list[Path]:
    try:
        with os.scandir(folder) as found:
            inner = sorted(entry.name for entry in found if entry.is_dir() and not entry.name.startswith("."))
    except OSError as error:
        raise InputError(f"{folder}: a folder expected, {error.strerror or error}") from error
    return [folder / name for name in inner[:most]]


# ---- the source


def _open(raw: Path | None, split: str, classes: Path | None) -> RawSplit:
    if raw is None:
        raise InputError(f"image-text: a folder expected, nothing given; name one with {_FORMATS} with --raw")
    folders = [folder for folder in (raw / split, raw) if folder.is_dir()]
    if not folders:
        raise InputError(f"{raw}: a folder expected, none found; name one with {_FORMATS} with --raw")
    if any(map(tars_in, folders)):
        return tars_of_folder(raw, split, None)
    folder = next((folder for folder in folders if _lists_in(folder)), raw)
    lists = _lists_in(folder)
    published = folder / _SPLITS_OF_FLICKR8K.get(split, "")
    if _FLICKR8K in lists and published.is_file():
        return ImageTextSplit(folder / _FLICKR8K, folder, split, chosen=published)
    name = _one_of(lists if folder != raw else _of_split(lists, folder, split), folder, split)
    return ImageTextSplit(folder / name, folder, split)


def _one_of(lists: Sequence[str], folder: Path, split: str) -> str:
    """The list that is meant: one that is known by its name, else the only table or JSON, else the only text."""
    known = [name for name in _KNOWN_LISTS if name in lists][:1]
    found = known or [name for name in lists if not name.endswith(".txt")] or lists
    if len(found) != 1:
        shown = ", ".join(found[:8] or _lists_in(folder)[:8]) or "none"
        raise InputError(
            f"{folder}: one list of split {split} expected ({_FORMATS}), found: {shown}; name the right one with --list"
        )
    return found[0]


def _of_split(lists: Sequence[str], folder: Path, split: str) -> list[str]:
    """The lists that say `split` in their names, else those that say it of each image."""
    return of_split(lists, split) or [name for name in of_no_split(lists) if _says_splits(folder / name)]


def _says_splits(list_file: Path) -> bool:
    try:
        return any(found.split is not None for found in islice(read_captions(list_file, Remarks()), 1))
    except InputError:
        return False  # another text beside the images


def _lists_in(folder: Path) -> list[str]:
    """The names of the lists in a folder, sorted; not those that img2dataset leaves beside its images."""
    return sorted(
        name
        for name in os.listdir(folder)
        if name.lower().endswith(_LIST_SUFFIXES) and not name.startswith(".") and not name.endswith("_stats.json")
    )


def _open_list(raw: Path | None, split: str, list_file: Path) -> ImageTextSplit:
    if raw is not None and not list_file.is_file() and (raw / list_file).is_file():
        list_file = raw / list_file
    return ImageTextSplit(list_file, raw or list_file.parent, split)


def _open_pattern(pattern: str, split: str, classes: Path | None) -> TarSplit:
    return tars_of_pattern(pattern, split, None)


IMAGE_TEXT = Source(
    name="image-text",
    description="images with captions: Flickr8k, Flickr30k, CC3M, your own; lists, or tars by img2dataset",
    layout="<list>.{csv,tsv,jsonl,token} and the images, or *.tar",
    classes="captions",
    images="any",
    download="no need",
    splits=("train", "val", "test"),
    names_splits=True,
    default_splits=("train",),
    pixels="keep",
    open=_open,
    open_pattern=_open_pattern,
    open_list=_open_list,
)
