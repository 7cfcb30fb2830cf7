"""Pictures of what an objective does with a few images: masks, what was reconstructed, the main axes of patch features.

Nothing here leaves a trace in training: no gradient, evaluation mode (no running mean moves), every generator put back.
Everything is drawn on the CPU in float32 from what `Objective.sketch` hands out, and pictures of the same features are
the same bits.

    <run>/pictures.png    a row a panel, a column an image; its text chunks say the step and what the rows are

Axes: B images, C channels, H W pixels, S pixels on a side as shown, N patches, G patches on a side, M blocks, D width.
"""

import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin
from torch import Tensor

from hjepa_shards.base.atomic_files import write_atomically
from hjepa_shards.reports.inline_images import Budget, Picture
from hjepa_train.objectives.base import Batch, Objective, Sketch
from hjepa_train.parallel.layout import looking_on

FILE = "pictures.png"
NUM_IMAGES = 6
_SIDE = 160
_GAP, _GREY = 4, 0.5
_HIDDEN = 0.82
"""How far hidden patches are drawn towards grey."""
_STROKE = 2
_COLOURS = torch.tensor([(1.0, 0.55, 0.1), (0.2, 0.85, 1.0), (1.0, 0.3, 0.65), (0.6, 0.95, 0.25)])
"""Of the blocks' outlines."""
_MAX_PAGE_BYTES = 4_000_000


def look(objective: Objective, batch: Batch, num: int = NUM_IMAGES) -> tuple[Tensor, Sketch] | None:
    """(normalised images, what there is to see of them) on the CPU; None where the objective shows nothing."""
    few = _few(batch, num)
    with _unseen(objective, batch.images_BCHW.device):
        sketch = objective.sketch(few)
    if sketch is None:
        return None
    return few.images_BCHW.detach().float().cpu(), sketch.on_cpu()


def draw(images_BCHW: Tensor, sketch: Sketch, *, mean: Sequence[float], std: Sequence[float]) -> dict[str, Tensor]:
    """Panels by name, each [B, 3, S, S] in [0, 1].

    mean, std: of the normalisation that is to be undone, a number a channel of pixels in [0, 1].
    """

    def shown(normalised_BCHW: Tensor) -> Tensor:
        plain = normalised_BCHW * _per_channel(std) + _per_channel(mean)
        return _enlarged(plain.nan_to_num(_GREY).clamp(0, 1), sketch.grid)

    plain = shown(images_BCHW)
    panels = {"images": plain}
    if sketch.hidden_BN is not None:
        seen = _dimmed(plain, sketch.hidden_BN, sketch.grid)
        if not sketch.blocks:
            panels["visible patches"] = seen
        for number, target_BMN in enumerate(sketch.blocks):
            panels[f"visible patches and targets, level {number}"] = _outlined(seen, target_BMN)
    if sketch.reconstructed_BCHW is not None:
        panels["reconstructed"] = shown(sketch.reconstructed_BCHW)
    for name, tokens_BND in sketch.features.items():
        panels[f"{name} features, three main axes as colours"] = _enlarged(
            main_axes(tokens_BND, sketch.grid), sketch.grid, smooth=False
        )
    return panels


def main_axes(tokens_BND: Tensor, grid: int) -> Tensor:
    """[B, 3, G, G] in [0, 1]: the first three principal components over all patches of all images, as red, green, blue.

    From the 1st to the 99th percentile of each component. The sign of a component, which is free, is that with which
    its largest loading is positive. Grey where a token is not finite, or has no variance.
    """
    tokens = tokens_BND.double().flatten(0, 1)
    if not tokens.isfinite().all():
        return torch.full((len(tokens_BND), 3, grid, grid), _GREY)
    centred = tokens - tokens.mean(0)
    _, axes = torch.linalg.eigh(centred.T @ centred)
    axes_D3 = axes[:, -3:].flip(1)
    axes_D3 = axes_D3 * axes_D3.gather(0, axes_D3.abs().argmax(0, keepdim=True)).sign()
    parts = F.pad(centred @ axes_D3, (0, 3 - axes_D3.shape[1]))
    low, high = torch.quantile(parts, torch.tensor([0.01, 0.99], dtype=parts.dtype), dim=0)
    spread = high - low
    flat = spread <= 1e-9 * tokens.abs().max()
    colours = torch.where(flat, _GREY, (parts - low) / torch.where(flat, 1.0, spread)).clamp(0, 1)
    return colours.float().view(-1, grid, grid, 3).permute(0, 3, 1, 2)


