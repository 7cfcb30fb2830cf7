"""ImageNet as a tree of synset folders, whole or filtered by a class list; ImageNet-100 is the published list of CMC.

A label is the index in the sorted list of chosen synsets: for all 1,000 this is the usual numbering.
"""

import re
from functools import cache, partial
from importlib import resources
from pathlib import Path

from hjepa_shards.errors import InputError
from hjepa_shards.sources.base import Provenance, Source, raw_folder
from hjepa_shards.sources.tree import TreeSplit, entries

_SYNSET = re.compile(r"n\d{8}")
_UNPACKED = ("ILSVRC/Data/CLS-LOC", "Data/CLS-LOC")
"""Where Kaggle's archive has train/."""
_ADVICE = (
    "register at https://image-net.org/download.php, fetch ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, "
    "unpack them to train/<synset>/*.JPEG and val/<synset>/*.JPEG, and give the folder that holds train and val"
)
_PROVENANCE = Provenance(
    upstream="ILSVRC 2012, https://image-net.org",
    licence="terms of access of image-net.org: research and education, not commercial",
    citation="O. Russakovsky et al.: ImageNet Large Scale Visual Recognition Challenge, IJCV 2015",
)


@cache
def synset_names() -> dict[str, str]:
    """Synset -> its words, of the 1,000 of ILSVRC 2012."""
    return dict(line.split("\t") for line in _shipped("imagenet1000.tsv"))


def read_classes(path: Path) -> tuple[str, ...]:
    """The synsets of a class list, sorted: one a line, whatever follows it is left out, `#` begins a comment."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: a list of synsets expected, cannot be read: {error}") from error
    synsets: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        if not _SYNSET.fullmatch(words[0]):
            raise InputError(f"{path}, line {number}: a synset such as n01440764 expected, {words[0]!r} found")
        if words[0] in synsets:
            raise InputError(f"{path}, line {number}: {words[0]} again, first on line {synsets[words[0]]}; remove one")
        synsets[words[0]] = number
    if not synsets:
        raise InputError(f"{path}: synsets expected, one a line, none found")
    return tuple(sorted(synsets))


def _open(shipped: str, raw: Path | None, split: str, classes: Path | None) -> TreeSplit:
    synsets = read_classes(classes) if classes else tuple(line.split()[0] for line in _shipped(shipped))
    root = raw_folder(raw, _UNPACKED, (split,), _ADVICE) / split
    found = {entry.name for entry in entries(root) if entry.is_dir()}
    missing = [synset for synset in synsets if synset not in found]
    if missing:
        shown = ", ".join(_class_name(synset) for synset in missing[:5])
        more = f" and {len(missing) - 5:,} more" if len(missing) > 5 else ""
        raise InputError(
            f"{root}: {len(synsets):,} class folders expected, {len(synsets) - len(missing):,} of them found; "
            f"missing: {shown}{more}; {_ADVICE}, or choose what you have with --classes FILE"
        )
    return TreeSplit(root, folders=synsets, class_names=tuple(map(_class_name, synsets)), provenance=_PROVENANCE)


def _class_name(synset: str) -> str:
    return f"{synset} {synset_names()[synset]}" if synset in synset_names() else synset


def _shipped(name: str) -> list[str]:
    return resources.files("hjepa_shards.sources").joinpath(name).read_text(encoding="utf-8").splitlines()


IMAGENET = Source(
    name="imagenet",
    description="ILSVRC 2012: photographs of a thousand kinds of things",
    layout="train/<synset>/*.JPEG, val/<synset>/*.JPEG",
    classes="1,000",
    images="train 1,281,167, val 50,000 of about 500x375",
    download="manual",
    splits=("train", "val"),
    default_splits=("train", "val"),
    pixels="jpeg",
    takes_classes=True,
    open=partial(_open, "imagenet1000.tsv"),
)
IMAGENET100 = Source(
    name="imagenet100",
    description="a hundred classes of ImageNet: the published list, or your own with --classes FILE",
    layout="train/<synset>/*.JPEG, val/<synset>/*.JPEG",
    classes="100",
    images="train 126,689, val 5,000 of about 500x375",
    download="manual",
    splits=("train", "val"),
    default_splits=("train", "val"),
    pixels="jpeg",
    takes_classes=True,
    open=partial(_open, "imagenet100.txt"),
)
