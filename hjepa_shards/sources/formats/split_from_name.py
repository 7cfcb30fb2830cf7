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
    return [name for name, found in said if not found & _ALL_WORDS]
