"""A clock for the phases of a training step, set from outside the loop: where its parts are called, time is taken.

Phases have no code of their own. What passes up to the next mark is the phase that the mark names, so they always add
up to the step.
"""

import time
from typing import Any, final

import torch
from torch import nn

WAIT, PREPARE, FORWARD, BACKWARD, UPDATE = "wait for data", "copy and augment", "forward", "backward", "update"
PHASES = {
    WAIT: "for the loader's next batch",
    PREPARE: "to the device; flips, colours, normalisation",
    FORWARD: "targets, masks, networks, loss",
    BACKWARD: "gradients",
    UPDATE: "the gradient's norm, AdamW, the momentum target",
}
"""In their order, and what they are."""


@final
class PhaseClock:
    """The time of each step, by what it went to."""

    def __init__(self, device: torch.device, *, waits: bool) -> None:
        """waits: for the device, at every mark."""
        self.waits, self.steps = waits, list[dict[str, float]]()
        self._device, self._step, self._last = device, dict.fromkeys(PHASES, 0.0), time.perf_counter()

    def mark(self, phase: str) -> None:
        """What passed since the last mark was this."""
        if self.waits and self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)
        now = time.perf_counter()
        self._step[phase] += now - self._last
        self._last = now

    def end_step(self) -> bool:
        """False: the loop asks here whether to stop."""
        self.mark(UPDATE)
        self.steps.append(self._step)
        self._step = dict.fromkeys(PHASES, 0.0)
        return False


def mark_borders(objective: nn.Module, scaler: torch.amp.GradScaler, clock: PhaseClock) -> list[Any]:
    """Mark where forward and backward of every micro-batch end. Returns what to `remove()` from the objective.

    scaler: marks the last backward's end, for the loop calls `unscale_` right after it; it stays so.
    """
    seen = 0

    def before_forward(*_: object) -> None:
        nonlocal seen
        clock.mark(BACKWARD if seen > 0 else FORWARD)
        seen += 1

    def after_forward(*_: object) -> None:
        clock.mark(FORWARD)

    unscale = scaler.unscale_

    def after_backward(optimizer: torch.optim.Optimizer) -> None:
        nonlocal seen
        clock.mark(BACKWARD)
        seen = 0
        unscale(optimizer)

    scaler.unscale_ = after_backward
    return [objective.register_forward_pre_hook(before_forward), objective.register_forward_hook(after_forward)]
