import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hjepa_shards.errors import InputError
from hjepa_train import load_run_config
from hjepa_train.backbones.base import Backbone, Features, Patches
from hjepa_train.backbones.registry import BACKBONES, build_backbone
from hjepa_train.backbones.vit import VitConfig
from hjepa_train.modules.keyed_drops import Drops
from hjepa_train.objectives.base import Objective
from hjepa_train.objectives.contrast.simclr import Simclr, SimclrConfig
from hjepa_train.objectives.joint.hjepa import HJepa, HJepaConfig
from hjepa_train.objectives.joint.predictor import PredictorConfig
from hjepa_train.objectives.masked.mae import DecoderConfig, Mae, MaeConfig
from hjepa_train.training.config import room
from hjepa_train.training.optimizer import OptimConfig, build_optimizer
from hjepa_train.training.parameter_groups import freeze, parameter_groups

SMOKE = Path(__file__).resolve().parents[3] / "configs" / "smoke"


def objective(family: str) -> Objective:
    backbone = build_backbone("vit", VitConfig(width=16, depth=3, heads=2, patch=4), 32, seed=0)
    how = {"image_size": 32, "num_steps": 4, "seed": 0}
    if family == "mae":
        return Mae(backbone, MaeConfig(decoder=DecoderConfig(width=16, depth=1, heads=2)), **how)
    if family == "simclr":
        return Simclr(backbone, SimclrConfig(), **how)
    config = HJepaConfig(predictor=PredictorConfig(width=16, depth=1, heads=2), momentum=0.2)
    return HJepa(backbone, config, **how)


def names(module: nn.Module, parameters: list[nn.Parameter]) -> list[str]:
    name_of = {id(parameter): name for name, parameter in module.named_parameters()}
    return [name_of[id(parameter)] for parameter in parameters]


@pytest.mark.parametrize("family", ["hjepa", "mae", "simclr"])
def test_groups_are_those_of_every_checkpoint_that_there_is(family: str) -> None:
    """Moments are saved by a parameter's number. Until 2026-12 a matrix was any `weight` of two axes or more."""
    module = objective(family)
    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    matrices = [name for name, p in trained if p.ndim >= 2 and name.rpartition(".")[2] == "weight"]
    others = [name for name, _ in trained if name not in matrices]
    groups = parameter_groups(module)
    assert [names(module, group["params"]) for group in groups] == [matrices, others]
    assert [group["decays"] for group in groups] == [True, False]
    assert "weight_decay" not in groups[0]
    assert groups[1]["weight_decay"] == 0.0
    assert not any(name.startswith("target.") for name in matrices + others)


class _Odd(nn.Module):
    """What has a `weight`, and other parameters, without being a matrix of a linear map."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(5, 4)
        self.weight = nn.Parameter(torch.ones(1, 1, 4))  # a scale, as of GRN
        self.tokens = nn.Parameter(torch.ones(2, 4))
        self.norm = nn.LayerNorm([3, 4])
        self.linear = nn.Linear(4, 3)
        self.kernel = nn.Conv1d(4, 3, 2)
        self.up = nn.ConvTranspose2d(4, 3, 2)
        self.tied = nn.Linear(4, 5, bias=False)
        self.tied.weight = self.words.weight


def test_decay_is_by_the_type_of_module_not_by_the_name() -> None:
    odd = _Odd()
    decaying, others = (names(odd, group["params"]) for group in parameter_groups(odd))
    assert decaying == ["linear.weight", "kernel.weight", "up.weight"]
    assert set(others) >= {"words.weight", "weight", "tokens", "norm.weight", "linear.bias"}


def shares(module: nn.Module, decay: float) -> dict[str, float]:
    groups = parameter_groups(module, layer_decay=decay)
    return {name: group["lr_share"] for group in groups for name in names(module, group["params"])}


def test_layers_of_a_vit_learn_by_the_rates_of_maes_fine_tuning() -> None:
    """`param_groups_lrd`: layer 0 is the embedding, i + 1 block i, all else the last; decay ** (depth + 1 - layer)."""
    found = shares(objective("mae"), 0.75)
    for name, share in found.items():
        if name.startswith("backbone.patch_embed"):
            layer = 0
        elif name.startswith("backbone.blocks."):
            layer = int(name.split(".")[2]) + 1
        else:
            layer = 4
        assert share == pytest.approx(0.75 ** (4 - layer)), name
    assert {"backbone.norm.weight", "head.weight", "blocks.0.attn.qkv.weight"} <= {
        n for n, s in found.items() if s == 1
    }


class _Pyramid(Backbone):
    """Two stages of one block; between them a convolution that halves the grid."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 2, stride=2)
        self.stages = nn.ModuleList([nn.Conv2d(4, 4, 1), nn.Sequential(nn.Conv2d(4, 8, 2, stride=2), nn.Linear(8, 8))])
        self.norm = nn.LayerNorm(8)
        self.pos_embed = nn.Parameter(torch.zeros(4))

    def embed(self, images_BCHW: Tensor) -> Patches:
        raise NotImplementedError

    def encode(self, patches: Patches, stages: tuple[int, ...] = (), *, drops: Drops | None = None) -> Features:
        raise NotImplementedError

    def block_list(self) -> list[nn.Module]:
        stage = self.stages[1]
        assert isinstance(stage, nn.Sequential)
        return [self.stages[0], stage[1]]


