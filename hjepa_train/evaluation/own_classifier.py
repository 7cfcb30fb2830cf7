"""How right an objective's own classifiers are on labelled images, class by class, and what they take for what.

The classes of a probed source and those of the classifier meet by name. Images of classes that the classifier does not
have count for nothing: it cannot be right about them.

Axes: N images, B a batch, K the classifier's classes.
"""

from collections import Counter
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hjepa_shards import DataConfig, manifest_at, place_of
from hjepa_train.base.mixture_facts import numbers_among
from hjepa_train.data.augment import normalise
from hjepa_train.data.labelled_images import Labelled
from hjepa_train.objectives.base import Classifies


def truth(objective: Classifies, data: DataConfig, images: Labelled) -> Tensor:
    """[N] int64 on the CPU: the images' classes among the classifier's; -1: not one of them."""
    names = manifest_at(place_of(data.root, images.source, "train")).class_names
    numbers = numbers_among(objective.class_names, names)
    return torch.tensor([*numbers, -1])[images.labels.cpu().clamp(min=-1, max=len(numbers))]


@torch.no_grad()
def answers(objective: Classifies, data: DataConfig, images_B3RR: Tensor) -> dict[str, Tensor]:
    """Encoder -> [B, 5] int64 on the CPU: the likeliest classes of uint8 images, or all of fewer than five."""
    images = normalise(images_B3RR.float(), mean=data.pixel_mean, std=data.pixel_std)
    return {
        name: logits_BK.float().topk(min(5, logits_BK.shape[1])).indices.cpu()
        for name, logits_BK in objective.classify(images).items()
    }


def percent_right(said_N5: Tensor, truth_N: Tensor, most: int = 1) -> float:
    """Of the images whose class is known.  most: of the likeliest classes, one of which is to be right."""
    known_N = truth_N >= 0
    if not known_N.any():
        return float("nan")
    right_N = (said_N5[:, :most] == truth_N[:, None]).any(1)
    return float(100 * right_N[known_N].double().mean())


def by_class(said_N5: Tensor, truth_N: Tensor, class_names: tuple[str, ...]) -> list[dict[str, Any]]:
    """A row for each class with images: how many, percent right, and what the others are taken for most often."""
    rows: list[dict[str, Any]] = []
    said, known = said_N5[:, 0].numpy(), truth_N.numpy()
    for number in np.unique(known[known >= 0]).tolist():
        own: NDArray[np.int64] = said[known == number]
        row: dict[str, Any] = {"class": class_names[number], "images": len(own)}
        row["right"] = 100 * float((own == number).mean())
        others = Counter(own[own != number].tolist()).most_common(1)
        if others:
            row |= {"taken_for": class_names[others[0][0]], "times": others[0][1]}
        rows.append(row)
    return rows


def confusion(said_N5: Tensor, truth_N: Tensor) -> list[list[int]]:
    """[class, the one it is taken for, how many images] of all pairs that occur, in order."""
    known_N = truth_N >= 0
    pairs = Counter(zip(truth_N[known_N].tolist(), said_N5[known_N, 0].tolist(), strict=True))
    return [[*pair, times] for pair, times in sorted(pairs.items())]
