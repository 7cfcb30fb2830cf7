import time
from typing import Any

import pytest
import torch
from torch import nn

from hjepa_train.base.phase_clock import BACKWARD, FORWARD, PHASES, PREPARE, UPDATE, WAIT, PhaseClock, mark_borders

DEVICE = torch.device("cpu")
PAUSES_S = {WAIT: 0.05, PREPARE: 0.02, FORWARD: 0.06, BACKWARD: 0.04, UPDATE: 0.03}


class SlowGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor) -> torch.Tensor:
        return tensor.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        time.sleep(PAUSES_S[BACKWARD] / 2)
        return gradients[0]


class Slow(nn.Module):
    """Each forward and each backward takes half of its pause."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self) -> torch.Tensor:
        time.sleep(PAUSES_S[FORWARD] / 2)
        return SlowGradient.apply(self.weight).sum()  # pyright: ignore[reportAttributeAccessIssue]


def step(model: Slow, scaler: torch.amp.GradScaler, optimizer: torch.optim.Optimizer, clock: PhaseClock) -> None:
    """In the order of the training loop, two micro-batches."""
    time.sleep(PAUSES_S[WAIT])
    clock.mark(WAIT)
    time.sleep(PAUSES_S[PREPARE])
    clock.mark(PREPARE)
    for _ in range(2):
        scaler.scale(model()).backward()
    scaler.unscale_(optimizer)
    time.sleep(PAUSES_S[UPDATE])
    optimizer.step()
    assert clock.end_step() is False


def test_each_phase_has_the_time_that_was_spent_in_it_with_micro_batches_too() -> None:
    model = Slow()
    optimizer, scaler = torch.optim.SGD(model.parameters()), torch.amp.GradScaler("cpu", enabled=False)
    began = time.perf_counter()
    clock = PhaseClock(DEVICE, waits=True)
    hooks = mark_borders(model, scaler, clock)
    for _ in range(3):
        step(model, scaler, optimizer, clock)
    took_s = time.perf_counter() - began
    assert len(clock.steps) == 3
    assert sum(sum(one.values()) for one in clock.steps) == pytest.approx(took_s, rel=0.02)
    for phase, pause_s in PAUSES_S.items():
        fastest = min(one[phase] for one in clock.steps)
        assert pause_s <= fastest < pause_s + 0.015, phase
    for hook in hooks:
        hook.remove()
    before = dict.fromkeys(PHASES, 0.0)
    model()
    assert clock._step == before  # nothing marks after the last step
