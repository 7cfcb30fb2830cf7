from pathlib import Path

import pytest
import torch
import yaml

from hjepa_shards.config import parse
from hjepa_shards.errors import InputError
from hjepa_train import load_run_config, train
from hjepa_train.backbones.convnext import ConvnextConfig
from hjepa_train.backbones.registry import BACKBONES, build_backbone
from hjepa_train.base.metrics_file import read_metrics
from tests.checks import (
    assert_backbone_contract,
    assert_flops_are_those_of_a_pass,
    assert_timm_gives_the_same,
    num_parameters,
)
from tests.hjepa_train.test_ranks import train_ranks
from tests.hjepa_train.tiny import tiny_run

NANO = {"depths": (1, 2), "widths": (16, 24), "patch": 2, "layer_scale": 0.5}


@pytest.mark.parametrize("more", [{}, {"strides": (2, 1), "layer_scale": None}], ids=["plain", "other strides"])
def test_convnext_keeps_the_backbone_contract(more) -> None:
    config = ConvnextConfig(**NANO | more, drop_path=0.8)
    assert_backbone_contract(lambda: build_backbone("convnext", config, 16, seed=5), 16)


@pytest.mark.parametrize(("patch", "strides"), [(4, None), (2, (2, 2, 2, 2)), (1, None)])
@pytest.mark.parametrize("layer_scale", [0.5, None])
def test_timm_loads_the_state_and_gives_the_same_features(patch, strides, layer_scale) -> None:
    config = ConvnextConfig(
        depths=(1, 2, 1, 1), widths=(8, 16, 24, 32), patch=patch, strides=strides, layer_scale=layer_scale
    )
    backbone = build_backbone("convnext", config, 64, seed=1)
    assert_flops_are_those_of_a_pass(backbone, 64)
    assert_timm_gives_the_same(backbone, 64)


def test_tokens_and_vector_are_normed_as_published() -> None:
    backbone = build_backbone("convnext", ConvnextConfig(**NANO), 16, seed=1).eval()
    features = backbone.encode(backbone.embed(torch.randn(2, 3, 16, 16)), (2,))
    torch.testing.assert_close(features.pooled_BD, backbone.head.norm(features.stages[0].mean(1)))
    torch.testing.assert_close(features.tokens_BND, backbone.head.norm(features.stages[0]))


@pytest.mark.parametrize(
    ("size", "headless", "whole"),
    [
        ("tiny", 27_820_128, 28_589_128),
        ("small", 49_454_688, 50_223_688),
        ("base", 87_566_464, 88_591_464),
        ("large", 196_230_336, 197_767_336),
        ("xlarge", 348_147_968, 350_196_968),
    ],
)
def test_convnext_has_the_published_number_of_parameters(size, headless, whole) -> None:
    assert num_parameters("convnext", {"size": size}) == (headless, whole)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "`size` .* or both of depths and widths expected"),
        ({"size": "tiny", "widths": [8]}, "or both of depths and widths expected"),
        ({"depths": [1, 1]}, "both of depths and widths expected"),
        ({"depths": [1, 1], "widths": [8]}, "one depth, width and stride a stage expected; 2, 1 and 2 found"),
        ({"depths": [1, 0], "widths": [8, 8]}, "depths from 1 to 256"),
        ({"depths": [1, 1], "widths": [8, 8], "strides": [1, 3]}, "strides"),
    ],
)
def test_wrong_configurations_are_refused(content, message) -> None:
    with pytest.raises(InputError, match=message):
        parse(BACKBONES["convnext"][0], content, "mix.yaml")


def test_cells_that_do_not_fill_an_image_are_refused() -> None:
    with pytest.raises(InputError, match=r"backbone.convnext: an image size that 32 divides expected, .* 48 found"):
        build_backbone("convnext", ConvnextConfig(size="tiny"), 48, seed=0)


def test_strides_that_timm_lacks_are_refused_by_name() -> None:
    backbone = build_backbone("convnext", ConvnextConfig(**NANO), 16, seed=0)
    with pytest.raises(InputError, match=r"patch 2 in timm: strides \[2, 2, 2, 2\] expected, \[1, 2\] found"):
        backbone.as_timm()


def supervised(shards: Path, folder: Path, **changes: str) -> Path:
    path = tiny_run(shards, folder, **changes)
    content = yaml.safe_load(path.read_text())
    convnext = {name: list(value) if isinstance(value, tuple) else value for name, value in NANO.items()}
    content |= {"backbone": {"convnext": convnext | {"drop_path": 0.5}}, "objective": {"supervised": {}}}
    path.write_text(yaml.safe_dump(content))
    return path


def test_sharded_over_two_ranks_it_trains_as_one(shards: Path, tmp_path: Path) -> None:
    """And its FLOP are those of before it was laid out."""
    alone = train(load_run_config(supervised(shards, tmp_path / "alone")), stop_after=4)
    config = supervised(shards, tmp_path / "sharded", training__parallel="fsdp")
    assert train_ranks(config, 2, 4) == []
    expected, found = (read_metrics(folder / "metrics.jsonl") for folder in (alone, config.parent / "tiny"))
    for name in ("loss", "grad_norm"):
        assert [row[name] for row in found] == pytest.approx([row[name] for row in expected], rel=1e-5)
