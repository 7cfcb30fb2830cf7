"""A user's own transform: random, and the same for a position whatever surrounds it."""

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from hjepa_shards.base.keyed_random import derive_key
from hjepa_shards.errors import InputError
from hjepa_train import MixtureDataset
from hjepa_train.data.own_transform import transformed
from tests.hjepa_shards.loader.test_loader import mix

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create 3 worker processes")
NUM_POSITIONS = 48
PIXELS: NDArray[np.uint8] = np.arange(6 * 4 * 4 * 3).reshape(6, 4, 4, 3).astype(np.uint8)
POSITIONS = np.arange(90, 96)


def noisy(image: Image.Image) -> Tensor:
    """Mirrored by chance, and a number of each generator that transforms draw from."""
    assert (image.mode, image.size) == ("RGB", (16, 16))
    pixels = torch.from_numpy(np.asarray(image).copy()).flatten()
    drawn = [torch.rand(()).item(), random.random(), float(np.random.rand()), torch.initial_seed() % 2**20]
    return torch.cat([pixels.flip(0) if drawn[0] < 0.5 else pixels, torch.tensor(drawn)])


def dataset(shards: Path, global_batch: int = 12, **more: Any) -> MixtureDataset:
    return MixtureDataset(mix(shards), seed=5, global_batch=global_batch, **({"transform": noisy} | more))


def by_position(batches: Any) -> dict[int, bytes]:
    return {
        position: image.numpy().tobytes()
        for batch in batches
        for position, image in zip(batch["positions"].tolist(), batch["images"], strict=True)
    }


@pytest.fixture(scope="module")
def expected(shards: Path) -> dict[int, bytes]:
    return by_position(dataset(shards, num_batches=4))


def test_images_are_transformed_and_all_else_stays(shards: Path, expected: dict[int, bytes]) -> None:
    assert sorted(expected) == list(range(NUM_POSITIONS))
    assert len({image[-16:] for image in expected.values()}) == NUM_POSITIONS, "each position draws for itself"
    plain, own = next(iter(dataset(shards, transform=None))), next(iter(dataset(shards)))
    assert plain["images"].dtype == torch.uint8
    for image, seen in zip(plain["images"].flatten(1), own["images"][:, :-4], strict=True):
        assert torch.equal(seen, image) or torch.equal(seen, image.flip(0))
    assert {key: str(value) for key, value in plain.items() if key != "images"} == {
        key: str(value) for key, value in own.items() if key != "images"
    }


@pytest.mark.parametrize("num_workers", [0, 1, 3])
def test_the_same_in_any_number_of_workers(shards: Path, expected: dict[int, bytes], num_workers: int) -> None:
    torch.manual_seed(num_workers)
    loader = DataLoader(dataset(shards, num_batches=4), batch_size=None, num_workers=num_workers)
    assert by_position(loader) == expected


@pytest.mark.parametrize(("global_batch", "world"), [(12, 3), (48, 1), (6, 2)])
def test_the_same_on_any_number_of_ranks_and_in_any_batch(
    shards: Path, expected: dict[int, bytes], global_batch: int, world: int
) -> None:
    found: dict[int, bytes] = {}
    for rank in range(world):
        found |= by_position(
            dataset(shards, global_batch, rank=rank, world=world, num_batches=NUM_POSITIONS // global_batch)
        )
    assert found == expected


def test_the_same_after_a_restart(shards: Path, expected: dict[int, bytes]) -> None:
    first = dataset(shards, num_batches=2)
    *_, last = first
    state = json.loads(json.dumps(first.state_dict(last)))
    rest = by_position(dataset(shards, num_batches=2, state=state))
    assert rest == {position: image for position, image in expected.items() if position >= 24}


def test_draws_are_those_of_the_key_of_seed_position_and_view() -> None:
    views = np.stack([PIXELS, PIXELS], 1)
    drawn = transformed(views, POSITIONS, lambda _: torch.rand(3), seed=7)
    for row, position in enumerate(POSITIONS.tolist()):
        for view in range(2):
            generator = torch.Generator().manual_seed(derive_key(7, "transform", position, view) % 2**64)
            assert torch.equal(drawn[row, view], torch.rand(3, generator=generator))
    assert torch.equal(transformed(PIXELS, POSITIONS, lambda _: torch.rand(3), seed=7), drawn[:, 0])


@pytest.mark.parametrize("fails", [False, True])
def test_the_process_draws_afterwards_what_it_would_have_drawn(fails: bool) -> None:
    def draws() -> tuple[float, float, float]:
        return torch.rand(()).item(), random.random(), float(np.random.rand())

    def own(_: Image.Image) -> float:
        draws()
        return 1 / (1 - fails)

    for generator in (torch.manual_seed, random.seed, np.random.seed):
        generator(3)
    undisturbed = draws()
    for generator in (torch.manual_seed, random.seed, np.random.seed):
        generator(3)
    try:
        transformed(PIXELS, POSITIONS, own, seed=0)
    except ZeroDivisionError:
        assert fails
    assert draws() == undisturbed


def test_what_a_transform_returns_is_collated_as_a_data_loader_does() -> None:
    def own(image: Image.Image) -> dict[str, Any]:
        pixels = np.array(image)
        return {
            "pixels": pixels,
            "crops": (torch.tensor(pixels[:2]), torch.tensor(pixels[2:])),
            "ink": int(pixels.sum()),
        }

    made = transformed(PIXELS, POSITIONS, own, seed=0)
    assert np.array_equal(made["pixels"], PIXELS)
    assert np.array_equal(made["crops"][1], PIXELS[:, 2:])
    assert made["ink"].tolist() == PIXELS.sum((1, 2, 3)).tolist()


@pytest.mark.parametrize(
    "own", [lambda image: image, lambda image: torch.zeros(int(np.asarray(image)[0, 0, 0]) + 1), lambda image: None]
)
def test_what_is_no_batch_is_refused(own: Any) -> None:
    with pytest.raises(InputError, match=r"tensors of one shape expected.*v2\.ToImage"):
        transformed(PIXELS, POSITIONS, own, seed=0)
