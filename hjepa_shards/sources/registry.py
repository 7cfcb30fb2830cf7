"""Raw image data that can be built into shards. One file a family of sources, one line here."""

import difflib
import re
from pathlib import Path

from hjepa_shards.errors import InputError
from hjepa_shards.shards.manifest import Manifest
from hjepa_shards.sources.base import Provenance, RawSplit, Source
from hjepa_shards.sources.formats.tar_patterns import is_pattern
from hjepa_shards.sources.own import bundled, folder, image_text, webdataset
from hjepa_shards.sources.published import cifar, coco, imagenet, places365, stl10

__all__ = ["SOURCES", "Provenance", "RawSplit", "Source", "default_splits", "open_split", "reopen", "require_source"]

_SPLIT_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")

SOURCES: dict[str, Source] = {
    "cifar10": cifar.CIFAR10,
    "cifar100": cifar.CIFAR100,
    "stl10": stl10.STL10,
    "imagenet": imagenet.IMAGENET,
    "imagenet100": imagenet.IMAGENET100,
    "places365": places365.PLACES365,
    "coco": coco.COCO,
    "folder": folder.FOLDER,
    "webdataset": webdataset.WEBDATASET,
    "image-text": image_text.IMAGE_TEXT,
    "digits": bundled.DIGITS,
    "photos": bundled.PHOTOS,
    "scattered": bundled.SCATTERED,
}


def open_split(
    name: str,
    raw: str | Path | None,
    split: str,
    *,
    classes: Path | None = None,
    list_file: Path | None = None,
    image: str | None = None,
    no_classes: bool = False,
) -> RawSplit:
    """One split of the source called `name`, opened. InputError for what is unknown, missing or of no use.

    raw: folder of the raw data, or a brace pattern or URLs for the sources that take them; None where none is needed.
    classes: file with one class name a line, for the sources that can be filtered.
    list_file: file that names the images, for the sources that go by one.
    image: the member that is a sample's image, for third-party tars.
    no_classes: folders are no classes, for the sources that read them so.
    """
    opened = _opened(name, raw, split, classes, list_file, no_classes)
    if image is not None:
        opened.choose_image(image)
    return opened


def _opened(
    name: str, raw: str | Path | None, split: str, classes: Path | None, list_file: Path | None, no_classes: bool
) -> RawSplit:
    require_source(name)
    source = SOURCES[name]
    if source.names_splits:
        if not _SPLIT_NAME.fullmatch(split):
            raise InputError(f"{name}: a split name of letters, digits, - and _ expected, {split!r} found")
    elif split not in source.splits:
        raise InputError(f"{name}: split {split!r} is unknown; {_nearest(split, list(source.splits))}")
    if raw is not None and not source.layout:
        raise InputError(f"{name}: needs no raw data, {raw} given; leave --raw out")
    if classes is not None and not source.takes_classes:
        raise InputError(f"{name}: cannot be filtered by classes, {classes} given; leave --classes out")
    if list_file is not None:
        if source.open_list is None:
            raise InputError(f"{name}: goes by no list, {list_file} given; leave --list out")
        return source.open_list(None if raw is None else Path(raw), split, list_file)
    if no_classes:
        if source.open_unlabelled is None:
            raise InputError(f"{name}: takes no classes from folders; leave --no-classes out")
        return source.open_unlabelled(None if raw is None else Path(raw), split)
    if isinstance(raw, str) and is_pattern(raw) and not Path(raw).is_dir():
        if source.open_pattern is None:
            raise InputError(f"{name}: a folder expected, {raw!r} found; give the folder that holds the raw data")
        return source.open_pattern(raw, split, classes)
    return source.open(None if raw is None else Path(raw), split, classes)


def reopen(manifest: Manifest, raw: str | Path | None, **how: Path | None) -> RawSplit:
    """The raw split that a built one was made from. InputError as `open_split` has it.

    raw: as `build` took it.  how: `classes`, `list_file` of the build.
    Where folders could be classes and the manifest has none, they were none.
    """
    known = SOURCES.get(manifest.raw_source)
    unlabelled = bool(known and known.open_unlabelled) and not manifest.class_names
    image = manifest.settings.get("image")
    return open_split(manifest.raw_source, raw, manifest.split, image=image, no_classes=unlabelled, **how)


def default_splits(name: str, raw: str | Path | None) -> tuple[str, ...]:
    """What is built when no split is named: the source's usual ones, or those that are in this raw data."""
    source = SOURCES[name]
    if source.find_splits is None or raw is None or not Path(raw).is_dir():
        return source.default_splits
    return source.find_splits(Path(raw)) or source.default_splits


def require_source(name: str) -> None:
    """InputError where no source has this name."""
    if name not in SOURCES:
        raise InputError(f"source {name!r}: unknown; {_nearest(name, list(SOURCES))}")


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
