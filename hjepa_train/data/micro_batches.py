"""From the loader's uint8 arrays to micro-batches on the device: the one module that knows both packages' batches."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hjepa_shards import Batch as Loaded
from hjepa_shards import DataConfig
from hjepa_train.data.augment import augment
from hjepa_train.objectives.base import Batch


def page_locked(device: torch.device) -> Callable[[tuple[int, ...]], NDArray[np.uint8]] | None:
    """Memory for the loader's batches from which the GPU copies by itself; None where any memory will do."""
    if device.type != "cuda":
        return None
    return lambda shape: torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy()


def to_micro_batches(
    loaded: Loaded, config: DataConfig, *, micro_batch: int, seed: int, device: torch.device
) -> list[Batch]:
    """Consecutive parts of a rank's batch, augmented and normalised on the device; its buffers are free again."""
    rows = len(loaded.images)
    images, labels, positions, entries = _moved(
        (loaded.images, loaded.labels, loaded.positions, loaded.entries), device
    )
    first, *others = (
        augment(
            images_BHWC,
            positions,
            seed=seed,
            horizontal_flip=config.augmentation.horizontal_flip,
            color_jitter=config.augmentation.color_jitter,
            grayscale=config.augmentation.grayscale,
            blur=config.augmentation.blur,
            hue=config.augmentation.hue,
            jitter_share=config.augmentation.jitter_share,
            solarize=config.augmentation.solarize,
            three_augment=config.augmentation.three_augment,
            erase=config.augmentation.erase,
            mean=config.pixel_mean,
            std=config.pixel_std,
            view=view,
        )
        for view, images_BHWC in enumerate(images.unbind(1) if images.ndim == 5 else [images])
    )
    return [
        Batch(
            images_BCHW=first[start : start + micro_batch],
            other_views=tuple(other[start : start + micro_batch] for other in others),
            labels_B=labels[start : start + micro_batch],
            positions_B=positions[start : start + micro_batch],
            entry_B=entries[start : start + micro_batch],
            rows=rows,
        )
        for start in range(0, rows, micro_batch)
    ]


def _moved(arrays: Sequence[NDArray[Any]], device: torch.device) -> list[Tensor]:
    """On the device; they may be overwritten when this returns, though the GPU may still work on earlier steps."""
    tensors = [torch.from_numpy(array) for array in arrays]
    if device.type != "cuda":
        return [tensor.to(device) for tensor in tensors]
    stream = _copying(device)
    with torch.cuda.stream(stream):
        moved = [tensor.to(device, non_blocking=True) for tensor in tensors]
    stream.synchronize()  # waits for the copies alone
    for tensor in moved:
        tensor.record_stream(torch.cuda.current_stream(device))
    return moved


@cache
def _copying(device: torch.device) -> torch.cuda.Stream:
    """One for all steps: memory is used again only by the stream that it came from."""
    return torch.cuda.Stream(device)
