"""Steps whose gradient is not finite: nothing is updated then, no weight, no moment, no target.

The device decides, so that the host waits for nothing; it learns of a step while the next one runs, writes down which
samples it saw, and stops the run where two in a row are so (in fp16, where a first loss scale is looked for, more).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hjepa_shards import Batch as Loaded
from hjepa_shards.base.terminal import escape
from hjepa_shards.errors import InputError
from hjepa_train.base.distributed import gather, is_shard, rank
from hjepa_train.base.metrics_file import append_metrics


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One that the host does not know of yet."""

    number: int
    is_finite: Tensor
    """On the host; there once `arrived`."""
    arrived: torch.cuda.Event | None
    entries: NDArray[np.int64]
    samples: NDArray[np.int64]
    """Of this rank's images."""


@final
class NonfiniteGuard:
    """What watches the steps of a run. Call `judge` after each backward pass, and `receive` at the end."""

    def __init__(self, path: Path, names: Sequence[str], say: Callable[[str], None], *, allowed: int = 1) -> None:
        """path: where the samples of steps that were skipped are written, a line of JSON each.  names: of entries.

        allowed: how many such steps in a row do not stop the run.
        """
        self._path, self._names, self._say = path, names, say
        self._waiting: Step | None = None
        self._allowed, self._in_a_row, self._last_bad = allowed, 0, -2

    def judge(self, number: int, parameters: Iterable[nn.Parameter], loaded: Loaded) -> tuple[Tensor, Tensor]:
        """(the gradient's norm, whether it is finite), both on the device.

        InputError where too many steps before were not.
        """
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        norm = norm.full_tensor() if is_shard(norm) else norm
        is_finite = norm.isfinite()
        self.receive()
        if is_finite.device.type == "cuda":
            on_host = torch.empty((), dtype=torch.bool, pin_memory=True).copy_(is_finite, non_blocking=True)
            arrived = torch.cuda.Event()
            arrived.record()
        else:
            on_host, arrived = is_finite.cpu(), None
        self._waiting = Step(
            number=number,
            is_finite=on_host,
            arrived=arrived,
            entries=loaded.entries.copy(),
            samples=loaded.samples.copy(),
        )
        return norm, is_finite

    def receive(self) -> None:
        """How the last step judged was, on all ranks alike."""
        step, self._waiting = self._waiting, None
        if step is None:
            return
        if step.arrived:
            step.arrived.synchronize()
        if step.is_finite:
            return
        self._write(step)
        self._in_a_row = self._in_a_row + 1 if self._last_bad == step.number - 1 else 1
        if self._in_a_row > self._allowed:
            first = step.number - self._allowed
            raise InputError(
                f"steps {first} to {step.number}: the gradient is not finite, nothing was updated; their "
                f"samples are in {self._path}; the run diverged: resume from the last checkpoint with a smaller "
                "training.lr, or start again with a longer warm-up"
            )
        self._say(
            f"[yellow]note[/yellow] step {step.number}: the gradient is not finite, skipped; see "
            f"{escape(str(self._path))}"
        )
        self._last_bad = step.number

    def _write(self, step: Step) -> None:
        samples: dict[str, list[int]] = {}
        for entries, numbers in gather((step.entries.tolist(), step.samples.tolist())):
            for entry, sample in zip(entries, numbers, strict=True):
                samples.setdefault(self._names[int(entry)], []).append(sample)
        if rank() == 0:
            append_metrics(self._path, {"step": step.number, "samples": samples})
