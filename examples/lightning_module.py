"""A mixture in Lightning: epochs that go through it once, stopped in one of them, continued exactly.

    python examples/lightning_module.py [FOLDER]    # shards and checkpoints go there; by default data/examples

Lightning and the DataLoader's worker are batches ahead of training, so what they have fetched says little about where
training is. `lightning_callback` sees each batch after its step: the next epoch begins after it, and so does a run that
continues from a checkpoint. (pip install lightning)
"""

import logging
import sys
import warnings
from pathlib import Path
from typing import Any

import lightning
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hjepa_shards import DataConfig, Mixture, SourceConfig, build, load_mixture
from hjepa_train import MixtureDataset, lightning_callback

STEPS, STOP_AFTER, STEPS_PER_EPOCH, BATCH = 40, 15, 10, 64


class DigitReader(lightning.LightningModule):
    """A linear model on raw pixels."""

    def __init__(self, mixture: Mixture) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 10))
        self.data = MixtureDataset(mixture, seed=0, global_batch=BATCH)
        self.losses: list[float] = []
        self.positions: list[int] = []

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.data, batch_size=None, num_workers=1)  # its threads decode in one worker

    def training_step(self, batch: dict[str, Any], _: int) -> Tensor:
        self.positions.append(batch["next_position"])
        images = batch["images"].permute(0, 3, 1, 2) / 255
        loss = F.cross_entropy(self.head(images), batch["labels"])
        self.losses.append(loss.item())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def main(folder: Path) -> None:
    build("digits", raw=None, out=folder / "shards")
    sources = (SourceConfig(name="digits", weight=1),)
    mixture = load_mixture(DataConfig(root=str(folder / "shards"), sources=sources, image_size=16), "example")

    whole, first, rest = DigitReader(mixture), DigitReader(mixture), DigitReader(mixture)
    fit(whole, STEPS)
    fit(first, STOP_AFTER).save_checkpoint(folder / "lightning.ckpt")
    fit(rest, STEPS, ckpt_path=folder / "lightning.ckpt")

    same = first.losses + rest.losses == whole.losses
    print(f"loss {whole.losses[0]:.3f} at the start, {whole.losses[-1]:.3f} after {STEPS} steps")
    in_order = whole.positions == list(range(BATCH, STEPS * BATCH + 1, BATCH))
    print(f"{STEPS // STEPS_PER_EPOCH} epochs, their positions {'in order' if in_order else 'NOT in order'}")
    print(f"stopped after {STOP_AFTER}, continued: the losses are {'equal' if same else 'NOT equal'}")


def fit(model: DigitReader, steps: int, **options: Any) -> lightning.Trainer:
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_steps=steps,
        limit_train_batches=STEPS_PER_EPOCH,
        callbacks=[lightning_callback(model.data)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, **options)
    return trainer


if __name__ == "__main__":
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")  # advice about numbers of workers
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "data/examples"))
