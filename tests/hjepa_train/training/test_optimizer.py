import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from hjepa_train.backbones.registry import build_backbone
from hjepa_train.backbones.vit import VitConfig
from hjepa_train.objectives.joint.hjepa import HJepa, HJepaConfig
from hjepa_train.objectives.joint.predictor import PredictorConfig
from hjepa_train.training.optimizer import OptimConfig, build_optimizer, clip, rates, set_rates, update


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


def test_a_share_of_the_learning_rate_is_of_each_steps_rate() -> None:
    optimizer = build_optimizer(objective(), OptimConfig(layer_decay=0.5))
    for lr in (0.8, 0.4):
        set_rates(optimizer, lr=lr, weight_decay=0.3)
        rates = [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
        assert rates == [(lr * share, decay) for share in (0.25, 0.5, 1.0) for decay in (0.3, 0.0)]


@pytest.mark.parametrize(("betas", "eps"), [((0.9, 0.999), 1e-8), ((0.6, 0.8), 0.1)])
def test_steps_are_those_of_adamw_in_loops(betas: tuple[float, float], eps: float) -> None:
    module = torch.nn.Linear(2, 1, dtype=torch.float64)
    optimizer = build_optimizer(module, OptimConfig(betas=betas, eps=eps))
    numbers = [*module.weight.flatten().tolist(), module.bias.item()]
    first, second = [0.0] * 3, [0.0] * 3
    for step, gradients in enumerate(([3.0, -2.0, 1.0], [-1.0, 0.5, 0.0], [0.2, 0.1, -4.0]), start=1):
        lr, weight_decay = 0.1 / step, 0.5 * step
        set_rates(optimizer, lr=lr, weight_decay=weight_decay)
        module.weight.grad = torch.tensor([gradients[:2]], dtype=torch.float64)
        module.bias.grad = torch.tensor(gradients[2:], dtype=torch.float64)
        update(optimizer, torch.tensor(True))
        for i, gradient in enumerate(gradients):
            first[i] = betas[0] * first[i] + (1 - betas[0]) * gradient
            second[i] = betas[1] * second[i] + (1 - betas[1]) * gradient**2
            if i < 2:  # the bias does not decay
                numbers[i] -= lr * weight_decay * numbers[i]
            size = math.sqrt(second[i] / (1 - betas[1] ** step)) + eps
            numbers[i] -= lr * first[i] / (1 - betas[0] ** step) / size
    assert [*module.weight.flatten().tolist(), module.bias.item()] == pytest.approx(numbers, rel=1e-10)


def test_nothing_moves_where_the_gradient_is_not_finite() -> None:
    module = torch.nn.Linear(2, 1)
    optimizer = build_optimizer(module, OptimConfig())
    set_rates(optimizer, lr=0.1, weight_decay=0.5)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    for is_finite in (False, True):
        module.weight.grad, module.bias.grad = torch.ones(1, 2), torch.ones(1)
        update(optimizer, torch.tensor(is_finite))
        assert all(torch.equal(before[name], value) != is_finite for name, value in module.state_dict().items())
    moments = [state["exp_avg"] for state in optimizer.state.values()]
    assert all(torch.allclose(moment, torch.full_like(moment, 0.1)) for moment in moments), "of one step"


@pytest.mark.parametrize("clip_norm", [0.5, 5.0, 50.0])
def test_gradients_are_clipped_as_pytorch_clips_them(clip_norm: float) -> None:
    """Over all parameters together; shorter ones are left alone to the bit."""
    ours, theirs = objective(), objective()
    for module in (ours, theirs):
        generator = torch.Generator().manual_seed(0)
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.grad = 0.1 * torch.randn(parameter.shape, generator=generator)
    norm = torch.nn.utils.clip_grad_norm_(theirs.parameters(), clip_norm)
    assert 5.0 < norm < 50.0
    clip(build_optimizer(ours, OptimConfig()), norm, clip_norm)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert (mine.grad is None) == (other.grad is None)
        if mine.grad is not None and other.grad is not None:
            torch.testing.assert_close(mine.grad, other.grad, rtol=0 if clip_norm == 50.0 else 1e-6, atol=0)


def filled(**settings: Any) -> OptimConfig:
    return OptimConfig.model_validate({"lr": 2.0} | settings)


@pytest.mark.parametrize(
    ("settings", "num_steps", "decays"),
    [
        ({}, 10**6, [0.05] * 3),
        ({"weight_decay": 0.3}, 10**6, [0.3] * 3),
        ({"weight_decay": "5e-2"}, 10**6, [0.05] * 3),
        ({"weight_decay": [0.1, 0.5]}, 100, [0.1, 0.3, 0.5]),
        ({"weight_decay": ["1e-1", 0.5]}, 100, [0.1, 0.3, 0.5]),
        ({"weight_decay": "ijepa"}, 100, [0.04, 0.22, 0.4]),
        ({"weight_decay": "by_length"}, 49_999, [0.05] * 3),
        ({"weight_decay": "by_length"}, 50_000, [0.04, 0.22, 0.4]),
        ({"weight_decay": None}, 50_000, [0.04, 0.22, 0.4]),
    ],
)
def test_weight_decay_moves_only_where_the_configuration_says_so(
    settings: dict[str, Any], num_steps: int, decays: list[float]
) -> None:
    _, weight_decay = rates(filled(**settings), num_steps=num_steps, warmup_steps=10)
    found = [weight_decay(round(share * num_steps)) for share in (0, 0.5, 1)]
    assert found == pytest.approx(decays, rel=1e-3)


def test_all_that_shapes_the_learning_rate_reaches_it() -> None:
    shaped = filled(schedule="step", step_at=[0.5], step_factor=0.25, min_lr=0.1)
    lr, _ = rates(shaped, num_steps=100, warmup_steps=10)
    assert [lr(0), lr(49), lr(50)] == pytest.approx([0.2, 2.0, 0.5])
    lr, _ = rates(filled(schedule="linear", min_lr=0.5), num_steps=110, warmup_steps=10)
    assert [lr(60), lr(110)] == pytest.approx([1.25, 0.5])


@pytest.mark.parametrize(
    "wrong",
    [
        *({"lr": 0.0}, {"weight_decay": -0.1}, {"betas": (0.9, 1.0)}, {"momentum": 0.9}, {"clip_norm": 0.0}),
        *({"weight_decay": "imae"}, {"weight_decay": [0.1]}, {"step_at": [1.0]}, {"schedule": "steps"}),
        *({"eps": 0.0}, {"layer_decay": 1.5}, {"min_lr": -1.0}, {"lr": 1e-3, "lr_per_256": 1e-3}),
    ],
)
def test_wrong_settings_are_refused(wrong) -> None:
    with pytest.raises(ValidationError):
        OptimConfig(**wrong)


@pytest.mark.parametrize("value", ["imae", -1, [0.1], [0.1, -1], True, {"start": 0.1}])
def test_a_weight_decay_of_no_known_form_is_one_message(value: Any) -> None:
    with pytest.raises(ValidationError) as raised:
        OptimConfig(weight_decay=value)
    (detail,) = raised.value.errors()
    assert "a number of 0 or more, [start, end] of two such, `ijepa` or `by_length` expected" in detail["msg"]
