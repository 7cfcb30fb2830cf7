"""Swin (arXiv 2103.14030): attention in windows that shift from block to block, cells that merge from stage to stage.

The network is timm's, built without its weights: exact counts, and a state_dict() that loads there with strict=True.
Masks and positions of windows are made once for the size of the training images; other sizes have theirs made as they
come. Patches may be replaced (SimMIM) between `embed` and `encode`.

As published, the image's vector is the mean of the normed cells.

Axes: B images, C channels, H W cells, N cells row by row, D width.
"""

from collections.abc import Sequence
from typing import Any, Literal, final

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from hjepa_shards.config import Strict
from hjepa_train.backbones.base import Backbone, Features, Patches, TimmForm, require_stride
from hjepa_train.backbones.timm_layers import build_keyed, repeated, require_timm
from hjepa_train.modules.keyed_drops import Drops, dropping

# width of the first stage, depths, heads
SIZES = {
    "tiny": (96, (2, 2, 6, 2), (3, 6, 12, 24)),
    "small": (96, (2, 2, 18, 2), (3, 6, 12, 24)),
    "base": (128, (2, 2, 18, 2), (4, 8, 16, 32)),
    "large": (192, (2, 2, 18, 2), (6, 12, 24, 48)),
}


class SwinConfig(Strict):
    """A named size, or width, depths and heads; small images want patches of 1 or 2 pixels and windows of 4."""

    size: Literal["tiny", "small", "base", "large"] | None = None
    """one of the published sizes"""
    width: int | None = Field(default=None, gt=0, le=2**14)
    """of the first stage's cells; it doubles from stage to stage"""
    depths: tuple[int, ...] | None = Field(default=None, min_length=1, max_length=8)
    """blocks of each stage"""
    heads: tuple[int, ...] | None = Field(default=None, min_length=1, max_length=8)
    """attention heads of each stage"""
    patch: int = Field(default=4, gt=0, le=2**8)
    """side of a patch, pixels"""
    window: int = Field(default=7, gt=0, le=2**8)
    """side of a window, cells; a stage with fewer cells has one window, without shift"""
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    """rate at which an image loses a branch in the last block; it rises linearly from 0 in the first"""

    @model_validator(mode="after")
    def _one_way_of_saying_it(self) -> "SwinConfig":
        given = [self.width, self.depths, self.heads]
        if self.size is not None and any(value is not None for value in given):
            raise ValueError("`size` already says width, depths and heads; give either it or those three")
        if self.size is None and None in given:
            raise ValueError(f"`size` ({', '.join(SIZES)}) or all of width, depths and heads expected")
        width, depths, heads = self.shape
        if len(depths) != len(heads):
            raise ValueError(f"one depth and number of heads a stage expected; {len(depths)} and {len(heads)} found")
        for stage, (depth, number) in enumerate(zip(depths, heads, strict=True)):
            if not 0 < depth <= 256 or number <= 0 or width * 2**stage % number:
                raise ValueError(
                    f"depths from 1 to 256 and heads that divide a stage's width expected; {depth} blocks with "
                    f"{number} heads at width {width * 2**stage} found"
                )
        return self

    @property
    def shape(self) -> tuple[int, tuple[int, ...], tuple[int, ...]]:
        """(width, depths, heads)"""
        return SIZES[self.size] if self.size is not None else (self.width or 0, self.depths or (), self.heads or ())


@final
class Swin(Backbone):
    """Cells to fewer, wider cells."""

    takes_parts = False

    def __init__(self, config: SwinConfig, image_size: int, generator: torch.Generator) -> None:
        """image_size: side of the training images in pixels; it fixes the windows."""
        super().__init__()
        width, depths, _ = config.shape
        self.config, self.image_size = config, image_size
        self.num_stages = len(depths)
        self.embed_width, self.width = width, width * 2 ** (self.num_stages - 1)
        self.patch_size, self.stride = config.patch, config.patch * 2 ** (self.num_stages - 1)
        require_stride(self.stride, image_size, "swin", "choose a smaller patch or fewer stages")
        self.grid = image_size // config.patch
        require_timm("swin")
        from timm.models.swin_transformer import SwinTransformer

        network = build_keyed(
            lambda: SwinTransformer(**self._arguments(), drop_path_rate=config.drop_path), generator, "swin"
        )
        self.patch_embed: Any = network.patch_embed
        self.layers: Any = network.layers
        self.norm: nn.Module = network.norm
        self.patch_embed.strict_img_size = False

    def embed(self, images_BCHW: Tensor) -> Patches:
        tokens_BND = self.patch_embed(images_BCHW).flatten(1, 2)
        grid = images_BCHW.shape[2] // self.patch_size
        index_BN = torch.arange(grid * grid, device=tokens_BND.device).expand(tokens_BND.shape[0], -1)
        return Patches(tokens_BND=tokens_BND, index_BN=index_BN, grid=grid)

    def encode(self, patches: Patches, stages: tuple[int, ...] = (), *, drops: Drops | None = None) -> Features:
        maps, kept = patches.as_map(), []
        for block in self.block_list():
            block.dynamic_mask = patches.grid != self.grid
        with dropping(drops):
            for number, stage in enumerate(self.layers, start=1):
                maps = stage(maps)
                if number in stages:
                    kept.append(maps.flatten(1, 2))
        tokens_BND = self.norm(maps).flatten(1, 2)
        return Features(tokens_BND=tokens_BND, pooled_BD=tokens_BND.mean(1), stages=tuple(kept), grid=maps.shape[1])

    def block_list(self) -> Sequence[Any]:
        return repeated(self.layers)

    def as_timm(self) -> TimmForm:
        return TimmForm(
            architecture="swin_tiny_patch4_window7_224",
            arguments=self._arguments(),
            first_conv="patch_embed.proj",
            classifier="head.fc",
        )

    def _arguments(self) -> dict[str, Any]:
        width, depths, heads = self.config.shape
        return {
            "img_size": self.image_size,
            "patch_size": self.patch_size,
            "embed_dim": width,
            "depths": depths,
            "num_heads": heads,
            "window_size": self.config.window,
            "num_classes": 0,
        }
