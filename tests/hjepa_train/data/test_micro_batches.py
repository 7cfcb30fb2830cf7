"""Loaded arrays become micro-batches; nothing is lost, reordered or shared with the loader's buffers."""

from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from hjepa_shards import AugmentationConfig, Batch, DataConfig, SourceConfig, load_mixture, open_loader
from hjepa_train.data.augment import augment
from hjepa_train.data.micro_batches import to_micro_batches

CPU = torch.device("cpu")
PLAIN = DataConfig(
    root="unused",
    strategy="balanced",
    sources=(SourceConfig(name="digits"),),
    image_size=4,
    augmentation=AugmentationConfig(horizontal_flip=False, color_jitter=0),
    pixel_mean=(0.5, 0.5, 0.5),
    pixel_std=(0.25, 0.5, 1.0),
)


def loaded(num: int) -> Batch:
    rng = np.random.default_rng(0)
    return Batch(
        images=rng.integers(0, 256, (num, 4, 4, 3), dtype=np.uint8),
        labels=np.arange(num),
        entries=np.arange(num) % 2,
        samples=np.arange(num),
        positions=np.arange(100, 100 + num),
        valid=np.ones(num, np.bool_),
        position=100,
        next_position=100 + num,
        proof=0,
    )


def test_micro_batches_are_consecutive_parts_of_the_batch() -> None:
    batch = loaded(10)
    parts = to_micro_batches(batch, PLAIN, micro_batch=4, seed=0, device=CPU)
    assert [len(part.images_BCHW) for part in parts] == [4, 4, 2]
    assert {part.rows for part in parts} == {10}
    assert torch.cat([part.positions_B for part in parts]).tolist() == list(range(100, 110))
    assert torch.cat([part.labels_B for part in parts]).tolist() == list(range(10))
    assert torch.cat([part.entry_B for part in parts]).tolist() == [0, 1] * 5


def test_pixels_are_normalised_by_the_configured_mean_and_deviation() -> None:
    batch = loaded(3)
    (part,) = to_micro_batches(batch, PLAIN, micro_batch=3, seed=0, device=CPU)
    expected = (batch.images.transpose(0, 3, 1, 2) / 255 - 0.5) / np.array([0.25, 0.5, 1.0])[:, None, None]
    np.testing.assert_allclose(part.images_BCHW.numpy(), expected, atol=1e-6)


def test_a_micro_batch_outlives_the_buffer_it_came_from() -> None:
    batch = loaded(3)
    (part,) = to_micro_batches(batch, PLAIN, micro_batch=3, seed=0, device=CPU)
    before = part.images_BCHW.clone()
    batch.images[:] = 0
    assert torch.equal(part.images_BCHW, before)


def test_views_come_apart_and_the_first_has_the_bits_that_it_has_alone(shards: Path) -> None:
    """Through the loader, whose crops are keyed by the view as well."""

    def batches(views: int) -> list:
        config = DataConfig(
            root=str(shards),
            strategy="balanced",
            sources=(SourceConfig(name="photos"),),
            image_size=16,
            augmentation=AugmentationConfig(
                views=views, crop_scale=(0.3, 1), color_jitter=0.4, grayscale=0.3, blur=0.5, horizontal_flip=True
            ),
        )
        with open_loader(load_mixture(config, "test"), seed=5, global_batch=8) as loader:
            prepared = (to_micro_batches(one, config, micro_batch=3, seed=5, device=CPU) for one in islice(loader, 4))
            return [part for parts in prepared for part in parts]

    alone, together = batches(1), batches(3)
    assert [len(part.images_BCHW) for part in alone] == [3, 3, 2] * 4
    for one, many in zip(alone, together, strict=True):
        assert one.other_views == ()
        assert torch.equal(one.images_BCHW, many.images_BCHW)
        assert torch.equal(one.positions_B, many.positions_B)
        assert [other.shape for other in many.other_views] == [many.images_BCHW.shape] * 2
        views = (many.images_BCHW, *many.other_views)
        for image in range(len(many.labels_B)):
            assert not torch.equal(views[0][image], views[1][image])
            assert not torch.equal(views[1][image], views[2][image])


@pytest.mark.parametrize(
    "setting", [{"horizontal_flip": True}, {"color_jitter": 0.5}, {"grayscale": 0.5}, {"blur": 0.9}], ids=str
)
def test_every_setting_of_the_configuration_arrives(setting: dict[str, float]) -> None:
    batch, plain = loaded(8), {"horizontal_flip": False, "color_jitter": 0.0}
    config = PLAIN.model_copy(update={"augmentation": AugmentationConfig.model_validate(plain | setting)})
    (part,) = to_micro_batches(batch, config, micro_batch=8, seed=4, device=CPU)
    keys = {"seed": 4, "mean": PLAIN.pixel_mean, "std": PLAIN.pixel_std}
    images, positions = torch.from_numpy(batch.images), torch.from_numpy(batch.positions)
    assert torch.equal(part.images_BCHW, augment(images, positions, **(plain | setting), **keys))
    assert not torch.equal(part.images_BCHW, augment(images, positions, **plain, **keys))
