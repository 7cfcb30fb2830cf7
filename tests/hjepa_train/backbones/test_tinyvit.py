import pytest
import torch

from hjepa_shards.config import parse
from hjepa_shards.errors import InputError
from hjepa_train.backbones.registry import BACKBONES, build_backbone
from hjepa_train.backbones.tinyvit import TinyvitConfig
from hjepa_train.modules.batch_norm import BatchNorm
from tests.checks import (
    assert_backbone_contract,
    assert_flops_are_those_of_a_pass,
    assert_timm_gives_the_same,
    num_parameters,
)

NANO = {"depths": (1, 2), "widths": (16, 32), "heads": (1, 2), "windows": (7, 3)}


def test_tinyvit_keeps_the_backbone_contract() -> None:
    config = TinyvitConfig(**NANO, drop_path=0.8)
    assert_backbone_contract(lambda: awake(build_backbone("tinyvit", config, 32, seed=5)), 32)


def awake(backbone):
    """The last norm of a block of convolutions begins at 0: nothing of it would be seen."""
    for part in backbone.modules():
        if isinstance(part, BatchNorm):
            torch.nn.init.ones_(part.weight)
    return backbone


def test_timm_loads_the_state_and_gives_the_same_features() -> None:
    backbone = build_backbone("tinyvit", TinyvitConfig(**NANO), 32, seed=1)
    assert_flops_are_those_of_a_pass(backbone, 32)
    assert_timm_gives_the_same(backbone, 32)


def test_biases_that_moved_are_seen_in_evaluation() -> None:
    """timm keeps those of the first pass in evaluation mode."""
    backbone = build_backbone("tinyvit", TinyvitConfig(**NANO), 32, seed=1).eval()
    images = torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    before = backbone.encode(backbone.embed(images)).pooled_BD
    with torch.no_grad():
        for name, parameter in backbone.named_parameters():
            if "attention_biases" in name:
                parameter += torch.linspace(0, 3, parameter.numel()).view_as(parameter)
    assert not torch.allclose(backbone.encode(backbone.embed(images)).pooled_BD, before)


@pytest.mark.parametrize(
    ("size", "headless", "whole"),
    [("5m", 5_071_764, 5_392_764), ("11m", 10_547_972, 10_996_972), ("21m", 20_621_568, 21_198_568)],
)
def test_tinyvit_has_the_published_number_of_parameters(size, headless, whole) -> None:
    assert num_parameters("tinyvit", {"size": size}) == (headless, whole)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "`size` .* or both of depths and widths expected"),
        ({"size": "5m", "heads": [1, 2]}, "either it or those"),
        (
            {"depths": [1, 1], "widths": [8, 8], "heads": [1, 1, 1]},
            "one depth, width, number of heads and window a stage",
        ),
        ({"depths": [1, 1], "widths": [8, 8], "heads": [1, 3]}, "1 blocks with 3 heads at width 8 and windows of 7"),
    ],
)
def test_wrong_configurations_are_refused(content, message) -> None:
    with pytest.raises(InputError, match=message):
        parse(BACKBONES["tinyvit"][0], content, "mix.yaml")
