"""Mixup (arXiv 1710.09412) and CutMix (arXiv 1905.04899) of neighbours.

An image's partner is its neighbour in the global batch: locations 0 and 1, 2 and 3, and so on. Everything is drawn by
the smaller position of the two, so a pair is the same in any micro-batch and on any rank, as long as these have an even
number of images. timm pairs the first image of a batch with the last: another recipe for every split of a step. A pair
mixes only where both images have a label.

Axes: B images, P = B / 2 pairs, C channels, H W pixels.
"""

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from hjepa_shards.base.keyed_random import derive_key
from hjepa_shards.config import Strict
from hjepa_train.base.keyed_integers import BITS, below, draw_integers

_QUANTILES_BITS = 12


class MixConfig(Strict):
    """How neighbours are mixed. DeiT, Swin and ConvNeXt: mixup 0.8, cutmix 1."""

    mixup: float = Field(default=0, ge=0, le=100)
    """alpha of Beta(alpha, alpha), of which the share of an image in its mixture is drawn; 0 for none"""
    cutmix: float = Field(default=0, ge=0, le=100)
    """the same for the share of the area that is left of an image whose rectangle is its partner's"""
    share: float = Field(default=1, ge=0, le=1)
    """of the pairs that are mixed"""
    switch: float = Field(default=0.5, ge=0, le=1)
    """share of the mixed pairs that CutMix takes, where both are on"""

    def cut_share(self) -> float:
        """Of the mixed pairs, those for CutMix."""
        return (self.switch if self.mixup else 1.0) if self.cutmix else 0.0


def mix_pairs(
    images_BCHW: Tensor,
    is_labelled_B: Tensor,
    positions_B: Tensor,
    config: MixConfig,
    quantiles_2Q: Tensor,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """(mixed images, [B] the share of its own label in each).  B is even.

    quantiles_2Q: of mixup's and of CutMix's shares, by `quantiles_of`.
    """
    integers_P5 = draw_integers(derive_key(seed, "mix"), positions_B.view(-1, 2).amin(1), 5)
    is_mixed_P = is_labelled_B.view(-1, 2).all(1) & (integers_P5[:, 0] < round(config.share * 2**BITS))
    is_cut_P = integers_P5[:, 1] < round(config.cut_share() * 2**BITS)
    number_P = integers_P5[:, 2] >> (BITS - _QUANTILES_BITS)
    own_P = quantiles_2Q[is_cut_P.long(), number_P]
    box_PHW = _boxes(own_P, integers_P5[:, 3:], images_BCHW.shape[-1])
    own_P = torch.where(is_cut_P, 1 - box_PHW.float().mean((1, 2)), own_P)
    own_P = torch.where(is_mixed_P, own_P, 1.0)
    pairs = images_BCHW.unflatten(0, (-1, 2))
    partners = pairs.flip(1)
    own_P11111 = own_P.to(images_BCHW.dtype)[:, None, None, None, None]
    takes_PHW = (is_mixed_P & is_cut_P)[:, None, None] & box_PHW
    cut = torch.where(takes_PHW[:, None, None], partners, pairs)
    mixed = torch.where((is_mixed_P & ~is_cut_P)[:, None, None, None, None], partners.lerp(pairs, own_P11111), cut)
    return mixed.flatten(0, 1), own_P.repeat_interleave(2)


def quantiles_of(config: MixConfig) -> Tensor:
    """[2, 4096] float, of mixup and of CutMix: the middles of 4,096 equally likely parts of Beta(alpha, alpha)."""
    from scipy.special import betaincinv  # only here: half a second

    num = 2**_QUANTILES_BITS
    middles = (np.arange(num) + 0.5) / num
    rows = [betaincinv(alpha, alpha, middles) if alpha else np.ones(num) for alpha in (config.mixup, config.cutmix)]
    return torch.tensor(np.stack(rows), dtype=torch.float32)


def _boxes(own_P: Tensor, corners_P2: Tensor, side: int) -> Tensor:
    """[P, H, W] True inside a square of 1 - own of the area around a random pixel, cut at the borders."""
    length_P = (side * (1 - own_P).sqrt()).long()
    centre_P2 = below(corners_P2, side)
    first_P2 = (centre_P2 - length_P[:, None] // 2).clamp(0, side)
    last_P2 = (centre_P2 + length_P[:, None] // 2).clamp(0, side)
    at = torch.arange(side, device=own_P.device)
    inside_P2S = (at >= first_P2[..., None]) & (at < last_P2[..., None])
    return inside_P2S[:, 0, :, None] & inside_P2S[:, 1, None, :]
