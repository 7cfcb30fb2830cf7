"""COCO 2017: photographs with the captions that people wrote, all of an image's, in the order of their ids.

The annotation file decides what belongs to a split. As with every list: a few images that are absent are excluded by
name, more are refused before anything is built (a zip that was unpacked in part). Of the annotations only what becomes
part of a sample is kept while parsing: the file of the training split has 92 MB.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, final

from hjepa_shards.errors import DecodeError, InputError, ShardError
from hjepa_shards.shards.raw_sample import RawSample, extension_of
from hjepa_shards.sources.base import Provenance, RawSplit, Source, raw_folder
from hjepa_shards.sources.formats.image_files import FolderFiles, absent

_SPLITS = {
    "train": ("train2017", "captions_train2017.json"),
    "val": ("val2017", "captions_val2017.json"),
    "test": ("test2017", "image_info_test2017.json"),
    "unlabeled": ("unlabeled2017", "image_info_unlabeled2017.json"),
}
"""Folder of images, file of annotations."""
_URL = "https://cocodataset.org/#download"
_KEPT = ("images", "annotations", "licenses", "id", "file_name", "license", "image_id", "caption", "name")
_AGAIN = "unpack or fetch it again"


@final
class CocoSplit(RawSplit):
    """One split, its images named as in their folder, without labels."""

    class_names = ()
    provenance = Provenance(
        upstream=f"COCO 2017, {_URL}",
        licence="annotations: CC BY 4.0; images: each its own, under Flickr's terms",
        citation="T.-Y. Lin et al.: Microsoft COCO: Common Objects in Context, ECCV 2014; X. Chen et al.: Microsoft "
        "COCO Captions, arXiv:1504.00325",
    )

    def __init__(self, folder: Path, annotations: Path) -> None:
        self.files = FolderFiles(folder)
        self.annotations = annotations
        self.absent = absent(self.files, (sample.name for sample in self.samples), annotations)
        self.num_unlisted = len(self.files) - (len(self.samples) - len(self.absent))
        """Images in the folder that the annotations do not name: they are not built."""

    @property
    def notes(self) -> tuple[str, ...]:
        if not self.num_unlisted:
            return self._annotated.notes
        where, listed = self.files.where.name, self.annotations.name
        more = f"{self.num_unlisted:,} images in {where} that {listed} does not list: left out"
        return (*self._annotated.notes, more)

    def list_samples(self) -> Sequence[RawSample]:
        return self._annotated.samples

    def read(self, sample: RawSample) -> bytes:
        if sample.name in self.absent:
            raise DecodeError(f"named by {self.annotations.name}, not among the images")
        return self.files.read(sample.name, None)

    def files_of(self, samples: Iterable[RawSample]) -> Iterator[Path]:
        yield self.annotations
        yield from (self.files.path(sample.name) for sample in samples)

    @cached_property
    def _annotated(self) -> "_Annotated":
        return _read(self.annotations)


@dataclass(frozen=True, slots=True)
class _Annotated:
    samples: Sequence[RawSample]
    notes: tuple[str, ...]


def _read(path: Path) -> _Annotated:
    """The images of an annotation file with their captions. ShardError for anything that it should not be."""
    content = _parsed(path)
    images = _entries(path, content, "images")
    if not images:
        raise ShardError(f"{path}: images expected, none listed; {_AGAIN}")
    captions: dict[int, list[tuple[int, str]]] = {_number(path, image, "id"): [] for image in images}
    if len(captions) < len(images):
        raise ShardError(f"{path}: {len(images):,} images expected to have an id each, two share one; {_AGAIN}")
    unlisted = 0
    for entry in _entries(path, content, "annotations") if "annotations" in content else ():
        written = captions.get(_number(path, entry, "image_id"))
        if written is None:
            unlisted += 1
        else:
            written.append((_number(path, entry, "id"), _proper(_text(path, entry, "caption"))))
    samples = [
        RawSample(
            name=_file_name(path, image),
            index=0,
            captions=tuple(text for _, text in sorted(captions[image["id"]], key=lambda pair: pair[0])),
        )
        for image in images
    ]
    names = Counter(sample.name for sample in samples)
    if len(names) < len(samples):
        raise ShardError(f"{path}: names {names.most_common(1)[0][0]} twice; {_AGAIN}")
    notes = [_licences(path, content, images)]
    if unlisted:
        notes.append(f"{unlisted:,} captions belong to images that {path.name} does not list")
    if "annotations" in content and (bare := sum(not sample.captions for sample in samples)):
        notes.append(f"{bare:,} images without a caption")
    return _Annotated(samples, tuple(filter(None, notes)))


def _parsed(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes(), object_hook=_slim)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise ShardError(f"{path}: annotations in JSON expected, {type(error).__name__}: {error}; {_AGAIN}") from error
    if not isinstance(content, dict):
        raise ShardError(f"{path}: an object with images and annotations expected, {_shown(content)} found; {_AGAIN}")
    return content


def _slim(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: entry[key] for key in _KEPT if key in entry}


def _entries(path: Path, content: dict[str, Any], key: str) -> list[dict[str, Any]]:
    found = content.get(key)
    if not isinstance(found, list) or not all(isinstance(entry, dict) for entry in found):
        raise ShardError(f"{path}: {key}: a list of objects expected, {_shown(found)} found; {_AGAIN}")
    return found


def _number(path: Path, entry: dict[str, Any], key: str) -> int:
    value = entry.get(key)
    if type(value) is not int:
        raise ShardError(f"{path}: {key}: a whole number expected, {_shown(value)} found in {_shown(entry)}; {_AGAIN}")
    return value


def _text(path: Path, entry: dict[str, Any], key: str) -> str:
    value = entry.get(key)
    if not isinstance(value, str):
        raise ShardError(f"{path}: {key}: a text expected, {_shown(value)} found in {_shown(entry)}; {_AGAIN}")
    return value


def _file_name(path: Path, image: dict[str, Any]) -> str:
    """A name that is in the folder of the images, and nowhere else."""
    name = _text(path, image, "file_name")
    if "/" in name or "\0" in name or name != _proper(name) or name.startswith(".") or not extension_of(name):
        raise ShardError(
            f"{path}: file_name: an image such as 000000000139.jpg expected, {_shown(name)} found; {_AGAIN}"
        )
    return name


def _proper(text: str) -> str:
    """Half a surrogate pair, which JSON can hold and UTF-8 cannot, becomes a question mark."""
    return text.encode("utf-8", "replace").decode()


def _licences(path: Path, content: dict[str, Any], images: Iterable[dict[str, Any]]) -> str:
    """How many images are under which licence; '' where the file does not say."""
    if "licenses" not in content:
        return ""
    names = {_number(path, entry, "id"): _text(path, entry, "name") for entry in _entries(path, content, "licenses")}
    used = Counter(names.get(_number(path, image, "license"), "unknown") for image in images if "license" in image)
    return _proper("licences of the images: " + ", ".join(f"{n:,} {name}" for name, n in used.most_common()))


def _shown(value: object) -> str:
    return ascii(value)[:80]


def _open(raw: Path | None, split: str, classes: Path | None) -> CocoSplit:
    folder, file = _SPLITS[split]
    advice = (
        f"fetch {folder}.zip and the annotations ({_URL}), unpack them side by side, and give the folder that holds "
        f"{folder} and annotations"
    )
    root = raw_folder(raw, ("coco", "coco2017"), (folder, f"annotations/{file}"), advice)
    return CocoSplit(root / folder, root / "annotations" / file)


COCO = Source(
    name="coco",
    description="everyday scenes, each with about five captions",
    layout="{train,val}2017/*.jpg, annotations/captions_{train,val}2017.json",
    classes="none (captions)",
    images="train 118,287, val 5,000, test 40,670, unlabeled 123,403 of about 640x480",
    download="yes",
    splits=("train", "val", "test", "unlabeled"),
    default_splits=("train", "val"),
    pixels="jpeg",
    open=_open,
)
