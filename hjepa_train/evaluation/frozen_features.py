"""What frozen encoders make of labelled images: one vector an image, or its tokens.

Images pass through a batch at a time and only features stay, in single precision, so that memory grows with them alone.

Axes: N images, R pixels a side, D width, S tokens, B a batch.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from hjepa_shards import DataConfig
from hjepa_train.backbones.base import Backbone
from hjepa_train.data.augment import normalise
from hjepa_train.data.labelled_images import BATCH, Labelled

_LAST_STAGES = 4
_PIXELS_SIDE = 32
"""Raw pixels of larger images are averaged down to this side: 150,528 dimensions would drown any probe."""
_MOST_TOKEN_BYTES = 2**31
"""Of an encoder's tokens that are kept between passes; above, the images are read and encoded again in each."""


@torch.no_grad()
def features_of(images: Labelled, form: Callable[[Tensor], Tensor]) -> Tensor:
    """[N, D], float32. form: makes [B, D] of uint8 images [B, 3, R, R], such as one of the functions below."""
    found_ND, start = torch.empty(0), 0
    for images_B3RR in images.batches():
        part_BD = form(images_B3RR)
        if start == 0:
            found_ND = torch.empty(len(images), part_BD.shape[1], device=part_BD.device)
        found_ND[start : start + len(part_BD)] = part_BD
        start += len(part_BD)
    return found_ND


def pixels(images_B3RR: Tensor) -> Tensor:
    """As they are, neither centred nor scaled: what a probe makes of that is part of the baseline."""
    side = min(_PIXELS_SIDE, images_B3RR.shape[-1])
    return F.adaptive_avg_pool2d(images_B3RR.float(), side).flatten(1)


@torch.no_grad()
def pooled_features(encoder: Backbone, data: DataConfig, images_B3RR: Tensor) -> Tensor:
    """[B, D], an image's one vector each; from uint8."""
    return encoder.encode(encoder.embed(_normalised(images_B3RR, data))).pooled_BD


@torch.no_grad()
def last_stages(encoder: Backbone, data: DataConfig, images_B3RR: Tensor) -> Tensor:
    """[B, 4 D]: the tokens of each of the last four stages averaged, side by side, without the final norm."""
    stages = tuple(range(max(1, encoder.num_stages - _LAST_STAGES + 1), encoder.num_stages + 1))
    features = encoder.encode(encoder.embed(_normalised(images_B3RR, data)), stages)
    return torch.cat([tokens.mean(1) for tokens in features.stages], 1)


def token_reader(encoder: Backbone, data: DataConfig, images: Labelled) -> Callable[[Tensor], Tensor]:
    """What gives the last tokens [B, S, D] of the images at given indices [B].

    They are kept in half precision where they fit into 2 GiB; else images are read and encoded again for each batch.
    """

    @torch.no_grad()
    def encode(images_B3RR: Tensor) -> Tensor:
        return encoder.encode(encoder.embed(_normalised(images_B3RR, data))).tokens_BND

    first = encode(images.at(torch.tensor([0])))
    if len(images) * first.numel() * 2 > _MOST_TOKEN_BYTES:
        return lambda index_B: encode(images.at(index_B))
    kept, start = torch.empty(len(images), *first.shape[1:], dtype=torch.float16, device=first.device), 0
    for images_B3RR in images.batches():
        kept[start : start + BATCH] = encode(images_B3RR)
        start += BATCH
    return lambda index_B: kept[index_B].float()


def _normalised(images_B3RR: Tensor, data: DataConfig) -> Tensor:
    return normalise(images_B3RR.float(), mean=data.pixel_mean, std=data.pixel_std)
