"""Position tables: which kind one is, and as which it is needed.

A table is fixed (sines and cosines) or learnt. A fixed one is a function of its grid and of the unit in which positions
are measured, so it is computed again for another resolution, in the unit that the weights know. A learnt one is
interpolated (bicubic, as timm does). In fixed tables of MAE and I-JEPA the column comes first and then the row, ours
have the row first: there the channels of all weights are renamed, which gives the same network with the two halves of
its channels exchanged (docs/decisions.md).

Axes: N cells of a grid, R prefix tokens, D width.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from hjepa_train.modules.layers import sincos_positions

_CLOSE = 1e-3
"""Between two tables that are the same in half precision, too."""
_OUT = r"(patch_embed\.proj|blocks\.\d+\.(attn\.proj|mlp\.fc2))\.(weight|bias)"
_NORMS = r"(blocks\.\d+\.)?norm\d?\.(weight|bias)|blocks\.\d+\.ls[12]\.gamma"
_TOKENS = r"cls_token|dist_token|reg_token|mask_token|pos_embed"
_IN = r"blocks\.\d+\.(attn\.qkv|mlp\.fc1)\.weight|head\.weight"


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Fixed:
    """What a table of sines and cosines is made of."""

    extent: int
    """cells on a side of the grid in whose units positions are measured"""
    column_first: bool
    """whether the first half of a row is of the cell's column"""


def split_prefix(table: Tensor, num_prefix: tuple[int, ...]) -> tuple[Tensor, Tensor] | None:
    """([R, D], [N, D]) of a table [1, R + N, D] or [R + N, D]; None where N would not be square.

    num_prefix: values that R may have.
    """
    if table.dim() not in (2, 3) or (table.dim() == 3 and len(table) != 1):
        return None
    rows = table.flatten(0, -2)
    for count in num_prefix:
        num_cells = len(rows) - count
        if num_cells > 0 and math.isqrt(num_cells) ** 2 == num_cells:
            return rows[:count], rows[count:]
    return None


def as_fixed(table_ND: Tensor) -> Fixed | None:
    """What a square grid's table is made of, None where it is learnt."""
    side, width = math.isqrt(len(table_ND)), table_ND.shape[1]
    if width % 4 or not bool(table_ND.isfinite().all()):
        return None
    sine, cosine = table_ND[0, 0].double(), table_ND[0, width // 4].double()
    scale = 2 * float(torch.atan2(sine, cosine)) + 1  # of the first cell's centre, at the first frequency, 1
    extent = round(scale * side)
    if extent < 1:
        return None
    for column_first in (False, True):
        made = fixed_table(side, width, Fixed(extent=extent, column_first=column_first))
        if (table_ND.float() - made).abs().max() < _CLOSE:
            return Fixed(extent=extent, column_first=column_first)
    return None


def fixed_table(side: int, width: int, kind: Fixed) -> Tensor:
    """[side * side, width]"""
    table = sincos_positions(side, width, extent=kind.extent)
    return table.roll(width // 2, 1) if kind.column_first else table


def halves_exchanged(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A vision transformer, by timm's names, whose tokens have the two halves of their channels exchanged."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if re.fullmatch(f"{_OUT}|{_NORMS}", name):
            found[name] = tensor.roll(tensor.shape[0] // 2, 0)
        elif re.fullmatch(f"{_IN}|{_TOKENS}", name):
            found[name] = tensor.roll(tensor.shape[-1] // 2, -1)
        else:
            found[name] = tensor
    return found
