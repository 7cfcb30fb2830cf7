"""Vision transformer (arXiv 2010.11929) as JEPAs use it: no class token, fixed sin-cos positions, mean pooling.

The state_dict() is that of timm's VisionTransformer(class_token=False, global_pool="avg", fc_norm=False,
num_classes=0) and loads there with strict=True. A patch is embedded by one matrix product instead of a
convolution: the same numbers, and much faster on a CPU.
"""

from collections.abc import Sequence
from typing import Literal, final

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from hjepa_shards.config import Strict
from hjepa_shards.errors import InputError
from hjepa_train.backbones.base import Backbone, Features, Patches
from hjepa_train.modules import flop_count
from hjepa_train.modules.keyed_drops import Drops
from hjepa_train.modules.layers import Block, initialise, sincos_positions

# width, depth, heads
SIZES = {
    "tiny": (192, 12, 3),
    "small": (384, 12, 6),
    "base": (768, 12, 12),
    "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}


_MOST_PATCHES = 512
"""On a side: above, attention over an image has more than 6e10 pairs."""


class VitConfig(Strict):
    """A named size, or width, depth and heads."""

    size: Literal["tiny", "small", "base", "large", "huge"] | None = None
    """one of the published sizes"""
    width: int | None = Field(default=None, gt=0, le=2**16)
    """of a token; divisible by 4 and by heads"""
    depth: int | None = Field(default=None, gt=0, le=256)
    """number of blocks"""
    heads: int | None = Field(default=None, gt=0)
    """attention heads"""
    patch: int = Field(gt=0, le=2**13)
    """side of a patch, pixels"""

    @model_validator(mode="after")
    def _one_way_of_saying_it(self) -> "VitConfig":
        given = [self.width, self.depth, self.heads]
        if self.size is not None and any(value is not None for value in given):
            raise ValueError("`size` already says width, depth and heads; give either it or those three")
        if self.size is None and None in given:
            raise ValueError(f"`size` ({', '.join(SIZES)}) or all of width, depth and heads expected")
        width, _, heads = self.shape
        if width % heads or width % 4:
            raise ValueError(f"width must be divisible by 4 and by heads; {width} with {heads} heads found")
        return self

    @property
    def shape(self) -> tuple[int, int, int]:
        """(width, depth, heads)"""
        if self.size is not None:
            return SIZES[self.size]
        assert self.width is not None
        assert self.depth is not None
        assert self.heads is not None
        return self.width, self.depth, self.heads


@final
class ViT(Backbone):
    """Patches to tokens of the same width, at every stage."""

    def __init__(self, config: VitConfig, image_size: int, generator: torch.Generator) -> None:
        """image_size: side of the training images in pixels; it fixes the unit of the positions."""
        super().__init__()
        if image_size % config.patch:
            raise InputError(
                f"backbone.vit.patch: {config.patch} does not divide the image size {image_size}; "
                f"patches that do: {', '.join(str(p) for p in range(2, image_size) if image_size % p == 0)}"
            )
        if image_size // config.patch > _MOST_PATCHES:
            raise InputError(
                f"backbone.vit.patch: at most {_MOST_PATCHES} patches a side expected, {image_size // config.patch} "
                f"found in images of {image_size} pixels; use a larger patch"
            )
        self.width, self.num_stages, self.num_heads = config.shape
        self.embed_width, self.patch_size, self.stride, self.takes_parts = self.width, config.patch, config.patch, True
        self.grid = image_size // config.patch
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, self.width, config.patch, stride=config.patch)
        self.blocks = nn.ModuleList(Block(self.width, self.num_heads) for _ in range(self.num_stages))
        self.norm = nn.LayerNorm(self.width, eps=1e-6)
        self.register_buffer("pos_embed", sincos_positions(self.grid, self.width, extent=self.grid)[None])
        initialise(self, generator)

    pos_embed: Tensor

    def embed(self, images_BCHW: Tensor) -> Patches:
        B, C, side, _ = images_BCHW.shape
        p = self.patch_size
        G = side // p
        cells = images_BCHW.reshape(B, C, G, p, G, p).permute(0, 2, 4, 1, 3, 5).reshape(B, G * G, C * p * p)
        proj = self.patch_embed.get_submodule("proj")
        assert isinstance(proj, nn.Conv2d)
        tokens_BND = F.linear(cells, proj.weight.flatten(1), proj.bias)
        index_BN = torch.arange(G * G, device=images_BCHW.device).expand(B, -1)
        return Patches(tokens_BND=tokens_BND, index_BN=index_BN, grid=G)

    def encode(self, patches: Patches, stages: tuple[int, ...] = (), *, drops: Drops | None = None) -> Features:
        tokens = patches.tokens_BND + F.embedding(patches.index_BN, self._positions(patches.grid))
        kept = []
        for number, block in enumerate(self.blocks, start=1):
            tokens = block(tokens)
            if number in stages:
                kept.append(tokens)
        tokens = self.norm(tokens)
        return Features(tokens_BND=tokens, pooled_BD=tokens.mean(1), stages=tuple(kept), grid=patches.grid)

    def block_list(self) -> Sequence[nn.Module]:
        return list(self.blocks)

    def embed_flops(self, num_patches: int) -> int:
        return flop_count.matrix(num_patches, 3 * self.patch_size**2, self.width)

    def encode_flops(self, num_tokens: int) -> int:
        return flop_count.stack(num_tokens, self.width, self.num_stages)

    def _positions(self, grid: int) -> Tensor:
        if grid == self.grid:
            return self.pos_embed[0]
        return sincos_positions(grid, self.width, extent=self.grid).to(self.pos_embed)
