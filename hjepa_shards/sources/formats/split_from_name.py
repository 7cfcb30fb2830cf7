"""Which split a file belongs to, by the words in its name: `cc3m-train-0000.tar`, `val2017.csv`."""

import re
from collections.abc import Sequence

_WORDS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
_ALL_WORDS = {word for words in _WORDS.values() for word in words}


def of_split(names: Sequence[str], split: str) -> list[str]:
    """Those of `names` that say `split`; where none does and train is requested, those that say no split at all."""
    said = [(name, set(re.findall(r"[a-z]+", name.lower()))) for name in names]
    words = set(_WORDS.get(split, re.findall(r"[a-z]+", split.lower())))
    mine = [name for name, found in said if found & words]
    if mine or split != "train":
        return mine
    return of_no_split(names)


def of_no_split(names: Sequence[str]) -> list[str]:
    """Those of `names` that say no split at all."""
    return [name for name in names if not set(re.findall(r"[a-z]+", name.lower())) & _ALL_WORDS]


def in_split(said: str, split: str) -> bool:
    """Whether what a list says of an image's split means `split`; an image of which it says nothing is in train."""
    said = said.strip().lower() or "train"
    return said == split.lower() or said in _WORDS.get(split, ())
