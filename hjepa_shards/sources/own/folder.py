"""Any images of the user's: root/<class>/*.jpg or images straight in root, with or without a folder a split."""

from pathlib import Path

from hjepa_shards.errors import InputError
from hjepa_shards.shards.raw_sample import IMAGE_EXTENSIONS, extension_of
from hjepa_shards.sources.base import Provenance, Source
from hjepa_shards.sources.formats.class_folders import TreeSplit, entries, proper_text

_SPLITS = ("train", "val", "test")


def _open(raw: Path | None, split: str, classes: Path | None) -> TreeSplit:
    if raw is None:
        raise InputError("folder: a folder of images expected, nothing given; name it with --raw")
    root = _root(raw, split)
    beside = [] if root == raw else [entry.name for entry in entries(raw) if entry.name not in _SPLITS]
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
        remarks=(_not_read(raw, split, beside),) if beside else (),
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


def _not_read(raw: Path, split: str, beside: list[str]) -> str:
    more = f" and {len(beside) - 3:,} more" if len(beside) > 3 else ""
    names = ", ".join(map(proper_text, beside[:3]))
    return f"{proper_text(str(raw.name))}/{split} was read as a split; not read: {names}{more} beside it"


def _standing(raw: Path) -> tuple[str, ...]:
    """The splits that have a folder; none where the images are directly in `raw`, or in a folder a class."""
    found = tuple(split for split in _SPLITS if (raw / split).is_dir())
    return found if "train" in found else ()


FOLDER = Source(
    name="folder",
    description="your own images",
    layout=f"[train|val|test/][<class>/]*.{{{','.join(IMAGE_EXTENSIONS)}}}",
    classes="any",
    images="any",
    download="no need",
    splits=_SPLITS,
    default_splits=("train",),
    find_splits=_standing,
    pixels="keep",
    open=_open,
)
