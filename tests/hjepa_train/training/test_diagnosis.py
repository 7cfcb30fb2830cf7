"""Signals are functions of the global batch: the same for every split of it. For ranks see test_one_step.py."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hjepa_shards.mixture.source_counts import Segment
from hjepa_train.backbones.registry import build_backbone
from hjepa_train.backbones.vit import VitConfig
from hjepa_train.objectives.base import Batch, Objective
from hjepa_train.objectives.contrast.simclr import Simclr, SimclrConfig
from hjepa_train.objectives.joint.hjepa import HJepa, HJepaConfig
from hjepa_train.objectives.masked.mae import Mae, MaeConfig
from hjepa_train.training import diagnosis as module
from hjepa_train.training.diagnosis import MOST_IMAGES, diagnosis, positions_looked_at
from tests.checks import (
    assert_looking_on_leaves_no_trace,
    assert_signals_are_those_of_any_split,
    loaded_of,
    signals_of,
)

SIDE, GLOBAL_BATCH = 16, 64
SMALL = {"width": 16, "depth": 1, "heads": 2}
FAMILIES: dict[str, tuple[type[Any], Any]] = {
    "levels": (HJepa, HJepaConfig.model_validate({"momentum": 0.2, "predictor": SMALL})),
    "depth": (HJepa, HJepaConfig.model_validate({"levels": "depth", "momentum": 0.2, "predictor": SMALL})),
    "simclr": (Simclr, SimclrConfig(width=16)),
    "mae": (Mae, MaeConfig.model_validate({"decoder": SMALL})),
}


def built(family: str, dtype: torch.dtype = torch.float32) -> Objective:
    """Weights as after some training: the target is not the online encoder, biases are not zero."""
    kind, config = FAMILIES[family]
    backbone = build_backbone("vit", VitConfig(width=24, depth=3, heads=2, patch=2), SIDE, seed=0)
    objective: Objective = kind(backbone, config, image_size=SIDE, num_steps=8, seed=0).to(dtype)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in objective.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return objective


def batch(num: int = GLOBAL_BATCH, dtype: torch.dtype = torch.float32, first: int = 640) -> Batch:
    images = torch.randn(2, num, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0)).to(dtype)
    index = torch.arange(first, first + num)
    return Batch(
        images_BCHW=images[0],
        other_views=(images[0] + 0.5 * images[1],),
        labels_B=index,
        positions_B=index,
        entry_B=index * 0,
        rows=num,
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_micro_batches_of_any_size_show_the_same_signals(family: str) -> None:
    assert_signals_are_those_of_any_split(built(family), batch(), 1, 2, 8)
    assert_signals_are_those_of_any_split(built(family, torch.float64), batch(dtype=torch.float64), 48)


@pytest.mark.parametrize("family", ["levels", "simclr"])
def test_they_are_those_of_all_images_of_a_small_batch(family: str) -> None:
    found = signals_of(built(family), batch(48), micro_batch=2)
    assert found["rankme_cap"] == 24
    assert 2 < found["rankme"] < 24
    assert signals_of(built(family), batch(8), micro_batch=2)["rankme_cap"] == 7


@pytest.mark.parametrize("family", FAMILIES)
def test_training_does_not_notice_that_signals_are_taken(family: str) -> None:
    assert_looking_on_leaves_no_trace(built(family), batch(8))


def test_batch_normalisation_and_dropout_do_not_notice_either() -> None:
    """Nor does a part that is frozen, and in evaluation mode, begin to train."""
    objective = built("simclr")
    assert isinstance(objective, Simclr)
    objective.head = nn.Sequential(nn.Linear(24, 24), nn.BatchNorm1d(24), nn.ReLU(), nn.Dropout(), nn.Linear(24, 16))
    objective.backbone.eval()
    assert_looking_on_leaves_no_trace(objective, batch(8))
    assert_signals_are_those_of_any_split(objective, batch(16), 1, 2, 8)


def test_one_image_of_each_equal_part_is_looked_at() -> None:
    assert positions_looked_at(640, 704).tolist() == list(range(640, 704))
    for start, size in ((0, 2048), (10**12, 300), (77, 257), (5, 256)):
        found = positions_looked_at(start, start + size)
        assert len(found) == MOST_IMAGES
        parts = [(start + k * size // MOST_IMAGES, start + (k + 1) * size // MOST_IMAGES) for k in range(MOST_IMAGES)]
        assert all(first <= position < last for position, (first, last) in zip(found.tolist(), parts, strict=True))


@pytest.mark.parametrize("weights", [(1, 1), (7, 1), (7, 2, 1)])
def test_sources_have_their_shares_among_the_images_looked_at(weights: tuple[int, ...]) -> None:
    """At equal distances, 2,048 positions of two sources of equal weight show one of the two."""
    none = (0,) * len(weights)
    segment, shares = Segment(start=0, weights=weights, draws=none, owed=none), np.array(weights) / sum(weights)
    found = []
    for start in range(0, 20 * 2048, 2048):
        looked_at = positions_looked_at(start, start + 2048)
        drawn = segment.counts(looked_at + 1) - segment.counts(looked_at)
        found.append(drawn.sum(0) / MOST_IMAGES)
    assert np.abs(found - shares).max() < 0.1
    assert np.abs(np.mean(found, 0) - shares).max() < 0.02


def test_no_more_images_than_a_micro_batch_are_looked_at_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_IMAGES", 11)
    sizes: list[int] = []

    def observe(self: Simclr, one: Batch, *_: Mapping[str, Tensor]) -> dict[str, Tensor]:
        sizes.append(len(one.positions_B))
        return {"pooled": one.positions_B, "first": torch.zeros(len(one.positions_B), 2)}

    monkeypatch.setattr(Simclr, "observe", observe)
    monkeypatch.setattr(Simclr, "diagnose", lambda self, rows: {f"{p:.0f}": p for p in rows["pooled"]})
    found = signals_of(built("simclr"), batch(), micro_batch=4)
    assert sizes == [4, 4, 3]
    assert list(found.values()) == positions_looked_at(640, 704).tolist()


def test_a_batch_of_one_image_has_no_signals() -> None:
    objective = built("levels")
    assert diagnosis(objective, [batch(1)], loaded_of(batch(1), 640, 641)) == {}
