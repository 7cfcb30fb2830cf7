"""What to do next where the steps of a run fill a device's memory."""

import torch

from hjepa_train.base.distributed import world_size
from hjepa_train.objectives.base import Objective, adds_up
from hjepa_train.training.config import TrainingConfig


def smaller_steps(training: TrainingConfig, objective: Objective, device: torch.device) -> str:
    """Advice for where steps fill it: the micro-batch to try."""
    now, rows = micro_batch_of(training, world_size()), training.global_batch // world_size()
    smaller = max((size for size in range(2, now // 2 + 1) if rows % size == 0), default=None)
    advice = f"set `training.micro_batch: {smaller}`" if smaller else "choose a smaller backbone or data.image_size"
    if smaller and not adds_up(objective):
        advice += (
            f", and {objective.additive_with}, with which the loss is that of any other micro-batch"
            if objective.additive_with
            else ", another recipe, in which fewer images meet in the loss"
        )
    return f"{device}: its memory is full with micro-batches of {now} images; {advice}"


def micro_batch_of(training: TrainingConfig, world: int) -> int:
    """Images that a rank works on at once."""
    return training.micro_batch or training.global_batch // world
