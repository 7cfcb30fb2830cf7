"""Vision transformer (arXiv 2010.11929): by default as JEPAs use it, with fixed positions and mean pooling.

Class, distillation and register tokens, learnt positions, a relative bias, drop path and layer scale are options;
DeiT (arXiv 2012.12877) is the same network with other defaults. Tokens that are of no place come first, in timm's
order: class, distillation, registers (`Features.prefix_BRD`).

The state_dict() is that of timm's networks (`as_timm`) and loads there with strict=True. A patch is embedded by one
matrix product instead of a convolution: the same numbers, and much faster on a CPU.

Axes: B images, N patches, R prefix tokens, S tokens of both kinds, D width.
"""

from collections.abc import Sequence
from typing import Literal, final

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn

from hjepa_shards.config import Strict
from hjepa_shards.errors import InputError
from hjepa_train.backbones.base import Backbone, Features, Patches, TimmForm
from hjepa_train.modules import flop_count
from hjepa_train.modules.keyed_drops import Dropout, Drops, dropping, rising
from hjepa_train.modules.layers import Block, initialise, sincos_positions
from hjepa_train.modules.relative_bias import RelativeBias, offsets_between, resampled

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
    class_tokens: int = Field(default=0, ge=0, le=1)
    """tokens that are of no patch and stand for the image"""
    distillation_token: bool = False
    """a second one, that learns from a teacher (DeiT)"""
    registers: int = Field(default=0, ge=0, le=1024)
    """tokens that are of no patch and that nothing reads (arXiv 2309.16588)"""
    positions: Literal["sincos", "learnt", "none"] = "sincos"
    """fixed sines and cosines; a table that is learnt and begins as these; or none, where `relative_bias` is there"""
    position_grid: int | None = Field(default=None, gt=0, le=_MOST_PATCHES)
    """cells on a side of the grid in whose units sines measure positions; where `init` takes weights of another
    resolution, that which they know; by default the run's own"""
    relative_bias: bool = False
    """a learnt bias of attention for each offset between two patches, in each block (BEiT)"""
    pool: Literal["mean", "class"] = "mean"
    """the image's vector: the mean of its patches; or its class token, averaged with a distillation token"""
    layer_scale: float | None = Field(default=None, gt=0, le=1)
    """what the learnt factors of a block's branches begin with; null for no factors"""
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    """rate at which an image loses a branch in the last block; it rises linearly from 0 in the first"""
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """of single numbers, after positions, attention and both matrices of an MLP"""

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
        if not self.class_tokens and (self.distillation_token or self.pool == "class"):
            key = "distillation_token" if self.distillation_token else "pool: class"
            raise ValueError(f"`{key}` needs a class token; set `class_tokens: 1`")
        if self.positions == "none" and not self.relative_bias:
            raise ValueError("`positions: none` needs `relative_bias: true`; without both, patches have no positions")
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


