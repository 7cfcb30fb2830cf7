"""Learning rate, weight decay and target momentum as pure functions of the step: nothing to save."""

import math
from collections.abc import Sequence
from typing import Literal

Shape = Literal["cosine", "linear", "constant", "step"]
"""of the learning rate after its warm-up"""

IJEPA_DECAY = (0.04, 0.4)
"""weight decay at the start and at the end (arXiv 2301.08243)"""
_LONG = 50_000
"""Steps from which the weight decay of earlier versions was I-JEPA's."""

MAX_INITIAL_SHARE = 0.05
"""a target that keeps more of its random initial weights than this to the end never became a teacher"""

_MULTIPLIED = 50_000
"""Steps whose momenta are multiplied one by one."""


def learning_rate(
    step: int,
    num_steps: int,
    *,
    peak: float,
    warmup_steps: int,
    shape: Shape = "cosine",
    end: float = 0.0,
    step_at: Sequence[float] = (),
    factor: float = 0.1,
) -> float:
    """Linear from peak/warmup_steps to peak over the warm-up; after it by `shape`, to `end` at num_steps.

    step_at: for `step`, the shares of the run at which the rate is multiplied by `factor`; never to less than `end`.
    """
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    if shape == "constant":
        return peak
    if shape == "step":
        return max(end, peak * factor ** sum(step >= share * num_steps for share in step_at))
    passed = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    return end + (peak - end) * (_half_cosine(passed) if shape == "cosine" else 1 - passed)


def warmup_steps(num_steps: int, epochs: float | None, *, epoch_samples: int, global_batch: int) -> int:
    """Steps of the warm-up of a run.  epochs: its length; None for a tenth of the run."""
    if epochs is None:
        return max(1, num_steps // 10)
    return min(num_steps, math.ceil(epochs * epoch_samples / global_batch))


def weight_decay(step: int, num_steps: int, *, start: float, end: float) -> float:
    """From start to end by a half cosine."""
    return end + (start - end) * _half_cosine(step / num_steps)


def decay_by_length(num_steps: int) -> tuple[float, float]:
    """(start, end) of the weight decay that earlier versions chose: I-JEPA's from 50,000 steps up, else 0.05."""
    return IJEPA_DECAY if num_steps >= _LONG else (0.05, 0.05)


def momentum(step: int, num_steps: int, *, initial: float) -> float:
    """m(t) = 1 - (1 - m0)(1 - t/T): from m0, per step and not rescaled by the batch, linearly to 1."""
    return 1 - (1 - initial) * (1 - step / num_steps)


def initial_share(num_steps: int, *, initial: float) -> float:
    """The share of its initial parameters in the target after the run: the product of m(t) over all steps.

    Of many steps by the Euler-Maclaurin sum of its logarithm, for a run may have any number of them.
    """
    if num_steps > _MULTIPLIED and initial > 0:
        moved = 1 - initial
        mean_log = -initial * math.log(initial) / moved - 1 if moved > 1e-4 else -moved / 2 - moved**2 / 6
        return math.exp(num_steps * mean_log + math.log(initial) / 2)
    if num_steps > _MULTIPLIED:
        return 0.0
    return math.prod(momentum(step, num_steps, initial=initial) for step in range(num_steps))


def largest_momentum(num_steps: int) -> float:
    """The largest m0, in units of 1e-5, that leaves at most 5% of the initial weights in the target."""
    low, high = 0, 100_000
    while high - low > 1:
        middle = (low + high) // 2
        if initial_share(num_steps, initial=middle / 100_000) <= MAX_INITIAL_SHARE:
            low = middle
        else:
            high = middle
    return low / 100_000


def _half_cosine(share: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * share))
