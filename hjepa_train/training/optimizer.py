"""AdamW: its settings, and the numbers that move during a run.

What a file leaves out comes from the objective's recipe (recipe_values.py). Which parameters decay and by which rate
each of them learns is in parameter_groups.py.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, field_validator, model_validator
from torch import Tensor, nn

from hjepa_shards.config import Strict
from hjepa_train.base import schedules
from hjepa_train.base.distributed import is_shard
from hjepa_train.training.parameter_groups import parameter_groups

_HOST_LOOKS = ("mps",)
"""Devices whose fused AdamW overlooks `found_inf`: the host waits for the flag there."""

Beta = Annotated[float, Field(ge=0, lt=1)]
Decay = Annotated[float, Field(ge=0)]


class OptimConfig(Strict):
    """AdamW's settings; the objective's recipe has the values of keys that are left out."""

    lr: float | None = Field(default=None, gt=0)
    """peak learning rate"""
    lr_per_256: float | None = Field(default=None, gt=0)
    """in place of `lr`: the peak for 256 images a step, multiplied by global_batch / 256"""
    schedule: schedules.Shape = "cosine"
    """of the learning rate after its warm-up; all but `constant` fall to `min_lr`"""
    min_lr: float = Field(default=0.0, ge=0)
    """the rate at the end"""
    step_at: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = ()
    """for `schedule: step`: shares of the run at which the rate falls, such as [0.875]"""
    step_factor: float = Field(default=0.1, gt=0, lt=1)
    """for `schedule: step`: what the rate is multiplied by there"""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """decay of the moments"""
    eps: float = Field(default=1e-8, gt=0)
    """added to the root of the second moment"""
    weight_decay: Decay | tuple[Decay, Decay] | Literal["ijepa", "by_length"] = 0.05
    """constant; or [start, end], a half cosine; or `ijepa`, [0.04, 0.4]; `by_length` is what runs of earlier versions
    have: `ijepa` from 50,000 steps up, 0.05 in shorter ones"""
    clip_norm: float | None = Field(default=None, gt=0)
    """largest norm of the gradient of all trained parameters together; null for any"""
    layer_decay: float | None = Field(default=None, gt=0, le=1)
    """the learning rate of a backbone's last block as a share of the heads', of the block before as a share of its,
    and so on to the patch embedding (for fine-tuning); null for one rate"""
    frozen: tuple[str, ...] = ()
    """parts that are not trained, such as backbone.patch_embed; they run in evaluation mode"""

    @field_validator("weight_decay", mode="before")
    @classmethod
    def _as_it_was_written(cls, value: Any) -> Any:
        """Earlier versions wrote null for what is called `by_length` now. One message for all forms."""
        if value is None:
            return "by_length"
        pair = isinstance(value, list | tuple) and len(value) == 2
        if value not in ("ijepa", "by_length") and not all(map(_is_decay, value if pair else [value])):
            raise ValueError("a number of 0 or more, [start, end] of two such, `ijepa` or `by_length` expected")
        return value

    @model_validator(mode="after")
    def _one_learning_rate(self) -> "OptimConfig":
        if self.lr is not None and self.lr_per_256 is not None:
            raise ValueError(f"either lr or lr_per_256 expected, both found: {self.lr} and {self.lr_per_256}")
        return self


def _is_decay(value: Any) -> bool:
    """YAML reads 5e-2 as a text."""
    try:
        return not isinstance(value, bool) and 0 <= float(value) < math.inf
    except (TypeError, ValueError):
        return False


def build_optimizer(module: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Over the parameters of `module` that want a gradient; rates are set each step by `set_rates`.

    Until then they are `config.lr`, or PyTorch's default where the recipe is not filled in.
    """
    groups = parameter_groups(module, layer_decay=config.layer_decay)
    return torch.optim.AdamW(groups, lr=config.lr or 1e-3, betas=config.betas, eps=config.eps, fused=True)


def rates(
    config: OptimConfig, *, num_steps: int, warmup_steps: int
) -> tuple[Callable[[int], float], Callable[[int], float]]:
    """(learning rate, weight decay) as functions of the step.  config: with `lr`, as recipe_values.py fills it in."""
    assert config.lr is not None, "a configuration without its recipe: saved_config.resolved fills it in"
    lr = partial(
        schedules.learning_rate,
        num_steps=num_steps,
        peak=config.lr,
        warmup_steps=warmup_steps,
        shape=config.schedule,
        end=config.min_lr,
        step_at=config.step_at,
        factor=config.step_factor,
    )
    start, end = _decay(config, num_steps)
    if start == end:
        return lr, lambda step: start
    return lr, partial(schedules.weight_decay, num_steps=num_steps, start=start, end=end)


def _decay(config: OptimConfig, num_steps: int) -> tuple[float, float]:
    match config.weight_decay:
        case "ijepa":
            return schedules.IJEPA_DECAY
        case "by_length":
            return schedules.decay_by_length(num_steps)
        case (start, end):
            return start, end
        case constant:
            return constant, constant


def set_rates(optimizer: torch.optim.Optimizer, *, lr: float, weight_decay: float) -> None:
    """The learning rate and weight decay of the coming step."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_share", 1.0)
        if group["decays"]:
            group["weight_decay"] = weight_decay


@torch.no_grad()
def clip(optimizer: torch.optim.Optimizer, norm: Tensor, clip_norm: float) -> None:
    """Scale all gradients, in place, so that their norm is at most `clip_norm`; as torch's clip_grad_norm_.

    norm: theirs, on the device, which the host does not wait for. Shards are scaled where they are.
    """
    scale = (clip_norm / (norm + 1e-6)).clamp(max=1.0)
    found = [parameter.grad for group in optimizer.param_groups for parameter in group["params"]]
    gradients = [grad.to_local() if is_shard(grad) else grad for grad in found if grad is not None]
    if scale.device.type == "cuda":
        torch._foreach_mul_(gradients, scale)  # pyright: ignore[reportPrivateImportUsage] a few kernels for all of them
    else:
        for gradient in gradients:
            gradient.mul_(scale)


def update(optimizer: torch.optim.Optimizer, is_finite: Tensor) -> None:
    """A step of the optimizer; where `is_finite` is false, on the device, nothing moves."""
    if is_finite.device.type in _HOST_LOOKS and not is_finite:
        return
    optimizer.found_inf = (~is_finite).float()  # pyright: ignore[reportAttributeAccessIssue] as torch.amp.GradScaler
    optimizer.step()
