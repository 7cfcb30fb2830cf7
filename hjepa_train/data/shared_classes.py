"""Labels of a test split as numbers of the train split: the two meet by the names of their classes.

A number means something only in its own split: a test split without bees may call 1 what train calls 2. So labels are
carried over by class names, compared in Unicode's composed form. Splits without names have bare numbers, which meet
bare numbers only; names that repeat their numbers ("0", "1", ...) count as bare.

Legend: N labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from hjepa_shards import DataConfig, manifest_at, place_of
from hjepa_shards.errors import InputError
from hjepa_train.base.mixture_facts import numbers_among

UNKNOWN = -2
"""The number of a class that train does not name; -1 is an image without a label."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class LabelNumbers:
    """What the labels of one split are among the classes of train."""

    where: str
    """The split, for errors."""
    names: Sequence[str]
    """Of its own labels; none where they are bare numbers."""
    numbers: Sequence[int] | None
    """Of its own labels, in train: UNKNOWN where train has no such class. None: each label is its own number."""
    num_classes: int | None
    """Of train, where they are known."""

    def __call__(self, labels_N: Tensor) -> Tensor:
        """[N] numbers in train; -1 stays. InputError for a label that has no name where the others have one."""
        if self.numbers is None:
            unknown_N = labels_N >= self.num_classes if self.num_classes is not None else labels_N < -1
            return labels_N.masked_fill(unknown_N, UNKNOWN)
        if len(labels_N) and int(labels_N.max()) >= len(self.numbers):
            raise InputError(
                f"{self.where}: labels below {len(self.numbers)}, one a class name, expected, {int(labels_N.max())} "
                "found; run `hjepa-shards verify --deep`, and build or index it again"
            )
        table = torch.tensor([*self.numbers, -1], device=labels_N.device)
        return table[labels_N.clamp(min=-1)]

    def name(self, label: int) -> str:
        """What a label of this split is called."""
        return self.names[label] if label < len(self.names) else str(label)


def label_numbers(data: DataConfig, source: str, split: str) -> LabelNumbers:
    """How labels of `split` become those of the train split of the same source.

    InputError where one of the two has class names and the other bare numbers, or where they have no class in common.
    """
    train_place, place = place_of(data.root, source, "train"), place_of(data.root, source, split)
    train, own = manifest_at(train_place).class_names, manifest_at(place).class_names
    if train and own:
        numbers = numbers_among(train, own, UNKNOWN)
        if max(numbers) == UNKNOWN:
            raise InputError(
                f"{place}: classes of {train_place} ({_some(train)}) expected, none of them among {_some(own)}; name "
                "another split with --split, or give the folders of the same classes the same names"
            )
        return LabelNumbers(where=str(place), names=own, numbers=numbers, num_classes=len(train))
    if not (_are_bare(train) and _are_bare(own)):
        named, bare = (train_place, place) if train else (place, train_place)
        raise InputError(
            f"{place}: class names in both splits or in neither expected, found in {named} ({_some(train or own)}) and "
            f"not in {bare}, whose numbers may mean other classes; build it with class names (webdataset: --classes)"
        )
    return LabelNumbers(where=str(place), names=own, numbers=None, num_classes=len(train) or None)


def require_shared_classes(data: DataConfig, source: str, split: str) -> None:
    """InputError where labels of `split` cannot be compared with those of train; not where one of them has none."""
    manifests = [manifest_at(place_of(data.root, source, part)) for part in ("train", split)]
    if all(manifest.class_names or "cls" in manifest.members for manifest in manifests):
        label_numbers(data, source, split)


def counted(bank_N: Tensor, test_M: Tensor, *, is_whole: bool) -> Tensor:
    """Which rows of a test count, of numbers in train: [M], False for classes that train does not have.

    is_whole: the bank is all of train, so a class that is not in it is not in train, whatever names train has.
    """
    return (test_M >= 0) & torch.isin(test_M, bank_N) if is_whole else test_M >= 0


def _are_bare(names: Sequence[str]) -> bool:
    return all(name == str(number) for number, name in enumerate(names))


def _some(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(map(repr, names[:most])) + f" and {len(names) - most:,} more" * (len(names) > most)
