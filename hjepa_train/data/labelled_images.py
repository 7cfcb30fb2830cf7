"""Labelled images that probes learn from and are tested on, and what an encoder makes of them.

Bank and test are the first samples of their splits in manifest order, which is a keyed shuffle, so they are random
subsets, the same for every run. Their labels meet by class name (shared_classes.py).

Axes: N images, R pixels a side, D width, S tokens.
"""

import difflib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from pydantic import Field
from torch import Tensor

from hjepa_shards import SOURCES, DataConfig, manifest_at, place_of, read_split, splits_at
from hjepa_shards.config import Strict
from hjepa_shards.errors import InputError
from hjepa_train.backbones.base import Backbone
from hjepa_train.data.augment import normalise
from hjepa_train.data.shared_classes import LabelNumbers, counted, label_numbers

BATCH = 256
_LAST_STAGES = 4
_MOST_TOKEN_BYTES = 2**31
"""Of an encoder's tokens that are kept between passes; above, the images are encoded again in each."""


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
    """Images with their labels, on one device."""

    images: Tensor
    """uint8 [N, 3, R, R]"""
    labels: Tensor
    """int64 [N] numbers of train's classes, -1 where there is none"""


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


def labelled_batches(
    data: DataConfig, source: str, split: str, limit: int, crop_share: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """Images, uint8 [n, 3, R, R], and labels [n] of a split's first samples, a few at a time, on the CPU.

    Labels are those of train: -1 where there is none, UNKNOWN for a class that train does not name. InputError where
    the two cannot be compared.
    """
    numbers: LabelNumbers | None = None
    for images, labels in _own_batches(data, source, split, limit, crop_share):
        if numbers is None and (labels >= 0).any():
            numbers = label_numbers(data, source, split)
        yield images, numbers(labels) if numbers else labels


def _own_batches(
    data: DataConfig, source: str, split: str, limit: int, crop_share: float
) -> Iterator[tuple[Tensor, Tensor]]:
    """The same with the labels of the split itself."""
    batches = read_split(
        place_of(data.root, source, split),
        image_size=data.image_size,
        batch=BATCH,
        crop_share=crop_share,
        limit=limit,
        cache=data.cache,
    )
    for batch in batches:
        images = torch.from_numpy(batch.images[batch.valid]).permute(0, 3, 1, 2)
        yield images, torch.from_numpy(batch.labels[batch.valid])


def read_bank_and_test(
    data: DataConfig, settings: EvaluationConfig, source: str, split: str, device: torch.device
) -> tuple[Labelled, Labelled, Apart, Apart]:
    """The bank, the test without what cannot be scored, what was left out of it, and what has no image in the bank.

    Left out is what train does not have. A class of train that the bank's first samples happen to lack stays in the
    test: a larger bank has it. InputError where a split has no label, or where nothing is left to be tested on.
    """
    bank = _read_labelled(data, source, "train", settings.bank, settings.crop_share)
    own = _read_labelled(data, source, split, settings.test, settings.crop_share)
    numbers = label_numbers(data, source, split)
    bank_labels = label_numbers(data, source, "train")(bank.labels)
    labels = numbers(own.labels)
    is_whole = settings.bank >= manifest_at(place_of(data.root, source, "train")).num_samples
    counts = counted(bank_labels, labels, is_whole=is_whole) | (labels == -1)
    if not counts.any():
        found = sorted({numbers.name(label) for label in own.labels.unique().tolist()})
        raise InputError(
            f"{numbers.where}: images of classes that {place_of(data.root, source, 'train')} has images of expected, "
            f"none among {len(labels):,}; their classes are {', '.join(map(repr, found[:5]))}"
            f"{f' and {len(found) - 5:,} more' if len(found) > 5 else ''}; name another split with --split"
        )

    def apart(rows: Tensor) -> Apart:
        names = {numbers.name(label) for label in own.labels[rows].unique().tolist()}
        return Apart(images=int(rows.sum()), classes=tuple(sorted(names)))

    return (
        Labelled(images=bank.images.to(device), labels=bank_labels.to(device)),
        Labelled(images=own.images[counts].to(device), labels=labels[counts].to(device)),
        apart(~counts),
        apart(counts & (labels >= 0) & ~torch.isin(labels, bank_labels)),
    )


def _read_labelled(data: DataConfig, source: str, split: str, limit: int, crop_share: float) -> Labelled:
    """A split's first samples, on the CPU, with its own labels. InputError where none has a label."""
    pairs = list(_own_batches(data, source, split, limit, crop_share))
    labels = torch.cat([labels for _, labels in pairs])
    if (labels < 0).all():
        raise InputError(
            f"{place_of(data.root, source, split)}: labels to probe for expected, none found; name a labelled source "
            "with --source: cifar10, say, or a folder that was built from train/<class>/ and test/<class>/"
        )
    return Labelled(images=torch.cat([images for images, _ in pairs]), labels=labels)


@torch.no_grad()
def pooled_features(encoder: Backbone, images_N3RR: Tensor, data: DataConfig) -> Tensor:
    """[N, D], an image's one vector each; from uint8."""
    parts = (normalise(part.float(), mean=data.pixel_mean, std=data.pixel_std) for part in images_N3RR.split(BATCH))
    return torch.cat([encoder.encode(encoder.embed(part)).pooled_BD for part in parts])


@torch.no_grad()
def last_stages(encoder: Backbone, images_N3RR: Tensor, data: DataConfig) -> Tensor:
    """[N, 4 D]: the tokens of each of the last four stages averaged, side by side, without the final norm."""
    stages = tuple(range(max(1, encoder.num_stages - _LAST_STAGES + 1), encoder.num_stages + 1))
    parts = (normalise(part.float(), mean=data.pixel_mean, std=data.pixel_std) for part in images_N3RR.split(BATCH))
    return torch.cat(
        [
            torch.cat([tokens.mean(1) for tokens in encoder.encode(encoder.embed(part), stages).stages], 1)
            for part in parts
        ]
    )


def token_reader(encoder: Backbone, images_N3RR: Tensor, data: DataConfig) -> Callable[[Tensor], Tensor]:
    """What gives the last tokens [B, S, D] of the images at given indices [B].

    They are kept in half precision where they fit into 2 GiB; else the encoder is run again for each batch.
    """

    @torch.no_grad()
    def encode(images: Tensor) -> Tensor:
        images = normalise(images.float(), mean=data.pixel_mean, std=data.pixel_std)
        return encoder.encode(encoder.embed(images)).tokens_BND

    first = encode(images_N3RR[:1])
    if len(images_N3RR) * first.numel() * 2 > _MOST_TOKEN_BYTES:
        return lambda index_B: encode(images_N3RR[index_B])
    kept = torch.cat([encode(part).half() for part in images_N3RR.split(BATCH)])
    return lambda index_B: kept[index_B].float()


def _build(source: str, raw_source: str) -> str:
    """The command that builds all usual splits of a source."""
    raw = " --raw DIR" if raw_source not in SOURCES or SOURCES[raw_source].layout else ""
    name = f" --name {source}" if source != raw_source else ""
    inner = " (DIR: train/<class>/ and test/<class>/)" if raw_source == "folder" else ""
    return f"`hjepa-shards build {raw_source}{raw}{name}`{inner}"
