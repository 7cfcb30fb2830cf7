"""Any images of the user's: root/<class>/*.jpg or images straight in root, with or without a folder a split."""

from pathlib import Path

from hjepa_shards.errors import InputError
from hjepa_shards.sample import IMAGE_EXTENSIONS, extension_of
from hjepa_shards.sources.base import Provenance, Source
from hjepa_shards.sources.tree import TreeSplit, entries, proper_text

_SPLITS = ("train", "val", "test")


def _open(raw: Path | None, split: str, classes: Path | None) -> TreeSplit:
    if raw is None:
        raise InputError("folder: a folder of images expected, nothing given; name it with --raw")
    root = _root(raw, split)
    found = entries(root)
    folders = tuple(entry.name for entry in found if entry.is_dir())
    loose = [entry.name for entry in found if extension_of(entry.name) and not entry.is_dir()]
    if folders and loose:
        raise InputError(
            f"{root}: images or one folder a class expected, both found ({len(loose):,} images, {loose[0]} the "
            f"first, and {len(folders):,} folders, {folders[0]} the first); move one of the two elsewhere"
        )
    return TreeSplit(
        root,
        folders=folders,
        class_names=tuple(map(proper_text, folders)),
        provenance=Provenance(upstream="own images", licence="not stated", citation=""),
    )


def _root(raw: Path, split: str) -> Path:
    if not raw.is_dir():
        raise InputError(f"{raw}: a folder of images expected, no such folder found; name it with --raw")
    if (raw / split).is_dir():
        return raw / split
    others = [name for name in _SPLITS if (raw / name).is_dir()]
    if split != "train" or others:
        raise InputError(
            f"{raw / split}: a folder with the images of split {split} expected, none found"
            f"{' beside ' + ', '.join(others) if others else ''}; make it, or build another split"
        )
    return raw


FOLDER = Source(
    name="folder",
    description="your own images",
    layout=f"[train|val|test/][<class>/]*.{{{','.join(IMAGE_EXTENSIONS)}}}",
    classes="any",
    images="any",
    download="no need",
    splits=_SPLITS,
    default_splits=("train",),
    pixels="keep",
    open=_open,
)
