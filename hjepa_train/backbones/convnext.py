"""ConvNeXt (arXiv 2201.03545): a convolutional network with the shapes and the recipe of transformers.

Own code, for timm's has four stages and fixed strides: here any number of stages, each with its own stride, as small
images need them. Parameter names are timm's, and its networks of four stages load the state_dict() with strict=True.

As published, the image's vector is the norm of the cells' mean; tokens are the norm of each cell.

Axes: B images, C channels, H W cells, N cells row by row, D width.
"""

from collections.abc import Sequence
from math import prod
from typing import Literal, final

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from hjepa_shards.config import Strict
from hjepa_shards.errors import InputError
from hjepa_train.backbones.base import Backbone, Features, Patches, TimmForm, require_stride
from hjepa_train.modules.keyed_drops import DropPath, Drops, dropping, rising

# depths, widths
SIZES = {
    "tiny": ((3, 3, 9, 3), (96, 192, 384, 768)),
    "small": ((3, 3, 27, 3), (96, 192, 384, 768)),
    "base": ((3, 3, 27, 3), (128, 256, 512, 1024)),
    "large": ((3, 3, 27, 3), (192, 384, 768, 1536)),
    "xlarge": ((3, 3, 27, 3), (256, 512, 1024, 2048)),
}


class ConvnextConfig(Strict):
    """A named size, or depths and widths; small images want a smaller patch or fewer strides of 2."""

    size: Literal["tiny", "small", "base", "large", "xlarge"] | None = None
    """one of the published sizes"""
    depths: tuple[int, ...] | None = Field(default=None, min_length=1, max_length=8)
    """blocks of each stage"""
    widths: tuple[int, ...] | None = Field(default=None, min_length=1, max_length=8)
    """of each stage's cells"""
    patch: int = Field(default=4, gt=0, le=2**8)
    """side of the cells that the first convolution makes, pixels; 1 or 2 for images of 32 pixels"""
    strides: tuple[Literal[1, 2], ...] | None = None
    """of each stage, before its blocks; by default 1 for the first and 2 for the others"""
    layer_scale: float | None = Field(default=1e-6, gt=0, le=1)
    """what the learnt factors of a block's branch begin with; null for no factors. Short runs want 0.1 or null"""
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    """rate at which an image loses a branch in the last block; it rises linearly from 0 in the first"""

    @model_validator(mode="after")
    def _one_way_of_saying_it(self) -> "ConvnextConfig":
        if (self.size is None) == (self.depths is None and self.widths is None):
            raise ValueError(f"`size` ({', '.join(SIZES)}) or both of depths and widths expected")
        if self.size is None and (self.depths is None or self.widths is None):
            raise ValueError("both of depths and widths expected")
        depths, widths, strides = self.shape
        if not len(depths) == len(widths) == len(strides):
            raise ValueError(
                f"one depth, width and stride a stage expected; {len(depths)}, {len(widths)} and {len(strides)} found"
            )
        if any(not 0 < depth <= 256 for depth in depths) or any(not 0 < width <= 2**14 for width in widths):
            raise ValueError("depths from 1 to 256 and widths from 1 to 16384 expected")
        return self

    @property
    def shape(self) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """(depths, widths, strides)"""
        depths, widths = SIZES[self.size] if self.size is not None else (self.depths or (), self.widths or ())
        return depths, widths, self.strides or (1, *[2] * (len(depths) - 1))