def save_pictures(path: Path, panels: dict[str, Tensor], step: int) -> None:
    """All panels as one PNG: a row a panel, a column an image."""
    first = next(iter(panels.values()))
    B, _, S, _ = first.shape
    cell = S + _GAP
    sheet = np.zeros((len(panels) * cell - _GAP, B * cell - _GAP, 4), np.uint8)
    for row, panel_B3SS in enumerate(panels.values()):
        for column, picture in enumerate(_bytes(panel_B3SS)):
            sheet[row * cell : row * cell + S, column * cell : column * cell + S, :3] = picture
            sheet[row * cell : row * cell + S, column * cell : column * cell + S, 3] = 255
    about = PngImagePlugin.PngInfo()
    about.add_text("hjepa", json.dumps({"step": step, "panels": list(panels), "side": S}))
    file = io.BytesIO()
    Image.fromarray(sheet).save(file, "png", pnginfo=about)
    write_atomically(path, file.getvalue())


def last_pictures(folder: Path) -> tuple[list[Picture], str]:
    """(a strip a panel, when they were drawn) from a run's folder; nothing, or why not, where there are none."""
    path = folder / FILE
    if not path.exists():
        return [], ""
    try:
        with Image.open(path) as opened:
            about = json.loads(opened.info["hjepa"])
            step, names, side = int(about["step"]), [str(name) for name in about["panels"]], int(about["side"])
            sheet = opened.convert("RGBA")
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [], f"{path.name} cannot be read ({error}); delete it, a run that continues draws it again."
    budget = Budget(_MAX_PAGE_BYTES, parts=1)
    budget.next_part()
    strips: list[Picture] = []
    for row, name in enumerate(names):
        top = row * (side + _GAP)
        file = io.BytesIO()
        sheet.crop((0, top, sheet.width, top + side)).save(file, "png")
        strip = budget.picture(file.getvalue(), name)
        if strip:
            strips.append(strip)
    return strips, f"Drawn at step {step:,}: the same images in each row."


def _few(batch: Batch, num: int) -> Batch:
    """The first images of the batch, from each source in turn."""
    turn: list[tuple[int, int, int]] = []
    had: Counter[int] = Counter()
    for index, entry in enumerate(batch.entry_B.tolist()):
        turn.append((had[entry], entry, index))
        had[entry] += 1
    index = torch.tensor([index for *_, index in sorted(turn)[:num]], device=batch.images_BCHW.device)
    return replace(
        batch,
        images_BCHW=batch.images_BCHW[index],
        labels_B=batch.labels_B[index],
        positions_B=batch.positions_B[index],
        entry_B=batch.entry_B[index],
        rows=len(index),
    )


@contextmanager
def _unseen(objective: Objective, device: torch.device) -> Iterator[None]:
    """Training does not notice: modes and generators are afterwards what they were before."""
    devices = [device] if device.type == "cuda" else []
    with looking_on(objective), torch.random.fork_rng(devices=devices):
        yield


def _per_channel(numbers: Sequence[float]) -> Tensor:
    return torch.tensor(list(numbers), dtype=torch.float32).view(3, 1, 1)


def _enlarged(images_BCHW: Tensor, grid: int, smooth: bool = True) -> Tensor:
    """[B, 3, S, S]; S, of about 160, is a multiple of the grid, so that patches have whole pixels."""
    side = grid * -(-_SIDE // grid)
    if not smooth or images_BCHW.shape[-1] < side:
        return F.interpolate(images_BCHW, size=(side, side), mode="nearest-exact")
    return F.interpolate(images_BCHW, size=(side, side), mode="bilinear", antialias=True).clamp(0, 1)


def _dimmed(images_BCSS: Tensor, hidden_BN: Tensor, grid: int) -> Tensor:
    hidden = _enlarged(hidden_BN.view(-1, 1, grid, grid).float(), grid, smooth=False)
    return images_BCSS + (_GREY - images_BCSS) * _HIDDEN * hidden


def _outlined(images_BCSS: Tensor, target_BMN: Tensor) -> Tensor:
    """With an outline around each block in its colour; where they meet, each inside the one before."""
    B, M, N = target_BMN.shape
    side = round(N**0.5)
    S = images_BCSS.shape[-1]
    inside = F.interpolate(target_BMN.view(B, M, side, side).float(), size=(S, S), mode="nearest-exact")
    for block in range(M):
        outside = 1 - inside[:, block : block + 1]
        inset = _STROKE * (block % len(_COLOURS))
        edge = _grown(outside, inset + _STROKE) - _grown(outside, inset)
        images_BCSS = images_BCSS * (1 - edge) + _COLOURS[block % len(_COLOURS)].view(3, 1, 1) * edge
    return images_BCSS


def _grown(mask_B1SS: Tensor, pixels: int) -> Tensor:
    """A mask with its surroundings; what is beyond the image belongs to it too."""
    around = F.pad(mask_B1SS, (pixels, pixels, pixels, pixels), value=1.0)
    rows = F.max_pool2d(around, (1, 2 * pixels + 1), stride=1)  # a square of that side in both directions would be
    return F.max_pool2d(rows, (2 * pixels + 1, 1), stride=1)  # six times the work


def _bytes(panel_B3SS: Tensor) -> NDArray[np.uint8]:
    return (panel_B3SS * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()
