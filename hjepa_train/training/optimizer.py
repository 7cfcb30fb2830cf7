"""AdamW: which parameters decay, and the two numbers that move during a run.

Only matrices and kernels decay. Biases, norms, mask tokens and embeddings do not: decay would pull them to a
meaning.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from hjepa_shards.config import Strict

_HOST_LOOKS = ("mps",)
"""Devices whose fused AdamW overlooks `found_inf`: the host waits for the flag there."""

Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimConfig(Strict):
    """AdamW's settings."""

    lr: float = Field(default=1e-3, gt=0)
    """peak learning rate"""
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    """decay of the moments"""
    weight_decay: float | None = Field(default=None, ge=0)
    """constant; by default by the run's length: 0.04 to 0.4 from 50,000 steps up, 0.05 in shorter runs"""


def build_optimizer(module: nn.Module, config: OptimConfig) -> torch.optim.AdamW:
    """Over the parameters of `module` that want a gradient; rates are set each step by `set_rates`."""
    trained = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    decaying = [p for name, p in trained if decays(name, p)]
    others = [p for name, p in trained if not decays(name, p)]
    groups = [{"params": decaying, "decays": True}, {"params": others, "decays": False, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, fused=True)


def decays(name: str, parameter: nn.Parameter) -> bool:
    """True for the weights of linear maps and convolutions."""
    return parameter.ndim >= 2 and name.rpartition(".")[2] == "weight"


def set_rates(optimizer: torch.optim.Optimizer, *, lr: float, weight_decay: float) -> None:
    """The learning rate and weight decay of the coming step."""
    for group in optimizer.param_groups:
        group["lr"] = lr
        if group["decays"]:
            group["weight_decay"] = weight_decay


def update(optimizer: torch.optim.Optimizer, is_finite: Tensor) -> None:
    """A step of the optimizer; where `is_finite` is false, on the device, nothing moves."""
    if is_finite.device.type in _HOST_LOOKS and not is_finite:
        return
    optimizer.found_inf = (~is_finite).float()  # pyright: ignore[reportAttributeAccessIssue] as torch.amp.GradScaler
    optimizer.step()
