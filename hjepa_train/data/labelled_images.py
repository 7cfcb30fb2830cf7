"""Labelled images that probes learn from and are tested on: labels in memory, pixels read each time they are needed.

Bank and test are the first samples of their splits in manifest order, which is a keyed shuffle, so they are random
subsets, the same for every run. Their labels meet by class name (shared_classes.py); samples without one are left out.

Axes: N images, R pixels a side, B a batch.
"""

import difflib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from hjepa_shards import SOURCES, Batch, DataConfig, SplitView, manifest_at, place_of, read_split, splits_at
from hjepa_shards.config import Strict
from hjepa_shards.errors import InputError
from hjepa_train.data.shared_classes import counted, label_numbers

BATCH = 256


class EvaluationConfig(Strict):
    """Where frozen features are probed."""

    source: str | None = None
    """A built source with labels; by default the first of the mixture."""
    split: str | None = None
    """The split to test on; by default test, or val where there is no test."""
    bank: int = Field(default=10_000, ge=2)
    """Labelled training images that the probes learn from."""
    test: int = Field(default=4_000, ge=1)
    """Images they are tested on."""
    crop_share: float = Field(default=0.875, gt=0, le=1)
    """Side of the central crop as a share of the shorter side: .875 is the usual 224 of 256; 1 for small images."""
    during_every_epochs: float | None = Field(default=None, ge=0, le=2**48)
    """How often the encoders are probed while they train; 0 never. By default each epoch, or less often where epochs
    are short, so that it takes a few percent of the time; not at all where the source is not built or has no labels."""
    during_bank: int = Field(default=2_000, ge=2)
    """Images of the bank that those probes learn from."""
    during_test: int = Field(default=1_000, ge=1)
    """Images they are tested on."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Labelled:
    """Labelled images of a split, in manifest order."""

    data: DataConfig
    source: str
    split: str
    crop_share: float
    samples_N: Tensor
    """Their numbers in the split."""
    labels: Tensor
    """int64 [N] numbers of train's classes, on the device that images come to"""
    unlabelled: int
    """Samples among those requested that have no label, and are none of these."""

    def __len__(self) -> int:
        return len(self.labels)

    def share(self, rank: int, world: int) -> range:
        """Which of them a rank reads."""
        return range(rank * len(self) // world, (rank + 1) * len(self) // world)

    def batches(self, rank: int = 0, world: int = 1) -> Iterator[Tensor]:
        """uint8 [B, 3, R, R], B up to 256: the images of a rank's share.

        All ranks get as many batches of the same sizes; what is beyond a rank's share repeats an image of its own.
        """
        for batch in self._read(self.samples_N, BATCH, rank, world):
            yield self._tensor(batch.images)

    def at(self, index_B: Tensor) -> Tensor:
        """uint8 [B, 3, R, R]: the images at these indices of [0, N)."""
        [batch] = self._read(self.samples_N[index_B.cpu()], len(index_B), 0, 1)
        return self._tensor(batch.images)

    def _read(self, samples: Tensor, batch: int, rank: int, world: int) -> Iterator[Batch]:
        return read_split(
            place_of(self.data.root, self.source, self.split),
            image_size=self.data.image_size,
            batch=batch,
            crop_share=self.crop_share,
            samples=samples.numpy(),
            rank=rank,
            world=world,
            cache=self.data.cache,
        )

    def _tensor(self, images: NDArray[np.uint8]) -> Tensor:
        return torch.from_numpy(images).permute(0, 3, 1, 2).to(self.labels.device)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Apart:
    """Images of a test whose classes the bank does not have."""

    images: int
    classes: tuple[str, ...]
    """Their names, sorted."""

    def as_dict(self) -> dict[str, Any]:
        return {"images": self.images, "classes": list(self.classes)}


def held_out_split(data: DataConfig, source: str, wanted: str | None) -> str:
    """The split to test on, which is beside a train split for the bank."""
    where = f"{data.root.rstrip('/')}/{source}"
    built = splits_at(data.root, source, [wanted] if wanted else [])
    if not built:
        others = sorted({*(folder.name for folder in Path(data.root).glob("*")), *(one.name for one in data.sources)})
        others = [other for other in others if splits_at(data.root, other)]
        nearest = difflib.get_close_matches(source, others, n=1)
        advice = f"did you mean {nearest[0]}?" if nearest else f"built there: {', '.join(others) or 'nothing'}"
        if source in SOURCES:
            advice = f"build it with {_build(source, source)}"
        raise InputError(f"{where}: a built source expected, none found; {advice}")
    tests = [wanted] if wanted else [split for split in ("test", "val") if split in built]
    if not tests or tests[0] not in built or tests[0] == "train" or "train" not in built:
        raw_source = manifest_at(place_of(data.root, source, built[0])).raw_source
        raise InputError(
            f"{where}: a split train to fit the probe on and another, {wanted or 'test or val'}, to test it on "
            f"expected, {', '.join(built)} found; build it with {_build(source, raw_source)}, or name another source "
            "with --source or split with --split"
        )
    return tests[0]


def split_labels(data: DataConfig, source: str, split: str, limit: int) -> Tensor:
    """[N] labels of a split's first samples, the split's own numbers; -1: none. No image is read."""
    with closing(SplitView(place_of(data.root, source, split), cache=data.cache)) as view:
        return torch.from_numpy(view.labels(limit))


def read_bank_and_test(
    data: DataConfig, settings: EvaluationConfig, source: str, split: str, device: torch.device
) -> tuple[Labelled, Labelled, Apart, Apart]:
    """The bank, the test without what cannot be scored, what was left out of it, and what has no image in the bank.

    Left out is what train does not have. A class of train that the bank's first samples happen to lack stays in the
    test: a larger bank has it. Samples without a label are counted apart. InputError where a split has no label, or
    where nothing is left to be tested on.
    """
    bank_own = _some_labels(data, source, "train", settings.bank)
    own = _some_labels(data, source, split, settings.test)
    numbers = label_numbers(data, source, split)
    bank_labels = label_numbers(data, source, "train")(bank_own)
    labels = numbers(own)
    is_whole = settings.bank >= manifest_at(place_of(data.root, source, "train")).num_samples
    counts = counted(bank_labels, labels, is_whole=is_whole)
    if not counts.any():
        found = sorted({numbers.name(label) for label in own[own >= 0].unique().tolist()})
        raise InputError(
            f"{numbers.where}: images of classes that {place_of(data.root, source, 'train')} has images of expected, "
            f"none among {len(labels):,}; their classes are {', '.join(map(repr, found[:5]))}"
            f"{f' and {len(found) - 5:,} more' if len(found) > 5 else ''}; name another split with --split"
        )

    def labelled(name: str, of_train: Tensor, wanted: Tensor) -> Labelled:
        return Labelled(
            data=data,
            source=source,
            split=name,
            crop_share=settings.crop_share,
            samples_N=wanted.nonzero()[:, 0],
            labels=of_train[wanted].to(device),
            unlabelled=int((of_train == -1).sum()),
        )

    def apart(rows: Tensor) -> Apart:
        names = {numbers.name(label) for label in own[rows].unique().tolist()}
        return Apart(images=int(rows.sum()), classes=tuple(sorted(names)))

    return (
        labelled("train", bank_labels, bank_labels >= 0),
        labelled(split, labels, counts),
        apart(~counts & (labels != -1)),
        apart(counts & ~torch.isin(labels, bank_labels)),
    )


def _some_labels(data: DataConfig, source: str, split: str, limit: int) -> Tensor:
    """The same. InputError where none has a label."""
    labels = split_labels(data, source, split, limit)
    if (labels < 0).all():
        raise InputError(
            f"{place_of(data.root, source, split)}: labels to probe for expected, none found; name a labelled source "
            "with --source: cifar10, say, or a folder that was built from train/<class>/ and test/<class>/"
        )
    return labels


def _build(source: str, raw_source: str) -> str:
    """The command that builds all usual splits of a source."""
    raw = " --raw DIR" if raw_source not in SOURCES or SOURCES[raw_source].layout else ""
    name = f" --name {source}" if source != raw_source else ""
    inner = " (DIR: train/<class>/ and test/<class>/)" if raw_source == "folder" else ""
    return f"`hjepa-shards build {raw_source}{raw}{name}`{inner}"
