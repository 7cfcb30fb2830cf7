"""A training loop of one's own over a mixture: stopped in the middle, continued exactly.

    python examples/pytorch_loop.py [FOLDER]    # shards and checkpoints go there; by default data/examples

A small network learns to read two kinds of digits, half and half: centred ones, and digits at random places of
photographs. One run goes through; another stops after 15 steps and continues in a new loader, as a new process would.
Both see the same images in the same order, so their losses are equal to the last bit.
"""

import sys
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from hjepa_shards import BuildOptions, DataConfig, Mixture, SourceConfig, build, load_mixture, open_loader

STEPS, STOP_AFTER, BATCH = 40, 15, 64


def main(folder: Path) -> None:
    build("digits", raw=None, out=folder / "shards")
    build("scattered", raw=None, out=folder / "shards", splits=["train"], options=BuildOptions(limit=1200))
    sources = (SourceConfig(name="digits", weight=0.5), SourceConfig(name="scattered", weight=0.5))
    mixture = load_mixture(DataConfig(root=str(folder / "shards"), sources=sources, image_size=32), "example")
    print(mixture)

    for name in ("whole.pt", "stopped.pt"):
        (folder / name).unlink(missing_ok=True)
    whole = train(mixture, folder / "whole.pt", STEPS)
    first = train(mixture, folder / "stopped.pt", STOP_AFTER)
    rest = train(mixture, folder / "stopped.pt", STEPS)

    print(f"loss {whole[0]:.3f} at the start, {whole[-1]:.3f} after {STEPS} steps")
    print(f"stopped after {STOP_AFTER}, continued: the losses are {'equal' if first + rest == whole else 'NOT equal'}")


def train(mixture: Mixture, checkpoint: Path, stop_after: int) -> list[float]:
    """Train up to a step, from the checkpoint where there is one, and save there. The loss of each step."""
    torch.manual_seed(0)
    model = digit_reader()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    step, state = 0, None
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        step, state = saved["step"], saved["data"]

    losses = []
    with open_loader(mixture, seed=0, global_batch=BATCH, state=state) as loader:
        while step < stop_after:
            batch = next(loader)
            images = torch.from_numpy(batch.images).permute(0, 3, 1, 2) / 255  # a copy: the loader reuses its memory
            loss = F.cross_entropy(model(images), torch.from_numpy(batch.labels))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            step += 1
        saved = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step}
        torch.save(saved | {"data": loader.state_dict(batch)}, checkpoint)  # of the batch that was trained on
    return losses


def digit_reader() -> nn.Module:
    def block(before: int, after: int) -> list[nn.Module]:
        return [nn.Conv2d(before, after, 3, stride=2, padding=1), nn.BatchNorm2d(after), nn.ReLU()]

    return nn.Sequential(*block(3, 16), *block(16, 32), *block(32, 64), nn.Flatten(), nn.Linear(64 * 16, 10))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "data/examples"))