@final
class _NormOfMaps(nn.LayerNorm):
    """Of each cell's channels.  [B, C, H, W] to the same shape."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@final
class _Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, cells: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(cells)))


@final
class ConvnextBlock(nn.Module):
    """A convolution of 7 x 7 in each channel, then an MLP in each cell.  [B, C, H, W] to the same shape."""

    def __init__(self, width: int, layer_scale: float | None, drop_path: float) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.mlp = _Mlp(width)
        self.gamma = None if layer_scale is None else nn.Parameter(torch.full((width,), layer_scale))
        self.drop_path = DropPath(drop_path, 0) if drop_path else nn.Identity()

    def forward(self, maps: Tensor) -> Tensor:
        branch = self.mlp(self.norm(self.conv_dw(maps).permute(0, 2, 3, 1)))
        if self.gamma is not None:
            branch = branch * self.gamma
        return maps + self.drop_path(branch.permute(0, 3, 1, 2))


@final
class _Stage(nn.Module):
    def __init__(self, width_in: int, width: int, stride: int, blocks: Sequence[ConvnextBlock]) -> None:
        super().__init__()
        self.downsample: nn.Module = nn.Identity()
        if stride > 1 or width_in != width:
            norm = _NormOfMaps(width_in, eps=1e-6)
            self.downsample = nn.Sequential(norm, nn.Conv2d(width_in, width, stride, stride=stride))
        self.blocks = nn.Sequential(*blocks)

    def forward(self, maps: Tensor) -> Tensor:
        return self.blocks(self.downsample(maps))


@final
class Convnext(Backbone):
    """Cells to fewer, wider cells."""

    takes_parts = False

    def __init__(self, config: ConvnextConfig, image_size: int, generator: torch.Generator) -> None:
        """image_size: side of the training images in pixels."""
        super().__init__()
        depths, widths, strides = config.shape
        self.config, self.image_size = config, image_size
        self.embed_width, self.width, self.num_stages = widths[0], widths[-1], len(depths)
        self.patch_size, self.stride = config.patch, config.patch * prod(strides)
        require_stride(self.stride, image_size, "convnext", "choose a smaller patch or more strides of 1")
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], config.patch, stride=config.patch), _NormOfMaps(widths[0], eps=1e-6)
        )
        rates = iter(rising(config.drop_path, sum(depths)))
        self.stages = nn.Sequential(
            *(
                _Stage(
                    width_in,
                    width,
                    stride,
                    [ConvnextBlock(width, config.layer_scale, next(rates)) for _ in range(depth)],
                )
                for width_in, width, stride, depth in zip((widths[0], *widths), widths, strides, depths, strict=False)
            )
        )
        self.head = nn.Module()
        self.head.norm = nn.LayerNorm(self.width, eps=1e-6)
        for part in self.modules():
            if isinstance(part, nn.Conv2d | nn.Linear):
                nn.init.trunc_normal_(part.weight, std=0.02, generator=generator)
                assert part.bias is not None
                nn.init.zeros_(part.bias)

    def embed(self, images_BCHW: Tensor) -> Patches:
        return Patches.of_map(self.stem(images_BCHW))

    def encode(self, patches: Patches, stages: tuple[int, ...] = (), *, drops: Drops | None = None) -> Features:
        maps, kept = patches.as_map().permute(0, 3, 1, 2), []
        with dropping(drops):
            for number, stage in enumerate(self.stages, start=1):
                maps = stage(maps)
                if number in stages:
                    kept.append(maps.flatten(2).mT)
        norm = self.head.get_submodule("norm")
        return Features(
            tokens_BND=norm(maps.flatten(2).mT),
            pooled_BD=norm(maps.mean((2, 3))),
            stages=tuple(kept),
            grid=maps.shape[2],
        )

    def block_list(self) -> Sequence[nn.Module]:
        return [part for part in self.modules() if isinstance(part, ConvnextBlock)]

    def as_timm(self) -> TimmForm:
        depths, widths, strides = self.config.shape
        theirs = (2 if self.patch_size == 2 else 1, 2, 2, 2)
        if strides != theirs:
            raise InputError(
                f"convnext with patch {self.patch_size} in timm: strides {list(theirs)} expected, {list(strides)} found"
            )
        arguments: dict[str, object] = {
            "depths": depths,
            "dims": widths,
            "patch_size": self.patch_size,
            "ls_init_value": self.config.layer_scale or 1.0,
            "num_classes": 0,
        }
        norms = {name: part for name, part in self.named_modules() if isinstance(part, ConvnextBlock)}
        more = {
            f"{name}.gamma": torch.ones_like(part.norm.weight) for name, part in norms.items() if part.gamma is None
        }
        return TimmForm(
            architecture="convnext_tiny", arguments=arguments, first_conv="stem.0", classifier="head.fc", more=more
        )