def test_what_is_between_blocks_learns_as_the_block_after_it() -> None:
    module = nn.Sequential(_Pyramid(), nn.Linear(8, 2))
    found = shares(module, 0.5)
    assert found["0.stem.weight"] == found["0.pos_embed"] == 0.125
    assert found["0.stages.0.weight"] == 0.25
    assert found["0.stages.1.0.weight"] == found["0.stages.1.1.bias"] == 0.5
    assert found["0.norm.weight"] == found["1.weight"] == 1.0


@pytest.mark.parametrize("name", ["vit", "deit", "convnext", "swin", "tinyvit"])
def test_rates_rise_from_the_embedding_to_the_last_norm_of_every_backbone(name: str) -> None:
    config = load_run_config(SMOKE / f"{name}.yaml")
    kind, settings, _ = room(config.backbone, BACKBONES, name)
    backbone = build_backbone(kind, settings, config.data.image_size, seed=0)
    found, num_blocks = shares(backbone, 0.5), len(backbone.block_list())
    in_order = [found[own] for own, parameter in backbone.named_parameters() if parameter.requires_grad]
    assert list(dict.fromkeys(in_order)) == [0.5**layer for layer in range(num_blocks + 1, -1, -1)]
    assert in_order == sorted(in_order)
    assert {own for own, share in found.items() if share == 1} == {
        own for own in found if own.startswith(("norm.", "head.norm."))
    }


def test_a_frozen_part_has_no_gradient_is_not_optimised_and_stays_in_the_state_and_in_evaluation_mode() -> None:
    module = objective("simclr")
    whole = copy.deepcopy(dict(module.state_dict()))
    freeze(module, ("backbone.patch_embed", "backbone.blocks.0", "head.2.bias"))
    optimised = {
        name for group in build_optimizer(module, OptimConfig()).param_groups for name in names(module, group["params"])
    }
    assert not any(name.startswith(("backbone.patch_embed", "backbone.blocks.0.")) for name in optimised)
    assert {"backbone.blocks.1.attn.qkv.weight", "head.2.weight"} <= optimised
    assert "head.2.bias" not in optimised
    assert module.state_dict().keys() == whole.keys()
    module.train()
    backbone = module.encoders()["encoder"]
    modes = [block.training for block in backbone.block_list()]
    assert (modes, backbone.training) == ([False, True, True], True)
    assert not any(part.training for part in backbone.block_list()[0].modules())
    assert copy.deepcopy(backbone).train().block_list()[1].training


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("backbone.patchembed", "none found; parts: backbone.patch_embed, backbone.blocks, backbone.norm$"),
        ("backbone.blocks.7", "none found; parts: backbone.blocks.0, backbone.blocks.1, backbone.blocks.2$"),
        ("encoder", "none found; parts: backbone, predictor$"),
        ("target", "target: a part that is not trained anyway found; parts: backbone, predictor$"),
        ("backbone.patch", "none found; parts: backbone.patch_embed"),
    ],
)
def test_a_part_that_is_not_there_is_refused_with_those_that_are(name: str, said: str) -> None:
    with pytest.raises(InputError, match=rf"training.frozen: a trained part expected, .*{said}"):
        freeze(objective("hjepa"), (name,))


def test_something_must_be_left_to_train() -> None:
    with pytest.raises(InputError, match="backbone, predictor: a part left to train expected, none found"):
        freeze(objective("hjepa"), ("backbone", "predictor"))
