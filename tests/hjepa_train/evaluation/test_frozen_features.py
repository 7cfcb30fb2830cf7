"""What probes are given of an encoder."""

import pytest
import torch

from hjepa_shards import DataConfig
from hjepa_train.backbones.registry import build_backbone
from hjepa_train.backbones.vit import VitConfig
from hjepa_train.data.augment import normalise
from hjepa_train.evaluation.frozen_features import last_stages


@pytest.mark.parametrize("depth", [6, 3])
def test_the_last_four_blocks_are_averaged_side_by_side(depth: int) -> None:
    encoder = build_backbone("vit", VitConfig(width=8, depth=depth, heads=2, patch=4), 8, seed=0)
    data = DataConfig.model_validate({"root": "shards", "sources": [{"name": "digits", "weight": 1}], "image_size": 8})
    images = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        patches = encoder.embed(normalise(images.float(), mean=data.pixel_mean, std=data.pixel_std))
        every = encoder.encode(patches, tuple(range(1, depth + 1))).stages
    found = last_stages(encoder, data, images)
    assert found.shape == (3, 8 * min(4, depth))
    for b in range(3):
        for number, block in enumerate(range(max(0, depth - 4), depth)):
            for d in range(8):
                mean = sum(every[block][b, n, d].item() for n in range(4)) / 4
                assert found[b, 8 * number + d].item() == pytest.approx(mean, abs=1e-6)
