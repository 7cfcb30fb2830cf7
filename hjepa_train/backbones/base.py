"""What a backbone is to the rest: images become patches that carry their position, patches become features.

Dropping patches (H-JEPA, MAE), replacing them (SimMIM, BEiT) and other resolutions happen between `embed` and
`encode` and need no flags. A backbone that needs the whole grid refuses dropped patches by an error that
names the alternative.

Axes: B images, C channels, H W pixels, N patches, D width, K kept patches.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True, slots=True)
class Patches:
    """Embedded patches before any position is added, and where in the image they are."""

    tokens_BND: Tensor
    index_BN: Tensor
    """int64, cell of the grid, row by row"""
    grid: int
    """cells on a side of the whole image"""

    def take(self, index_BK: Tensor) -> "Patches":
        """Only the patches at these indices of the sequence; the rest is gone before the first block."""
        width = self.tokens_BND.shape[-1]
        return replace(
            self,
            tokens_BND=self.tokens_BND.gather(1, index_BK[..., None].expand(-1, -1, width)),
            index_BN=self.index_BN.gather(1, index_BK),
        )

    def replace(self, mask_BN: Tensor, token_D: Tensor) -> "Patches":
        """`token_D` wherever the mask is True; positions stay."""
        return replace(self, tokens_BND=torch.where(mask_BN[..., None], token_D, self.tokens_BND))


@dataclass(frozen=True, kw_only=True, slots=True)
class Features:
    """What a backbone makes of patches."""

    tokens_BND: Tensor
    """after the final norm, in the order of the patches"""
    pooled_BD: Tensor
    """the image's one vector"""
    stages: tuple[Tensor, ...]
    """tokens after the requested stages, without the final norm"""


class Backbone(nn.Module, ABC):
    """Images to features. Built initialised, from a keyed generator."""

    width: int
    """of the tokens and of the pooled vector"""
    patch_size: int
    """side of a cell of the grid, in pixels"""
    num_stages: int
    """the last one that `encode` can give"""

    @abstractmethod
    def embed(self, images_BCHW: Tensor) -> Patches:
        """Square images with a side divisible by the patch size, as patches in row order."""

    @abstractmethod
    def encode(self, patches: Patches, stages: tuple[int, ...] = ()) -> Features:
        """stages: numbers from 1 to num_stages, ascending, whose tokens are wanted as well."""

    @abstractmethod
    def embed_flops(self, num_patches: int) -> int:
        """Of one image's `embed`, forward, as flop_count.py counts."""

    @abstractmethod
    def encode_flops(self, num_tokens: int) -> int:
        """Of one image's `encode` of this many patches, forward."""
