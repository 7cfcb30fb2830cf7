"""Writes masks_v1.json. Run it only when masks are meant to change: every run's masks change with them."""

import json
from pathlib import Path

import torch

from hjepa_train.modules.block_masks import Masking

SEED = 20
POSITIONS = (0, 1, 49_999, 10**12)
STRIDES = {8: (1, 2, 4), 14: (1, 2, 7), 16: (1, 2, 4)}


def golden_masks(grid: int) -> dict[str, list[list[int]]]:
    """Everything that a draw at POSITIONS holds, as plain lists."""
    masking = Masking(grid, seed=SEED, num_blocks=4, num_context=grid * grid // 4, strides=STRIDES[grid])
    masks = masking(torch.tensor(POSITIONS))
    rows = {"context": masks.context_BK.tolist()}
    for stride, cells in zip(STRIDES[grid], masks.levels, strict=True):
        rows[f"cells of {stride}"] = cells.index_BMC.flatten(1).tolist()
        rows[f"weights of {stride}"] = cells.weight_BMC.flatten(1).tolist()
    return rows


if __name__ == "__main__":
    path = Path(__file__).with_name("masks_v1.json")
    path.write_text(json.dumps({str(grid): golden_masks(grid) for grid in STRIDES}, separators=(",", ":")) + "\n")
