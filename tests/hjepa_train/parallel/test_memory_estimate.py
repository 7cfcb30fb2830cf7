"""What is estimated without memory, against what is really allocated on a CPU."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from hjepa_train.objectives.base import Objective
from hjepa_train.parallel.layout import recompute
from hjepa_train.parallel.memory_estimate import Memory, memory_of_a_step
from tests.hjepa_train.modules.test_flop_count import hjepa, images, mae

VIT = {"width": 96, "depth": 3, "heads": 3, "patch": 4}
ROWS, SIZE = 16, 32


def estimate(objective: Objective, precision: str, **changes: Any) -> Memory:
    autocast = partial(torch.autocast, "cpu", torch.bfloat16, enabled=precision == "bf16")
    sizes = {"image_size": SIZE, "rows": ROWS, "micro_batch": ROWS} | changes
    return memory_of_a_step(objective, autocast=autocast, **sizes)


def allocated(work: Callable[[], Any]) -> tuple[int, int]:
    """Bytes above those at the start, as PyTorch's profiler sees allocations come and go: the most, and at the end."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        kept = work()
    del kept
    found = profiler.profiler
    assert found
    assert found.kineto_results
    changes = sorted(
        (event.start_ns(), event.nbytes()) for event in found.kineto_results.events() if event.name() == "[memory]"
    )
    live = most = 0
    for _, num_bytes in changes:
        live += num_bytes
        most = max(most, live)
    return most, live


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("build", "config"),
    [
        (hjepa, {"levels": 3, "predictor": {"width": 48, "depth": 3, "heads": 4}}),
        (mae, {"decoder": {"width": 64, "depth": 3, "heads": 4}}),
    ],
)
def test_activations_are_those_that_a_real_forward_pass_holds(
    build: Callable[..., Objective], config: dict[str, Any], precision: str
) -> None:
    with torch.device("meta"):
        objective = build(VIT, SIZE, **config)
    expected = estimate(objective, precision)
    real, batch = build(VIT, SIZE, **config), images(ROWS, SIZE)

    def forward() -> object:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            return real(batch)

    forward()
    most, _ = allocated(forward)
    assert 0.88 * most < expected.activations <= most  # what is held at the end was allocated


def test_blocks_that_are_computed_again_keep_what_a_real_forward_pass_holds_at_its_end() -> None:
    with torch.device("meta"):
        objective, plain = (hjepa(VIT, SIZE, levels=1) for _ in range(2))
    recompute(objective)
    expected = estimate(objective, "fp32").activations
    real, batch = hjepa(VIT, SIZE, levels=1), images(ROWS, SIZE)
    recompute(real)
    real(batch)
    _, held = allocated(lambda: real(batch))
    assert expected == pytest.approx(held, rel=0.05)
    assert expected < estimate(plain, "fp32").activations / 3


def test_what_does_not_depend_on_the_batch_is_counted_to_the_byte() -> None:
    with torch.device("meta"):
        objective = hjepa(VIT, SIZE, levels=1)
    memory = estimate(objective, "fp32")
    real = hjepa(VIT, SIZE, levels=1)
    optimizer = torch.optim.AdamW([p for p in real.parameters() if p.requires_grad])
    real(images(2, SIZE))[0].backward()
    optimizer.step()
    gradients = sum(p.grad.numel() * 4 for p in real.parameters() if p.grad is not None)
    moments = sum(state[name].numel() * 4 for state in optimizer.state.values() for name in ("exp_avg", "exp_avg_sq"))
    assert (memory.weights, memory.gradients, memory.optimizer) == (gradients, gradients, moments)
    assert memory.target == sum(t.numel() * t.element_size() for t in (*real.target.parameters(), *real.buffers()))


def test_a_smaller_micro_batch_keeps_less_and_bf16_less_than_fp32() -> None:
    def activations(precision: str, micro_batch: int) -> int:
        with torch.device("meta"):
            objective = mae(VIT, SIZE)
        return estimate(objective, precision, micro_batch=micro_batch).activations

    assert activations("fp32", 4) < 0.3 * activations("fp32", 16)
    assert 0.4 < activations("bf16", 16) / activations("fp32", 16) < 0.8
