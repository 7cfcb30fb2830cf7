"""torchvision's transforms on a mixture and on a split, random ones and still exact.

    python examples/own_transform.py [FOLDER]    # shards go there; by default data/examples

A transform is any function of one image, a PIL.Image as torchvision's datasets give it. `MixtureDataset` keys its
random numbers by the image's position, so that a batch looks the same whether training was interrupted before it or
not. (pip install torchvision)
"""

import sys
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from hjepa_shards import AugmentationConfig, DataConfig, SourceConfig, SplitView, build, load_mixture
from hjepa_train import MixtureDataset

STEPS, BATCH, SIZE = 60, 64, 16
TO_TENSOR = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True)])
TRAIN = v2.Compose([v2.RandomAffine(degrees=10, translate=(0.1, 0.1)), v2.ColorJitter(0.3, 0.3), TO_TENSOR])
TEST = v2.Compose([v2.Resize(SIZE), TO_TENSOR])


def main(folder: Path) -> None:
    build("digits", raw=None, out=folder / "shards")
    config = DataConfig(
        root=str(folder / "shards"),
        sources=(SourceConfig(name="digits", weight=1),),
        image_size=SIZE,
        augmentation=AugmentationConfig(crop_scale=(1, 1), crop_ratio=(1, 1)),  # whole squares: the crops are TRAIN's
    )
    mixture = load_mixture(config, "example")

    dataset = MixtureDataset(mixture, seed=0, global_batch=BATCH, num_batches=STEPS, transform=TRAIN)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3 * SIZE * SIZE, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for batch in DataLoader(dataset, batch_size=None, num_workers=1):
        loss = F.cross_entropy(model(batch["images"]), batch["labels"])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    test = SplitView(folder / "shards" / "digits" / "test", transform=TEST)
    print(test)
    with torch.no_grad():
        right = [model(images).argmax(1) == labels for images, labels in DataLoader(test, 64, collate_fn=pairs)]
    print(f"{torch.cat(right).float().mean():.1%} of the test digits are read right after {STEPS} steps")

    second, third = islice(MixtureDataset(mixture, seed=0, global_batch=BATCH, transform=TRAIN), 1, 3)
    state = dataset.state_dict(second)
    again = next(iter(MixtureDataset(mixture, seed=0, global_batch=BATCH, transform=TRAIN, state=state)))
    same = torch.equal(again["images"], third["images"])
    print(f"a random batch after a restart is {'the same' if same else 'ANOTHER'}")


def pairs(samples: list[Any]) -> tuple[Tensor, Tensor]:
    return torch.stack([sample.image for sample in samples]), torch.tensor([sample.label for sample in samples])


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "data/examples"))
