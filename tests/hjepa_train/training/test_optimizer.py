import pytest
import torch
from pydantic import ValidationError

from hjepa_train.backbones.registry import build_backbone
from hjepa_train.backbones.vit import VitConfig
from hjepa_train.objectives.joint.hjepa import HJepa, HJepaConfig
from hjepa_train.objectives.joint.predictor import PredictorConfig
from hjepa_train.training.optimizer import OptimConfig, build_optimizer, set_rates


def objective() -> HJepa:
    backbone = build_backbone("vit", VitConfig(width=16, depth=1, heads=2, patch=4), 32, seed=0)
    config = HJepaConfig(predictor=PredictorConfig(width=16, depth=1, heads=2), momentum=0.2)
    return HJepa(backbone, config, image_size=32, num_steps=4, seed=0)


def test_only_weights_of_linear_maps_decay_and_the_target_is_excluded() -> None:
    hjepa = objective()
    groups = build_optimizer(hjepa, OptimConfig()).param_groups
    name_of = {id(parameter): name for name, parameter in hjepa.named_parameters()}
    decaying, others = ({name_of[id(p)] for p in group["params"]} for group in groups)
    assert {
        "backbone.patch_embed.proj.weight",
        "backbone.blocks.0.attn.qkv.weight",
        "predictor.heads.2.weight",
    } <= decaying
    assert {
        "predictor.mask_token",
        "predictor.level_embedding",
        "backbone.norm.weight",
        "predictor.project.bias",
    } <= others
    assert decaying | others == {name for name, p in hjepa.named_parameters() if p.requires_grad}
    assert not any(name.startswith("target.") for name in decaying | others)


def test_set_rates_moves_every_rate_and_only_decay_that_exists() -> None:
    optimizer = build_optimizer(objective(), OptimConfig(lr=1.0))
    set_rates(optimizer, lr=0.25, weight_decay=0.3)
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [(0.25, 0.3), (0.25, 0.0)]


def test_a_step_is_that_of_adamw_written_out() -> None:
    module = torch.nn.Linear(2, 1, dtype=torch.float64)
    before = module.weight.detach().clone()
    optimizer = build_optimizer(module, OptimConfig(betas=(0.9, 0.99)))
    set_rates(optimizer, lr=0.1, weight_decay=0.5)
    module(torch.tensor([[3.0, -2.0]], dtype=torch.float64)).sum().backward()
    optimizer.step()
    # first step: both moments are bias-corrected to the gradient, so the update is its sign
    expected = before * (1 - 0.1 * 0.5) - 0.1 * torch.tensor([[1.0, -1.0]])
    torch.testing.assert_close(module.weight.detach(), expected, atol=1e-7, rtol=0)


@pytest.mark.parametrize("wrong", [{"lr": 0.0}, {"weight_decay": -0.1}, {"betas": (0.9, 1.0)}, {"momentum": 0.9}])
def test_wrong_settings_are_refused(wrong) -> None:
    with pytest.raises(ValidationError):
        OptimConfig(**wrong)
