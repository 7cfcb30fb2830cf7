"""What a backbone is to the rest: images become patches that carry their position, patches become features.

Dropping patches (H-JEPA, MAE), replacing them (SimMIM, BEiT) and other resolutions happen between `embed` and
`encode` and need no flags. A backbone that needs the whole grid says so (`takes_parts`), and gives out another grid:
fewer cells, wider.

Axes: B images, C channels, H W pixels, N patches or cells, D width, K kept patches, R prefix tokens.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import isqrt

import torch
from torch import Tensor, nn

from hjepa_shards.base.keyed_random import derive_key
from hjepa_shards.errors import InputError
from hjepa_train.modules import flop_count
from hjepa_train.modules.keyed_drops import Drops, draw_drops, limits_of, number_layers


@dataclass(frozen=True, kw_only=True, slots=True)
class Patches:
    """Embedded patches before any position is added, and where in the image they are."""

    tokens_BND: Tensor
    index_BN: Tensor
    """int64, cell of the grid, row by row"""
    grid: int
    """cells on a side of the whole image"""

    @staticmethod
    def of_map(maps_BDHW: Tensor) -> "Patches":
        """All cells of a square map, as convolutions give it."""
        B, _, G, _ = maps_BDHW.shape
        index_BN = torch.arange(G * G, device=maps_BDHW.device).expand(B, -1)
        return Patches(tokens_BND=maps_BDHW.flatten(2).mT, index_BN=index_BN, grid=G)

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

    def as_map(self) -> Tensor:
        """[B, grid, grid, D]: patches at their cells. ValueError where some were taken away."""
        if self.tokens_BND.shape[1] != self.grid**2:
            raise ValueError(
                f"a backbone that needs the whole grid: {self.grid**2} patches expected, {self.tokens_BND.shape[1]} "
                "found; replace patches instead of taking them, or use backbone.vit"
            )
        return self.tokens_BND.unflatten(1, (self.grid, self.grid))


@dataclass(frozen=True, kw_only=True, slots=True)
class Features:
    """What a backbone makes of patches."""

    tokens_BND: Tensor
    """after the final norm: in the order of the patches where the backbone takes parts, else cells row by row"""
    pooled_BD: Tensor
    """the image's one vector"""
    stages: tuple[Tensor, ...]
    """tokens after the requested stages, each of its own number and width, without the final norm"""
    grid: int
    """cells on a side of the whole image that come out"""
    prefix_BRD: Tensor | None = None
    """tokens that are of no place: class, distillation, registers, in this order; None where there are none"""


@dataclass(frozen=True, kw_only=True, slots=True)
class TimmForm:
    """The network of timm that gives a backbone's vector; its state_dict() and `more` load there with strict=True."""

    architecture: str
    arguments: Mapping[str, object]
    """of timm.create_model, besides the name"""
    first_conv: str
    """what takes the image's colours"""
    classifier: str | tuple[str, ...]
    """what a number of classes adds"""
    more: Mapping[str, Tensor] = field(default_factory=dict[str, Tensor])
    """weights that timm's network has and this one needs not: factors of 1, by name"""


class Backbone(nn.Module, ABC):
    """Images to features. Built initialised, from a keyed generator."""

    width: int
    """of the tokens and of the pooled vector that come out"""
    embed_width: int
    """of embedded patches, and so of a token that replaces one"""
    patch_size: int
    """side of a cell that goes in, in pixels"""
    stride: int
    """side of a cell that comes out, in pixels"""
    takes_parts: bool
    """whether `encode` accepts patches of which some were taken away"""
    num_stages: int
    """the last one that `encode` can give"""
    extent: int | None = None
    """cells on a side of the grid in whose units its fixed positions are measured; None where it has none"""
    seed = 0
    """what it drops in training is drawn by this"""
    _drops = False

    @abstractmethod
    def embed(self, images_BCHW: Tensor) -> Patches:
        """Square images with a side divisible by the patch size, as patches in row order."""

    @abstractmethod
    def encode(self, patches: Patches, stages: tuple[int, ...] = (), *, drops: Drops | None = None) -> Features:
        """stages: numbers from 1 to num_stages, ascending, whose tokens are wanted as well.

        drops: by `draws`; without them nothing is dropped.
        """

    @abstractmethod
    def block_list(self) -> Sequence[nn.Module]:
        """What is repeated in it: what is compiled, computed again in the backward pass and sharded, one by one."""

    def draws(self, positions_B: Tensor, view: int = 0) -> Drops | None:
        """What these images lose on their way through it in a training step; None where it drops nothing.

        view: which crop of its image each of them is.
        """
        if not self.training or not self._drops:
            return None
        return draw_drops(self.drop_limits_L, derive_key(self.seed, "drops", view), positions_B)

    def key_drops(self, seed: int) -> None:
        """Number all that drops in it, and have that drawn by `seed`. Once, when it is built."""
        rates = number_layers(self)
        self.seed, self._drops = seed, any(rates)
        self.register_buffer("drop_limits_L", limits_of(rates), persistent=False)

    drop_limits_L: Tensor

    def as_timm(self) -> TimmForm:
        """InputError saying what timm expects, where it has no such network."""
        raise InputError(f"a network that timm has expected, {type(self).__name__} found")

    def embed_flops(self, num_patches: int) -> int:
        """Of one image's `embed`, forward, as flop_count.py counts. By default as PyTorch counts its operations."""
        return self._counted(num_patches)[0]

    def encode_flops(self, num_tokens: int) -> int:
        """Of one image's `encode` of this many patches, forward."""
        return self._counted(num_tokens)[1]

    def _counted(self, num_patches: int) -> tuple[int, int]:
        """(embed, encode). Counted once: a network that is compiled or sharded cannot be run for it any more."""
        if num_patches not in self._flops:
            images = torch.empty(1, 3, *[isqrt(num_patches) * self.patch_size] * 2, device="meta")
            embed = flop_count.counted(self, lambda: self.embed(images))
            whole = flop_count.counted(self, lambda: self.encode(self.embed(images)))
            self._flops[num_patches] = embed, whole - embed
        return self._flops[num_patches]

    @cached_property
    def _flops(self) -> dict[int, tuple[int, int]]:
        return {}


def require_parts(backbone: Backbone, family: str) -> None:
    """InputError where a backbone needs the whole grid.  family: what would take patches away."""
    if not backbone.takes_parts:
        raise InputError(
            f"objective.{family}: takes patches away before the encoder, so a backbone that takes parts of an image "
            f"expected (backbone.vit), {type(backbone).__name__} found, which needs the whole grid; choose vit, or "
            "train this backbone with simclr or supervised"
        )


def require_stride(stride: int, image_size: int, family: str, remedy: str) -> None:
    """InputError where cells that come out do not fill an image.  stride: side of one, pixels."""
    if image_size % stride:
        raise InputError(
            f"backbone.{family}: an image size that {stride} divides expected, for that is the side of the cells that "
            f"come out, {image_size} found; {remedy}"
        )
