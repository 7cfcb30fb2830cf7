"""Any images of the user's: root/<class>/*.jpg or images straight in root, with or without a folder a split.

A label is the number of a class among the sorted names of train, then those that its own split adds: a split has the
numbers of train whatever classes it lacks.
"""

from pathlib import Path

from hjepa_shards.errors import InputError
from hjepa_shards.shards.class_names import one_name, require_distinct
from hjepa_shards.shards.raw_sample import FILE_EXTENSIONS
from hjepa_shards.sources.base import Provenance, Source
from hjepa_shards.sources.formats.class_folders import TreeSplit, class_folders, entries, is_image, proper_text

_WORDS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""Of a split's folder, in any case."""
_SPLITS = tuple(_WORDS)
_OWN_IMAGES = Provenance(upstream="own images", licence="not stated", citation="")


def _open(raw: Path | None, split: str, classes: Path | None) -> TreeSplit:
    root, remarks = _root(raw, split)
    found = entries(root)
    folders = class_folders(found)
    loose = [entry.name for entry in found if not entry.is_dir() and is_image(entry)] if folders else []
    if loose:
        raise InputError(
            f"{root}: images or one folder a class expected, both found ({len(loose):,} images, {loose[0]} the "
            f"first, and {len(folders):,} folders, {folders[0]} the first); move one of the two elsewhere, or build "
            "all of it without labels (--no-classes)"
        )
    names = tuple(map(proper_text, folders))
    require_distinct(names, str(root))
    class_names = _classes(root, raw, split, names)
    number_of = {one_name(name): label for label, name in enumerate(class_names)}
    return TreeSplit(
        root,
        labels={folder: number_of[one_name(name)] for folder, name in zip(folders, names, strict=True)},
        class_names=class_names,
        provenance=_OWN_IMAGES,
        remarks=remarks,
        beside=tuple(entry.name for entry in found if entry.name not in folders and entry.is_file()) if folders else (),
    )


def _open_unlabelled(raw: Path | None, split: str) -> TreeSplit:
    root, remarks = _root(raw, split)
    return TreeSplit(root, labels={}, class_names=(), provenance=_OWN_IMAGES, remarks=remarks)


def _classes(root: Path, raw: Path | None, split: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """The class names of a split: those of train, then those that it alone has."""
    train = None if raw is None or not names or split == "train" or root == raw else _split_folders(raw).get("train")
    if train is None:
        return names
    known = tuple(map(proper_text, class_folders(entries(train))))
    require_distinct(known, str(train))
    common = set(map(one_name, known))
    return (*known, *(name for name in names if one_name(name) not in common))


def _root(raw: Path | None, split: str) -> tuple[Path, tuple[str, ...]]:
    """The folder of a split's images or classes, and what a user should know about what is beside it."""
    if raw is None:
        raise InputError("folder: a folder of images expected, nothing given; name it with --raw")
    if not raw.is_dir():
        raise InputError(f"{raw}: a folder of images expected, no such folder found; name it with --raw")
    standing = _split_folders(raw)
    if split in standing:
        root, names = standing[split], {folder.name for folder in standing.values()}
        beside = [entry.name for entry in entries(raw) if entry.name not in names]
        return root, (_not_read(root, beside),) if beside else ()
    if split != "train" or standing:
        raise InputError(
            f"{raw / split}: a folder with the images of split {split} expected, none found"
            f"{' beside ' + ', '.join(folder.name for folder in standing.values()) if standing else ''}; make it, or "
            "build another split"
        )
    return raw, ()


def _split_folders(raw: Path) -> dict[str, Path]:
    """The folder of each split that has one. InputError where a split has two.

    Words that are not a split's own name may be classes (a Train beside Car and Bus): they count where there are
    two splits, or nothing else.
    """
    folders = class_folders(entries(raw))
    found = [(split, name) for split, words in _WORDS.items() for name in folders if name.lower() in words]
    exact = [(split, name) for split, name in found if split == name]
    if len({split for split, _ in found}) < 2 and len(found) < len(folders):
        found = exact
    standing: dict[str, Path] = {}
    for split, name in found:
        if split in standing:
            raise InputError(
                f"{raw}: one folder for the split {split} expected, {standing[split].name} and {name} found; rename "
                "or join them"
            )
        standing[split] = raw / name
    return standing


def _not_read(root: Path, beside: list[str]) -> str:
    more = f" and {len(beside) - 3:,} more" if len(beside) > 3 else ""
    names = ", ".join(map(proper_text, beside[:3]))
    where = f"{proper_text(root.parent.name)}/{proper_text(root.name)}"
    return f"{where} was read as a split; not read: {names}{more} beside it"


def _standing(raw: Path) -> tuple[str, ...]:
    """The splits that have a folder; none where the images are directly in `raw`, or in a folder a class."""
    found = _split_folders(raw)
    return tuple(split for split in _SPLITS if split in found) if "train" in found else ()


FOLDER = Source(
    name="folder",
    description="your own images",
    layout=f"[train|val|test/][<class>/]*.{{{','.join(FILE_EXTENSIONS)}}}",
    classes="any",
    images="any",
    download="no need",
    splits=_SPLITS,
    default_splits=("train",),
    find_splits=_standing,
    pixels="keep",
    open=_open,
    open_unlabelled=_open_unlabelled,
)
