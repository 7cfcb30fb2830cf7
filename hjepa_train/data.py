"""From the loader's uint8 arrays to micro-batches on the device: the one place that knows both packages' batches."""

import torch

from hjepa_shards import Batch as Loaded
from hjepa_shards import DataConfig
from hjepa_train.augment import augment
from hjepa_train.objectives.base import Batch


def to_micro_batches(
    loaded: Loaded, config: DataConfig, *, micro_batch: int, seed: int, device: torch.device
) -> list[Batch]:
    """Consecutive parts of a rank's batch, augmented and normalised on the device; its buffers are free again."""
    rows = len(loaded.images)
    images = augment(
        torch.from_numpy(loaded.images).to(device, non_blocking=True),
        torch.from_numpy(loaded.positions).to(device),
        seed=seed,
        horizontal_flip=config.augmentation.horizontal_flip,
        color_jitter=config.augmentation.color_jitter,
        mean=config.pixel_mean,
        std=config.pixel_std,
    )
    labels, positions, entries = (
        torch.from_numpy(column).to(device) for column in (loaded.labels, loaded.positions, loaded.entries)
    )
    return [
        Batch(
            images_BCHW=images[start : start + micro_batch],
            labels_B=labels[start : start + micro_batch],
            positions_B=positions[start : start + micro_batch],
            entry_B=entries[start : start + micro_batch],
            rows=rows,
        )
        for start in range(0, rows, micro_batch)
    ]
