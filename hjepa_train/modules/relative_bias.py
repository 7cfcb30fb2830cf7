"""Positions as a learnt bias of attention: one number a head for each offset between two cells (arXiv 2106.08254).

An offset is that of the cells in the image, so patches may be taken away or stand in any order. Tokens that are of no
cell (class, distillation, registers) share three rows: from one to a cell, from a cell to one, between two.

The name in the state_dict() and the order of rows are those of timm's RelPosBias.

Axes: B images, S tokens, R of them of no cell, N of them cells, H heads.
"""

from dataclasses import dataclass
from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Offsets:
    """Between all pairs of tokens of a pass."""

    row_BSS: Tensor
    """int64, row of the table, for queries and keys; B is 1 where all images have the same"""
    grid: int
    """cells on a side of the whole image"""


def offsets_between(index_BN: Tensor, grid: int, num_prefix: int) -> Offsets:
    """index_BN: cells of the patches.  num_prefix: R, before them in the sequence."""
    if index_BN.stride(0) == 0:  # one row, shown as many
        index_BN = index_BN[:1]
    row_BN, column_BN = index_BN // grid, index_BN % grid
    down_BNN = row_BN[:, :, None] - row_BN[:, None] + grid - 1
    across_BNN = column_BN[:, :, None] - column_BN[:, None] + grid - 1
    row_BSS = down_BNN * (2 * grid - 1) + across_BNN
    if num_prefix:
        last = (2 * grid - 1) ** 2
        row_BSS = F.pad(row_BSS, (num_prefix, 0, num_prefix, 0), value=last + 2)
        row_BSS[:, :num_prefix, num_prefix:] = last
        row_BSS[:, num_prefix:, :num_prefix] = last + 1
    return Offsets(row_BSS=row_BSS, grid=grid)


@final
class RelativeBias(nn.Module):
    """The table of one attention. It begins at 0."""

    def __init__(self, grid: int, num_heads: int, *, has_prefix: bool) -> None:
        """grid: cells on a side of the training images.  has_prefix: whether there are tokens of no cell."""
        super().__init__()
        self.grid = grid
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * grid - 1) ** 2 + 3 * has_prefix, num_heads))

    def forward(self, offsets: Offsets) -> Tensor:
        """[B, H, S, S]: what is added to logits. On another grid offsets are those of an image of the same extent."""
        table = self.relative_position_bias_table
        if offsets.grid != self.grid:
            cells, prefix = table.split([(2 * self.grid - 1) ** 2, len(table) - (2 * self.grid - 1) ** 2])
            table = torch.cat([resampled(cells, 2 * offsets.grid - 1), prefix])
        return F.embedding(offsets.row_BSS, table).movedim(-1, 1)


def resampled(table_ND: Tensor, side: int) -> Tensor:
    """[side * side, D]: a table of a square grid, its rows row by row, for a grid of another size (bicubic)."""
    before = round(len(table_ND) ** 0.5)
    square = table_ND.float().T.reshape(1, -1, before, before)
    square = F.interpolate(square, size=(side, side), mode="bicubic", antialias=True)
    return square[0].flatten(1).T.to(table_ND.dtype)
