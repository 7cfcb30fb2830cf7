"""The JEPA predictor: from visible tokens and a block's positions to the block's features at every level.

All blocks go through in one batched pass, each with its own copy of the context, because context tokens
attend to the block's mask tokens. Cells of weight 0 fill blocks up to one static length; they are keys for
nothing, so no prediction depends on them.

Axes: B images, M blocks, K context patches, C cells of one grid, Q cells of all grids, S = K + Q, D encoder
width, P predictor width.
"""

from collections.abc import Sequence
from typing import final

import torch
from pydantic import Field
from torch import Tensor, nn

from hjepa_train.modules import flop_count
from hjepa_train.modules.block_masks import Masks
from hjepa_train.modules.layers import Block, StackConfig, initialise, sincos_positions


class PredictorConfig(StackConfig):
    """Size of the predictor. I-JEPA: 384 wide at every size of encoder, 6 deep for ViT-B and 12 beyond."""

    width: int = Field(default=384, gt=0, le=2**16)
    """of a token; 192 saves nearly half of a ViT-S's FLOP"""
    depth: int = Field(default=6, gt=0, le=256)
    heads: int = Field(default=6, gt=0)


@final
class Predictor(nn.Module):
    """[context; mask tokens of each grid] -> blocks -> one head per level."""

    def __init__(
        self,
        config: PredictorConfig,
        *,
        encoder_width: int,
        grid: int,
        extent: int,
        strides: tuple[int, ...],
        grid_of_level: tuple[int, ...],
        generator: torch.Generator,
    ) -> None:
        """extent: side of the grid in whose units positions are measured.

        strides: one grid of mask tokens each.  grid_of_level: number of the grid a level is read from.
        """
        super().__init__()
        self.grid_of_level = grid_of_level
        self.project = nn.Linear(encoder_width, config.width)
        self.mask_token = nn.Parameter(torch.empty(config.width))
        self.level_embedding = nn.Parameter(torch.zeros(len(strides), config.width))
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width, eps=1e-6)
        self.heads = nn.ModuleList(nn.Linear(config.width, encoder_width) for _ in grid_of_level)
        tables = [sincos_positions(grid // stride, config.width, extent=extent) for stride in strides]
        self._first_row = [sum(len(table) for table in tables[:i]) for i in range(len(tables))]
        self.register_buffer("_positions", torch.cat(tables), persistent=False)
        nn.init.normal_(self.mask_token, std=0.02, generator=generator)
        initialise(self, generator)

    _positions: Tensor

    def forward(self, context_BKD: Tensor, masks: Masks) -> list[Tensor]:
        """Per level [B, M, C, D]: predictions for the cells of that level's grid."""
        B, K, _ = context_BKD.shape
        M = masks.block_BMN.shape[1]
        context = self.project(context_BKD) + self._at(masks.context_BK)
        targets = [
            self._at(cells.index_BMC + first) + (self.mask_token + level)
            for cells, first, level in zip(masks.levels, self._first_row, self.level_embedding, strict=True)
        ]
        real_BMQ = torch.cat([cells.weight_BMC > 0 for cells in masks.levels], -1)
        num_targets = real_BMQ.shape[-1]
        tokens = torch.cat([context[:, None].expand(-1, M, -1, -1), *targets], 2).flatten(0, 1)
        visible = torch.cat([real_BMQ.new_ones(B, M, K), real_BMQ], -1).flatten(0, 1)
        for block in self.blocks[:-1]:
            tokens = block(tokens, visible)
        tokens = self.blocks[-1](tokens, visible, wanted=num_targets)  # nothing reads the context's own output
        tokens = self.norm(tokens).view(B, M, num_targets, -1)
        by_grid = tokens.split([cells.index_BMC.shape[-1] for cells in masks.levels], 2)
        return [head(by_grid[number]) for head, number in zip(self.heads, self.grid_of_level, strict=True)]

    def forward_flops(self, num_context: int, num_blocks: int, num_cells: Sequence[int]) -> int:
        """Of one image, forward. num_cells: that a block predicts, of each grid."""
        width, encoder_width = self.mask_token.numel(), self.project.in_features
        num_targets = sum(num_cells)
        blocks = flop_count.stack(num_context + num_targets, width, len(self.blocks), wanted=num_targets)
        heads = sum(flop_count.matrix(num_cells[grid], width, encoder_width) for grid in self.grid_of_level)
        return flop_count.matrix(num_context, encoder_width, width) + num_blocks * (blocks + heads)

    def _at(self, rows: Tensor) -> Tensor:
        return nn.functional.embedding(rows, self._positions)