class DeitConfig(VitConfig):
    """DeiT (arXiv 2012.12877): a vision transformer that a teacher trains; all keys of `vit`, with other defaults."""

    size: Literal["tiny", "small", "base"] | None = None  # pyright: ignore[reportIncompatibleVariableOverride] fewer
    """one of the published sizes"""
    class_tokens: int = Field(default=1, ge=1, le=1)
    """the token that learns labels"""
    distillation_token: bool = True
    """the token that learns from a teacher; false for the network without one"""
    positions: Literal["sincos", "learnt", "none"] = "learnt"
    """as of `vit`"""
    pool: Literal["mean", "class"] = "class"
    """as of `vit`"""


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
        self.config = config
        num_prefix = config.class_tokens + config.distillation_token + config.registers
        self.num_prefix = num_prefix
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, self.width, config.patch, stride=config.patch)
        self.pos_drop = Dropout(config.dropout, 0) if config.dropout else nn.Identity()
        self.blocks = nn.ModuleList(
            Block(
                self.width,
                self.num_heads,
                drop_path=rate,
                dropout=config.dropout,
                layer_scale=config.layer_scale,
                relative=RelativeBias(self.grid, self.num_heads, has_prefix=num_prefix > 0)
                if config.relative_bias
                else None,
            )
            for rate in rising(config.drop_path, self.num_stages)
        )
        self.norm = nn.LayerNorm(self.width, eps=1e-6)
        initialise(self, generator)
        numbers = {"cls_token": config.class_tokens, "dist_token": config.distillation_token}
        for name, number in {**numbers, "reg_token": config.registers}.items():
            token = nn.Parameter(torch.empty(1, number, self.width)) if number else None
            self.register_parameter(name, token)
            if token is not None:
                nn.init.normal_(token, std=0.02, generator=generator)
        self.extent = config.position_grid or self.grid
        table = sincos_positions(self.grid, self.width, extent=self.extent)[None]
        if config.positions == "sincos":
            self.register_buffer("pos_embed", table)
        elif config.positions == "learnt":  # as in timm, tokens of no place have rows too
            self.pos_embed = nn.Parameter(F.pad(table, (0, 0, num_prefix, 0)))

    pos_embed: Tensor
    cls_token: Tensor | None
    dist_token: Tensor | None
    reg_token: Tensor | None

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
        tokens, R = self._placed(patches), self.num_prefix
        named = {}
        if self.config.relative_bias:
            named["offsets"] = offsets_between(patches.index_BN, patches.grid, R)
        kept = []
        with dropping(drops):
            tokens = self.pos_drop(tokens)
            for number, block in enumerate(self.blocks, start=1):
                tokens = block(tokens, **named)
                if number in stages:
                    kept.append(tokens[:, R:])
        tokens = self.norm(tokens)
        prefix, tokens = (tokens[:, :R], tokens[:, R:]) if R else (None, tokens)
        if self.config.pool == "class":
            assert prefix is not None
            pooled = prefix[:, : 1 + self.config.distillation_token].mean(1)
        else:
            pooled = tokens.mean(1)
        return Features(tokens_BND=tokens, pooled_BD=pooled, stages=tuple(kept), grid=patches.grid, prefix_BRD=prefix)

    def block_list(self) -> Sequence[nn.Module]:
        return list(self.blocks)

    def embed_flops(self, num_patches: int) -> int:
        return flop_count.matrix(num_patches, 3 * self.patch_size**2, self.width)

    def encode_flops(self, num_tokens: int) -> int:
        return flop_count.stack(num_tokens + self.num_prefix, self.width, self.num_stages)

    def as_timm(self) -> TimmForm:
        config = self.config
        arguments: dict[str, object] = {
            "img_size": self.grid * self.patch_size,
            "patch_size": self.patch_size,
            "embed_dim": self.width,
            "depth": self.num_stages,
            "num_heads": self.num_heads,
            "class_token": bool(config.class_tokens),
            "global_pool": "avg" if config.pool == "mean" else "token",
            "fc_norm": False,
            "num_classes": 0,
        }
        name, classifier, more = "vit_base_patch16_224", "head", {}
        if config.layer_scale is not None:
            arguments["init_values"] = config.layer_scale
        if config.registers:
            arguments["reg_tokens"] = config.registers
        if config.positions == "sincos" and self.num_prefix:
            arguments["no_embed_class"] = True
        if config.distillation_token:
            name, classifier = "deit_base_distilled_patch16_224", ("head", "head_dist")
            if config.registers or config.pool == "mean" or config.positions == "sincos":
                raise InputError(
                    "a distillation token in timm: learnt positions, pool: class and no registers expected"
                )
        if config.relative_bias:
            name = "vit_relpos_base_patch16_224"
            arguments |= {"rel_pos_type": "bias", "qkv_bias": True, "init_values": config.layer_scale or 1.0}
            if config.layer_scale is None:  # there it cannot be without
                scales = [f"blocks.{block}.ls{branch}.gamma" for block in range(self.num_stages) for branch in (1, 2)]
                more = dict.fromkeys(scales, torch.ones_like(self.norm.weight))
            if config.registers or config.distillation_token or config.positions != "none":
                raise InputError("a relative bias in timm: positions: none and at most a class token expected")
        return TimmForm(
            architecture=name, arguments=arguments, first_conv="patch_embed.proj", classifier=classifier, more=more
        )

    def _placed(self, patches: Patches) -> Tensor:
        """[B, S, D]: patches with their positions, after the tokens that are of no place."""
        tokens, R = patches.tokens_BND, self.num_prefix
        table = self._positions(patches.grid)
        if table is not None:
            tokens = tokens + F.embedding(patches.index_BN, table)
        if not R:
            return tokens
        prefix = torch.cat([t for t in (self.cls_token, self.dist_token, self.reg_token) if t is not None], 1)
        if self.config.positions == "learnt":
            prefix = prefix + self.pos_embed[:, :R]
        return torch.cat([prefix.to(tokens.dtype).expand(tokens.shape[0], -1, -1), tokens], 1)

    def _positions(self, grid: int) -> Tensor | None:
        """[grid * grid, D]; of another resolution than that of training, the sines there, or learnt rows between."""
        if self.config.positions == "none":
            return None
        if self.config.positions == "learnt":
            table = self.pos_embed[0, self.num_prefix :]
            return table if grid == self.grid else resampled(table, grid)
        if grid == self.grid:
            return self.pos_embed[0]
        assert self.extent is not None
        return sincos_positions(grid, self.width, extent=self.extent).to(self.pos_embed)
