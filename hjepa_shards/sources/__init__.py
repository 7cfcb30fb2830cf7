"""Raw image data that can be built into shards. One file a family of sources, one line here."""

import difflib
from pathlib import Path

from hjepa_shards.errors import InputError
from hjepa_shards.sources import cifar, folder, imagenet, offline, stl10
from hjepa_shards.sources.base import Provenance, RawSplit, Source

__all__ = ["SOURCES", "Provenance", "RawSplit", "Source", "open_split"]

SOURCES: dict[str, Source] = {
    "cifar10": cifar.CIFAR10,
    "cifar100": cifar.CIFAR100,
    "stl10": stl10.STL10,
    "imagenet": imagenet.IMAGENET,
    "imagenet100": imagenet.IMAGENET100,
    "folder": folder.FOLDER,
    "digits": offline.DIGITS,
    "photos": offline.PHOTOS,
    "scattered": offline.SCATTERED,
}


def open_split(name: str, raw: Path | None, split: str, *, classes: Path | None = None) -> RawSplit:
    """One split of the source called `name`, opened. InputError for what is unknown, missing or of no use.

    raw: folder of the raw data, None where the source needs none.
    classes: file with one class name a line, for the sources that can be filtered.
    """
    if name not in SOURCES:
        raise InputError(f"source {name!r}: unknown; {_nearest(name, list(SOURCES))}")
    source = SOURCES[name]
    if split not in source.splits:
        raise InputError(f"{name}: split {split!r} is unknown; {_nearest(split, list(source.splits))}")
    if raw is not None and not source.layout:
        raise InputError(f"{name}: needs no raw data, {raw} given; leave --raw out")
    if classes is not None and not source.takes_classes:
        raise InputError(f"{name}: cannot be filtered by classes, {classes} given; leave --classes out")
    return source.open(raw, split, classes)


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(known)}"
