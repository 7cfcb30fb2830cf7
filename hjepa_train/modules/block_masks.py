"""Which patches the context encoder sees and which blocks are predicted: a function of (seed, position).

Everything is integer arithmetic on whole batches, so the masks of an image are the same on every device, for
every batch split and world size. I-JEPA's collator truncates to the batch minimum, which makes the mask ratio
depend on the batch; here the counts are fixed:

  blocks   M rectangles of legal shapes at uniform locations; every border can be reached
  context  exactly K cells. Cells are ranked by (tier, random): tier 0 inside the context square and in no block,
           1 outside it and in no block, 1 + n in n blocks, and last of all the one cell per block that the block
           must keep. The K first are the context; they leave the blocks. No retry, no dropped constraint, static
           shapes.

Axes: B images, M blocks, N = G*G cells of the grid, K context cells, C cells of a level that may be
predicted.
"""

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from hjepa_shards.base.keyed_random import derive_key
from hjepa_shards.errors import InputError
from hjepa_train.base.keyed_integers import below, draw_integers

_SHORT_TOPK = ("mps",)
"""Devices on which PyTorch 2.11 and 2.12 compare int64 as int32."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cells:
    """The cells of one level that each block asks for: own cells first, row by row, then others of weight 0."""

    index_BMC: Tensor
    """int64, cells of the level's own grid of side G / stride"""
    weight_BMC: Tensor
    """int64, hidden patches of the block inside the cell; 0 marks padding"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Masks:
    """What is visible and what is the target in a batch of images."""

    context_BK: Tensor
    """int64, visible cells, ascending"""
    block_BMN: Tensor
    """bool, True = hidden: cells of each block without those that the context took"""
    levels: tuple[Cells, ...]
    """one per stride"""
    tier1_B: Tensor
    """bool: the context needed cells outside its square"""
    tier2_B: Tensor
    """bool: the context needed cells of the blocks"""


@final
class Masking(nn.Module):
    """Draws the masks of images by their positions."""

    def __init__(
        self,
        grid: int,
        *,
        seed: int,
        num_blocks: int,
        num_context: int,
        strides: tuple[int, ...] = (1,),
        num_padding: int = 0,
    ) -> None:
        """grid: cells on a side.  strides: side of a level's cell, patches.  num_padding: more cells of weight 0."""
        super().__init__()
        shapes = block_shapes(grid)
        _refuse_impossible(grid, num_blocks, num_context, shapes)
        self.grid, self.num_blocks, self.num_context = grid, num_blocks, num_context
        self.strides = strides
        self.num_cells = tuple(min((grid // s) ** 2, _most_cells(shapes, s) + num_padding) for s in strides)
        self._key = derive_key(seed, "mask")
        edges = range(round(grid * 0.85**0.5), grid + 1)
        self.register_buffer("_shapes_S2", torch.tensor(shapes), persistent=False)
        self.register_buffer("_edges_E", torch.tensor(edges), persistent=False)

    _shapes_S2: Tensor
    _edges_E: Tensor

    def forward(self, positions_B: Tensor) -> Masks:
        G, M, K = self.grid, self.num_blocks, self.num_context
        N = G * G
        draws = draw_integers(self._key, positions_B, 3 * M + 3 + N)
        shape, top, left, square, rank_BN = draws.split([M, M, M, 3, N], dim=1)

        height_BM, width_BM = self._shapes_S2[below(shape, len(self._shapes_S2))].unbind(-1)
        block_BMN = self._rectangles(below(top, G - height_BM + 1), below(left, G - width_BM + 1), height_BM, width_BM)
        edge_B1 = self._edges_E[below(square[:, :1], len(self._edges_E))]
        corner_B2 = below(square[:, 1:], G - edge_B1 + 1)
        square_BN = self._rectangles(corner_B2[:, :1], corner_B2[:, 1:], edge_B1, edge_B1).squeeze(1)

        cell_N = torch.arange(N, device=positions_B.device)
        rank_BN = (rank_BN << N.bit_length()) | cell_N  # all distinct: no ties on any device
        blocks_BN = block_BMN.sum(1)
        tier_BN = torch.where(blocks_BN > 0, blocks_BN + 1, torch.where(square_BN, 0, 1))
        kept_BM = torch.where(block_BMN, rank_BN[:, None], torch.iinfo(torch.int64).max).argmin(-1)
        tier_BN = tier_BN.scatter(1, kept_BM, M + 2)

        order_BN = (tier_BN << (31 + N.bit_length())) | rank_BN
        context_BK = _lowest(order_BN, K).sort(1).values
        block_BMN = block_BMN & torch.ones_like(square_BN).scatter(1, context_BK, False)[:, None]
        tier_BK = tier_BN.gather(1, context_BK)
        return Masks(
            context_BK=context_BK,
            block_BMN=block_BMN,
            levels=tuple(
                _cells(block_BMN, G, stride, num) for stride, num in zip(self.strides, self.num_cells, strict=True)
            ),
            tier1_B=(tier_BK == 1).any(1),
            tier2_B=(tier_BK >= 2).any(1),
        )

    def _rectangles(self, top_BM: Tensor, left_BM: Tensor, height_BM: Tensor, width_BM: Tensor) -> Tensor:
        """[B, M, N] bool, True inside."""
        line_G = torch.arange(self.grid, device=top_BM.device)
        rows = (line_G >= top_BM[..., None]) & (line_G < (top_BM + height_BM)[..., None])
        columns = (line_G >= left_BM[..., None]) & (line_G < (left_BM + width_BM)[..., None])
        return (rows[..., :, None] & columns[..., None, :]).flatten(-2)


def _lowest(order_BN: Tensor, num: int) -> Tensor:
    """[B, num]: the cells that come first. On the CPU where the device is MPS, whose topk once kept 32 bits of 64."""
    device = order_BN.device
    return (order_BN.cpu() if device.type in _SHORT_TOPK else order_BN).topk(num, 1, largest=False).indices.to(device)


def block_shapes(grid: int) -> list[tuple[int, int]]:
    """Legal (height, width) of a block: .15N <= hw <= .2N and .75 <= h/w <= 1.5; if none, that nearest to .175N."""
    num_cells = grid * grid
    sides = range(1, grid + 1)
    upright = [(h, w) for h in sides for w in sides if 3 * w <= 4 * h and 2 * h <= 3 * w]
    legal = [(h, w) for h, w in upright if 15 * num_cells <= 100 * h * w <= 20 * num_cells]
    return legal or [min(upright, key=lambda s: (abs(1000 * s[0] * s[1] - 175 * num_cells), s))]


def _most_cells(shapes: list[tuple[int, int]], stride: int) -> int:
    """The most cells of side s that a block can touch: a run of h patches touches up to (h + s - 2) // s + 1."""
    return max(((h + stride - 2) // stride + 1) * ((w + stride - 2) // stride + 1) for h, w in shapes)


def _cells(block_BMN: Tensor, grid: int, stride: int, num: int) -> Cells:
    """The `num` cells of side `stride` to predict; those that hold hidden patches come first, each part in order."""
    B, M, _ = block_BMN.shape
    side = grid // stride
    weight = block_BMN.view(B, M, side, stride, side, stride).sum((3, 5)).flatten(2)
    order = torch.where(weight > 0, 0, side * side) + torch.arange(side * side, device=weight.device)
    index = order.topk(num, -1, largest=False).indices
    return Cells(index_BMC=index, weight_BMC=weight.gather(-1, index))


def _refuse_impossible(grid: int, num_blocks: int, num_context: int, shapes: list[tuple[int, int]]) -> None:
    num_cells = grid * grid
    largest = max(h * w for h, w in shapes)
    if num_blocks < 1 or num_context < 1:
        raise InputError(f"masks: at least 1 block and 1 context patch needed, {num_blocks} and {num_context} found")
    if num_context + num_blocks > num_cells:
        raise InputError(
            f"masks: {num_context} context patches and one for each of {num_blocks} blocks do not fit into a grid "
            f"of {grid} x {grid}; use a smaller patch, fewer blocks or num_context <= {num_cells - num_blocks}"
        )
    if num_blocks * largest >= num_cells:
        raise InputError(
            f"masks: {num_blocks} blocks of {largest} patches can cover the whole grid of {grid} x {grid}; use half "
            f"the patch size (a grid of {2 * grid} x {2 * grid}) or num_blocks: {(num_cells // 2) // largest}"
        )
