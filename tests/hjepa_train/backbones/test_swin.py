import pytest
import torch

from hjepa_shards.config import parse
from hjepa_shards.errors import InputError
from hjepa_train.backbones.registry import BACKBONES, build_backbone
from hjepa_train.backbones.swin import SwinConfig
from tests.checks import (
    assert_backbone_contract,
    assert_flops_are_those_of_a_pass,
    assert_timm_gives_the_same,
    num_parameters,
)

NANO = {"width": 16, "depths": (2, 2), "heads": (2, 4), "patch": 2, "window": 4}


def test_swin_keeps_the_backbone_contract() -> None:
    config = SwinConfig(**NANO, drop_path=0.6)
    assert_backbone_contract(lambda: build_backbone("swin", config, 16, seed=5), 16)


def test_timm_loads_the_state_and_gives_the_same_features() -> None:
    backbone = build_backbone("swin", SwinConfig(**NANO), 32, seed=1)
    assert_flops_are_those_of_a_pass(backbone, 32)
    assert_timm_gives_the_same(backbone, 32)


def test_another_resolution_is_that_of_a_network_built_for_it() -> None:
    """And the size of training is as before afterwards."""
    small, large = (build_backbone("swin", SwinConfig(**NANO), size, seed=1).eval() for size in (32, 48))
    large.load_state_dict(small.state_dict())
    images = torch.randn(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    before = small.encode(small.embed(images[..., :32, :32])).pooled_BD
    torch.testing.assert_close(small.encode(small.embed(images)).pooled_BD, large.encode(large.embed(images)).pooled_BD)
    assert torch.equal(small.encode(small.embed(images[..., :32, :32])).pooled_BD, before)


@pytest.mark.parametrize(
    ("size", "headless", "whole"),
    [
        ("tiny", 27_519_354, 28_288_354),
        ("small", 48_837_258, 49_606_258),
        ("base", 86_743_224, 87_768_224),
        ("large", 194_995_476, 196_532_476),
    ],
)
def test_swin_has_the_published_number_of_parameters(size, headless, whole) -> None:
    assert num_parameters("swin", {"size": size}) == (headless, whole)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "`size` .* or all of width, depths and heads expected"),
        ({"size": "tiny", "width": 8}, "either it or those three"),
        ({"width": 8, "depths": [2, 2], "heads": [2]}, "one depth and number of heads a stage expected; 2 and 1 found"),
        ({"width": 8, "depths": [2, 2], "heads": [2, 3]}, "2 blocks with 3 heads at width 16 found"),
    ],
)
def test_wrong_configurations_are_refused(content, message) -> None:
    with pytest.raises(InputError, match=message):
        parse(BACKBONES["swin"][0], content, "mix.yaml")


def test_cells_that_do_not_fill_an_image_are_refused() -> None:
    with pytest.raises(InputError, match=r"backbone.swin: an image size that 4 divides expected, .* 18 found"):
        build_backbone("swin", SwinConfig(**NANO), 18, seed=0)
