"""The error message where a device's memory is full, and what to do next."""

import contextlib
import re
from collections.abc import Callable, Iterator

import torch

from hjepa_shards.errors import InputError
from hjepa_train.base.distributed import world_size
from hjepa_train.objectives.base import Objective
from hjepa_train.training.config import TrainingConfig

_FULL = re.compile("MPS backend out of memory|can't allocate memory")
"""What PyTorch says on MPS and on a CPU, where it has no type of error for it."""


def is_full_memory(error: Exception) -> bool:
    """Whether PyTorch, NumPy or Python say with it that a memory is full."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or bool(_FULL.search(str(error)))


@contextlib.contextmanager
def reporting_full_memory(advice: Callable[[], str] | str) -> Iterator[None]:
    """InputError where the device's memory is full.  advice: whose it is, with what, and what to do next."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_full_memory(error):
            raise
        raise InputError(advice if isinstance(advice, str) else advice()) from error


def smaller_steps(training: TrainingConfig, objective: Objective, device: torch.device) -> str:
    """Advice for where steps fill it: the micro-batch to try."""
    now, rows = micro_batch_of(training, world_size()), training.global_batch // world_size()
    smaller = max((size for size in range(2, now // 2 + 1) if rows % size == 0), default=None)
    advice = f"set `training.micro_batch: {smaller}`" if smaller else "choose a smaller backbone or data.image_size"
    if smaller and not objective.is_additive:
        advice += (
            f", and {objective.additive_with}, with which the loss is that of any other micro-batch"
            if objective.additive_with
            else ", another recipe, in which fewer images meet in the loss"
        )
    return f"{device}: its memory is full with micro-batches of {now} images; {advice}"


def micro_batch_of(training: TrainingConfig, world: int) -> int:
    """Images that a rank works on at once."""
    return training.micro_batch or training.global_batch // world
