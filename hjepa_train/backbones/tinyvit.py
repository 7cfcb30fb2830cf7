"""TinyViT (arXiv 2207.10666): convolutions, then attention in windows; small, and made to be distilled.

The network is timm's, built without its weights: exact counts, and a state_dict() that loads there with strict=True.
Its BatchNorm is ours (modules/batch_norm.py): images of a micro-batch meet, so its size is part of the recipe.

As published, the image's vector is the norm of the cells' mean; tokens are the norm of each cell.

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

_STEM_STRIDE = 4

# depths, widths, heads, windows
SIZES = {
    "5m": ((2, 2, 6, 2), (64, 128, 160, 320), (2, 4, 5, 10), (7, 7, 14, 7)),
    "11m": ((2, 2, 6, 2), (64, 128, 256, 448), (2, 4, 8, 14), (7, 7, 14, 7)),
    "21m": ((2, 2, 6, 2), (96, 192, 384, 576), (3, 6, 12, 18), (7, 7, 14, 7)),
}


class TinyvitConfig(Strict):
    """A named size, or depths and widths of its stages; the first is of convolutions."""

    size: Literal["5m", "11m", "21m"] | None = None
    """one of the published sizes, in parameters"""
    depths: tuple[int, ...] | None = Field(default=None, min_length=2, max_length=8)
    """blocks of each stage"""
    widths: tuple[int, ...] | None = Field(default=None, min_length=2, max_length=8)
    """of each stage's cells"""
    heads: tuple[int, ...] | None = Field(default=None, min_length=2, max_length=8)
    """attention heads of each stage, the first's unused; by default one for 32 numbers, as published"""
    windows: tuple[int, ...] | None = Field(default=None, min_length=2, max_length=8)
    """side of each stage's windows, cells, the first's unused; by default 7, as published but for one stage"""
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    """rate at which an image loses a branch in the last block; it rises linearly from 0 in the first"""

    @model_validator(mode="after")
    def _one_way_of_saying_it(self) -> "TinyvitConfig":
        given = [self.depths, self.widths, self.heads, self.windows]
        if self.size is not None and any(value is not None for value in given):
            raise ValueError("`size` already says depths, widths, heads and windows; give either it or those")
        if self.size is None and (self.depths is None or self.widths is None):
            raise ValueError(f"`size` ({', '.join(SIZES)}) or both of depths and widths expected")
        depths, widths, heads, windows = self.shape
        if not len(depths) == len(widths) == len(heads) == len(windows):
            raise ValueError("one depth, width, number of heads and window a stage expected")
        for depth, width, number, window in zip(depths, widths, heads, windows, strict=True):
            if not (0 < depth <= 256 and 0 < width <= 2**14 and 0 < window <= 2**8) or number <= 0 or width % number:
                raise ValueError(
                    "depths and windows from 1 to 256, widths from 1 to 16384 and heads that divide them expected; "
                    f"{depth} blocks with {number} heads at width {width} and windows of {window} found"
                )
        return self

    @property
    def shape(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """(depths, widths, heads, windows)"""
        if self.size is not None:
            return SIZES[self.size]
        depths, widths = self.depths or (), self.widths or ()
        heads = self.heads or tuple(max(1, width // 32) for width in widths)
        return depths, widths, heads, self.windows or (7,) * len(depths)


@final
class Tinyvit(Backbone):
    """Cells to fewer, wider cells."""

    takes_parts = False

    def __init__(self, config: TinyvitConfig, image_size: int, generator: torch.Generator) -> None:
        """image_size: side of the training images in pixels."""
        super().__init__()
        self.config, self.image_size = config, image_size
        depths, widths, _, _ = config.shape
        self.num_stages = len(depths)
        self.embed_width, self.width = widths[0], widths[-1]
        self.patch_size, self.stride = _STEM_STRIDE, _STEM_STRIDE * 2 ** (self.num_stages - 1)
        require_stride(self.stride, image_size, "tinyvit", "choose another image size or fewer stages")
        require_timm("tinyvit")
        from timm.models.tiny_vit import TinyVit

        network = build_keyed(
            lambda: TinyVit(**self._arguments(), drop_path_rate=config.drop_path), generator, "tinyvit"
        )
        self.patch_embed: nn.Module = network.patch_embed
        self.stages: Any = network.stages
        self.head: Any = network.head

    def embed(self, images_BCHW: Tensor) -> Patches:
        return Patches.of_map(self.patch_embed(images_BCHW))

    def encode(self, patches: Patches, stages: tuple[int, ...] = (), *, drops: Drops | None = None) -> Features:
        maps, kept = patches.as_map().permute(0, 3, 1, 2), []
        with dropping(drops):
            for number, stage in enumerate(self.stages, start=1):
                maps = stage(maps)
                if number in stages:
                    kept.append(maps.flatten(2).mT)
        return Features(
            tokens_BND=self.head.norm(maps).flatten(2).mT,
            pooled_BD=self.head.norm(maps.mean((2, 3), keepdim=True)).flatten(1),
            stages=tuple(kept),
            grid=maps.shape[2],
        )

    def block_list(self) -> Sequence[nn.Module]:
        return repeated(self.stages)

    def as_timm(self) -> TimmForm:
        return TimmForm(
            architecture="tiny_vit_5m_224",
            arguments=self._arguments(),
            first_conv="patch_embed.conv1.conv",
            classifier="head.fc",
        )

    def _arguments(self) -> dict[str, Any]:
        depths, widths, heads, windows = self.config.shape
        return {
            "depths": depths,
            "embed_dims": widths,
            "num_heads": heads,
            "window_sizes": windows,
            "num_classes": 0,
        }
