"""The formulas against PyTorch's own count of every operation."""

from typing import Any

import pytest
import torch

from hjepa_train.backbones.registry import build_backbone
from hjepa_train.backbones.vit import VitConfig
from hjepa_train.modules import flop_count
from hjepa_train.modules.layers import Block
from hjepa_train.objectives.base import Batch, Objective
from hjepa_train.objectives.joint.hjepa import HJepa, HJepaConfig
from hjepa_train.objectives.masked.mae import Mae, MaeConfig
from hjepa_train.parallel.memory_estimate import on_fake_tensors
from tests.checks import assert_flops_are_those_counted

SMALL = {"width": 48, "depth": 3, "heads": 3, "patch": 4}
PREDICTOR = {"width": 24, "depth": 3, "heads": 2}


def hjepa(vit: dict[str, Any], image_size: int, **config: Any) -> Objective:
    backbone = build_backbone("vit", VitConfig.model_validate(vit), image_size, seed=0)
    return HJepa(backbone, HJepaConfig.model_validate(config), image_size=image_size, num_steps=100_000, seed=0)


def mae(vit: dict[str, Any], image_size: int, **config: Any) -> Objective:
    backbone = build_backbone("vit", VitConfig.model_validate(vit), image_size, seed=0)
    return Mae(backbone, MaeConfig.model_validate(config), image_size=image_size, num_steps=100_000, seed=0)


def images(num: int, image_size: int) -> Batch:
    positions = torch.arange(num)
    return Batch(
        images_BCHW=torch.zeros(num, 3, image_size, image_size),
        labels_B=positions,
        positions_B=positions,
        entry_B=positions * 0,
        rows=num,
    )


@pytest.mark.parametrize(
    "config",
    [
        {"levels": 1},
        {"levels": 3},
        {"levels": "depth"},
        {"levels": 1, "anticollapse": "none"},
        {"levels": 1, "statistics": "exact"},
        {"levels": 1, "anticollapse": "none", "statistics": "exact"},
        {"levels": 3, "num_context": 20, "num_blocks": 2},
    ],
)
def test_hjepa_counts_what_pytorch_counts(config: dict[str, Any]) -> None:
    assert_flops_are_those_counted(hjepa(SMALL, 32, predictor=PREDICTOR, **config), images(4, 32))


@pytest.mark.parametrize("config", [{}, {"mask_ratio": 0.5}])
def test_mae_counts_what_pytorch_counts(config: dict[str, Any]) -> None:
    assert_flops_are_those_counted(mae(SMALL, 32, decoder=PREDICTOR, **config), images(4, 32))


@pytest.mark.parametrize(
    ("size", "build", "config", "expected"),
    [
        ("small", hjepa, {"levels": 1}, 36.62),
        ("small", hjepa, {"levels": 3}, 42.18),
        ("base", mae, {}, 56.81),
    ],
)
def test_the_published_sizes_cost_what_is_written_down_of_them(
    size: str, build: Any, config: dict[str, Any], expected: float
) -> None:
    with torch.device("meta"):
        objective = build({"size": size, "patch": 16}, 224, **config)
    with on_fake_tensors(objective):
        assert_flops_are_those_counted(objective, images(2, 224))
    assert objective.flops_per_image() / 1e9 == pytest.approx(expected, abs=0.005)


def test_a_block_of_the_last_tokens_costs_less_than_one_of_all() -> None:
    assert flop_count.block(20, 24, wanted=20) == flop_count.block(20, 24)
    assert flop_count.block(20, 24, wanted=5) < 0.5 * flop_count.block(20, 24)
    parameters = sum(p.numel() for name, p in Block(24, 2).named_parameters() if p.ndim == 2)
    assert (
        flop_count.block(1, 24) == 2 * parameters + 4 * 24
    )  # each weight once for the token, and the token with itself
