from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from hjepa_shards.config import parse
from hjepa_shards.errors import InputError, ResumeMismatch
from hjepa_train import load_run_config, train
from hjepa_train.backbones.registry import BACKBONES, build_backbone
from hjepa_train.backbones.tinyvit import TinyvitConfig
from hjepa_train.base.metrics_file import read_metrics
from hjepa_train.checkpoints.checkpoint_files import latest, load
from tests.checks import (
    assert_backbone_contract,
    assert_flops_are_those_of_a_pass,
    assert_timm_gives_the_same,
    awake,
    num_parameters,
)
from tests.hjepa_train.tiny import tiny_run

NANO = {"depths": (1, 2), "widths": (16, 32), "heads": (1, 2), "windows": (7, 3)}


def test_tinyvit_keeps_the_backbone_contract() -> None:
    config = TinyvitConfig(**NANO, drop_path=0.8)
    assert_backbone_contract(lambda: awake(build_backbone("tinyvit", config, 32, seed=5)), 32)


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


def supervised(shards: Path, folder: Path, **changes: Any) -> Path:
    path = tiny_run(shards, folder, **changes)
    content = yaml.safe_load(path.read_text())
    content["backbone"] = {"tinyvit": {name: list(value) for name, value in NANO.items()} | {"drop_path": 0.5}}
    content["objective"] = {"supervised": {"average": 0.9}}
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_run_is_resumed_to_the_bit_with_as_many_images_together_and_recomputed(shards: Path, tmp_path: Path) -> None:
    """Weights, running moments and losses; with other images together it is refused by name."""
    halves = {"training__micro_batch": 8}
    whole = train(load_run_config(supervised(shards, tmp_path / "whole", **halves)), stop_after=7)
    pieces = supervised(shards, tmp_path / "pieces", **halves)
    train(load_run_config(pieces), stop_after=3)
    other = ["training.micro_batch=16"]
    with pytest.raises(
        ResumeMismatch, match=r"statistics are those of 8 images .* 16 here; set `training.micro_batch: 8`"
    ):
        train(load_run_config(pieces, other), resume="auto", stop_after=7)
    recomputed = ["training.activation_checkpointing=true"]
    run = train(load_run_config(pieces, recomputed), resume="auto", stop_after=7)
    logs = [
        [(row["step"], row["loss"], row["grad_norm"]) for row in read_metrics(one / "metrics.jsonl")]
        for one in (whole, run)
    ]
    assert logs[0] == logs[1]
    states = []
    for one in (whole, run):
        saved = latest(one / "checkpoints")
        assert saved is not None
        states.append(load(saved).model)
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=0)
    moved = [name for name, value in states[0].items() if name.endswith("num_batches_tracked") and value == 7]
    assert sum(name.startswith("backbone.") for name in moved) == len(moved) / 2 > 5
