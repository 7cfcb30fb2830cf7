"""Networks of timm: of every kind of output, and those that cannot be a backbone, by name."""

import importlib.util

import pytest
import torch

from hjepa_shards.config import parse
from hjepa_shards.errors import InputError
from hjepa_train.backbones.registry import BACKBONES, build_backbone
from hjepa_train.backbones.swin import SwinConfig
from hjepa_train.backbones.timm_nets import TimmConfig
from hjepa_train.modules.batch_norm import BatchNorm
from tests.checks import assert_backbone_contract, assert_flops_are_those_of_a_pass, assert_timm_gives_the_same, awake

SMALL_VIT = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
KINDS = {
    "maps of channels": TimmConfig(name="regnetx_002", drop_path=0.9),
    "tokens after a class token": TimmConfig(name="vit_tiny_patch16_224", arguments=SMALL_VIT, drop_path=0.8),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_network_of_timm_keeps_the_backbone_contract(kind: str) -> None:
    assert_backbone_contract(lambda: awake(build_backbone("timm", KINDS[kind], 64, seed=5)), 64)


@pytest.mark.parametrize("kind", KINDS)
def test_timm_gives_the_same_features(kind: str) -> None:
    backbone = build_backbone("timm", KINDS[kind].model_copy(update={"drop_path": 0.0}), 32, seed=1)
    assert_flops_are_those_of_a_pass(backbone, 32)
    assert_timm_gives_the_same(backbone, 32)


def test_batch_norm_is_ours_and_its_activation_stays() -> None:
    backbone = build_backbone("timm", KINDS["maps of channels"], 32, seed=1)
    norms = [part for part in backbone.modules() if isinstance(part, BatchNorm)]
    assert len(norms) > 5
    assert not any(isinstance(part, torch.nn.modules.batchnorm._BatchNorm) for part in backbone.modules())
    values = torch.randn(2, norms[0].weight.shape[0], 4, 4, generator=torch.Generator().manual_seed(0))
    activation = norms[0].get_submodule("act")
    plain = torch.nn.functional.batch_norm(values, None, None, training=True)
    assert not torch.allclose(activation(plain.clone()), plain)
    torch.testing.assert_close(norms[0].train()(values), activation(plain), rtol=1e-3, atol=1e-3)


def test_cells_may_come_out_last_and_a_head_may_be_of_another_width() -> None:
    """Then the vector is the mean of the cells, and timm has no such network."""
    swin = build_backbone("timm", TimmConfig(name="swin_tiny_patch4_window7_224", arguments=NANO_SWIN), 32, seed=1)
    features = swin.eval().encode(swin.embed(torch.randn(1, 3, 32, 32)))
    assert features.tokens_BND.shape == (1, 16, 32)
    torch.testing.assert_close(features.pooled_BD, features.tokens_BND.mean(1))
    wide = build_backbone("timm", TimmConfig(name="mobilenetv3_small_050"), 32, seed=1)
    features = wide.eval().encode(wide.embed(torch.randn(1, 3, 32, 32)))
    torch.testing.assert_close(features.pooled_BD, features.tokens_BND.mean(1))
    with pytest.raises(InputError, match="a vector as wide as its cells expected, mobilenetv3_small_050 found"):
        wide.as_timm()


NANO_SWIN = {"patch_size": 4, "embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4], "window_size": 4}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"name": "resnet51"}, "one of timm.list_models.. expected, resnet51 found; near: .*resnet50"),
        ({"name": "resnet18", "arguments": {"depthh": 3}}, "backbone.timm: resnet18: .* unexpected keyword"),
        ({"name": "resnet18", "arguments": {"drop_rate": 0.1}}, "`drop_rate` found; use `drop_path` for drops"),
        ({"name": "resnet18", "arguments": {"pretrained": True}}, "`pretrained` found"),
        ({"name": "resnet18", "arguments": {"num_classes": 5}}, "`num_classes` found"),
        ({"name": "hf-hub:timm/resnet18"}, "one of timm.list_models.. expected"),
        ({"name": "crossvit_9_240"}, "backbone.timm: crossvit_9_240: a network with forward_features"),
    ],
)
def test_what_cannot_be_a_backbone_is_refused(content, message) -> None:
    with pytest.raises(InputError, match=message):
        build_backbone("timm", parse(BACKBONES["timm"][0], content, "mix.yaml"), 32, seed=0)


def test_without_timm_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    there = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *more: None if name == "timm" else there(name, *more))
    with pytest.raises(InputError, match=r"backbone.swin: timm expected, not installed; .*'hjepa\[backbones\]'"):
        build_backbone("swin", SwinConfig(size="tiny"), 224, seed=0)


def test_weights_are_drawn_by_the_seed_and_move_no_generator() -> None:
    before = torch.get_rng_state()
    config = KINDS["tokens after a class token"]
    first, again, other = (build_backbone("timm", config, 32, seed=seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["patch_embed.proj.weight"], other["patch_embed.proj.weight"])
