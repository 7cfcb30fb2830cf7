"""Batches: what the plan says, the same for any threads and ranks, from any position, whatever is damaged."""

import json
import shutil
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from hjepa_shards.building.build import build
from hjepa_shards.config import parse
from hjepa_shards.errors import ChecksumMismatch, InputError, ShardError, TooMuchDamage
from hjepa_shards.images.crop import random_crops
from hjepa_shards.images.decode import crop_into, decode, fitted
from hjepa_shards.images.image_formats import Colour
from hjepa_shards.loader import loader as loader_module
from hjepa_shards.loader import sample_reader
from hjepa_shards.loader import shard_store as store_module
from hjepa_shards.loader.batch import Batch
from hjepa_shards.loader.fill_batch import _pieces
from hjepa_shards.loader.loader import Loader, open_loader
from hjepa_shards.loader.read_split import read_split
from hjepa_shards.loader.sample_reader import SampleReader
from hjepa_shards.loader.shard_store import LocalStore
from hjepa_shards.mixture.mixture import DataConfig, Mixture, load_mixture
from hjepa_shards.shards.manifest import load_manifest
from hjepa_shards.sources.own.bundled import inside_sklearn
from tests.checks import assert_resumes_exactly, assert_same_batches_for_any_world_size, delivered
from tests.hjepa_shards.verifying.test_verify_split import flip

SOURCES = ({"name": "digits", "weight": 0.5}, {"name": "photos", "weight": 0.2}, {"name": "scattered", "weight": 0.3})
ONLY_DIGITS = ({"name": "digits", "weight": 1},)


def mix(root: Path, sources: Sequence[dict[str, Any]] = SOURCES, threads: int = 2, **more: Any) -> Mixture:
    content = {"root": str(root), "strategy": "weighted", "sources": list(sources), "image_size": 16}
    return load_mixture(parse(DataConfig, content | {"threads": threads} | more, "test"), "test")


def opener(mixture: Mixture) -> Callable[..., Loader]:
    return lambda **arguments: open_loader(mixture, seed=5, **arguments)


@pytest.fixture
def copied(shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shards, tmp_path / "shards"))


def test_batches_equal_a_plain_recomputation(shards: Path) -> None:
    mixture = mix(shards)
    plan = mixture.make_plan(5)
    readers = [
        SampleReader(LocalStore(folder, manifest), manifest)
        for folder, manifest in zip(mixture.places, mixture.manifests, strict=True)
    ]
    with open_loader(mixture, seed=5, global_batch=24) as loader:
        for start in (0, 24, 48, 72):
            batch = next(loader)
            planned = plan.samples(start, start + 24)
            assert (batch.position, batch.next_position, batch.valid.all()) == (start, start + 24, True)
            assert np.array_equal(batch.samples, planned.sample)
            assert np.array_equal(batch.entries, planned.source)
            for i in range(24):
                located = readers[planned.source[i]].locate(int(planned.sample[i]))
                assert batch.labels[i] == located.label
                pixels = readers[planned.source[i]].pixels(located)
                size = np.array([pixels.shape[1]]), np.array([pixels.shape[0]])
                [crop] = random_crops(5, planned.position[i : i + 1], *size, mixture.config.augmentation)
                top, left, height, width = fitted(crop[None], 16)[0][0]
                part = pixels[top : top + height, left : left + width]
                method = cv2.INTER_AREA if max(height, width) > 32 else cv2.INTER_LINEAR
                assert np.array_equal(batch.images[i], cv2.resize(part, (16, 16), interpolation=method))
    for one in readers:
        one.close()


@pytest.mark.parametrize(("sides", "shrink"), [((70, 30), 1), ((75, 99), 4), ((199, 301), 8)])
def test_large_jpegs_are_decoded_smaller(tmp_path: Path, sides: tuple[int, int], shrink: int) -> None:
    with Image.open(inside_sklearn("datasets/images/china.jpg")) as photo:
        photo.crop((100, 100, 100 + sides[0], 100 + sides[1])).save(tmp_path / "a.jpg", quality=95)
    data = (tmp_path / "a.jpg").read_bytes()
    build("folder", raw=tmp_path, out=tmp_path / "out")
    mixture = mix(tmp_path / "out", [{"name": "folder", "weight": 1}])
    with open_loader(mixture, seed=5, global_batch=8) as loader:
        batch = next(loader)
    pixels, size = decode(data, Colour.RGB, 1, shrink), (np.full(8, sides[0]), np.full(8, sides[1]))
    assert pixels.shape == (-(-sides[1] // shrink), -(-sides[0] // shrink), 3)
    crops = random_crops(5, batch.positions, *size, mixture.config.augmentation)
    alike = 0
    for image, crop, found in zip(batch.images, *fitted(crops, 16), strict=True):
        if found == shrink:  # a few crops are smaller than the rest
            expected = np.zeros_like(image)
            crop_into(expected, pixels, crop // shrink)
            assert np.array_equal(image, expected)
            alike += 1
    assert alike >= 4


def test_several_views_of_an_image_are_crops_of_one_decode(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    augmentation = {"crop_scale": (0.1, 1.0), "views": 3}
    mixture = mix(shards, augmentation=augmentation)
    decoded = []
    real = sample_reader.decode
    monkeypatch.setattr(sample_reader, "decode", lambda *arguments: decoded.append(arguments[3]) or real(*arguments))
    with open_loader(mixture, seed=5, global_batch=24) as loader:
        batch = next(loader)
        assert batch.images.shape == (24, 3, 16, 16, 3)
        num_decoded, readers = len(decoded), loader._readers
        for i, (entry, sample) in enumerate(zip(batch.entries.tolist(), batch.samples.tolist(), strict=True)):
            located = readers[entry].locate(sample)
            sizes = np.array([located.width]), np.array([located.height])
            crops = [
                fitted(random_crops(5, batch.positions[i : i + 1], *sizes, mixture.config.augmentation, view), 16)
                for view in range(3)
            ]
            shrink = min(int(shrinks[0]) for _, shrinks in crops)
            pixels = readers[entry].pixels(located, shrink=shrink)
            for image, ([crop], _) in zip(batch.images[i], crops, strict=True):
                expected = np.empty_like(image)
                crop_into(expected, pixels, crop // shrink if pixels.shape[0] < located.height else crop)
                assert np.array_equal(image, expected)
    assert num_decoded <= 3 * 24, "three batches are under way, each image decoded once"
    assert not np.array_equal(batch.images[:, 0], batch.images[:, 1])


def test_an_image_is_decoded_as_large_as_its_largest_view_needs(tmp_path: Path) -> None:
    with Image.open(inside_sklearn("datasets/images/china.jpg")) as photo:
        photo.crop((100, 100, 299, 401)).save(tmp_path / "a.jpg", quality=95)
    data = (tmp_path / "a.jpg").read_bytes()
    build("folder", raw=tmp_path, out=tmp_path / "out")
    augmentation = {"crop_scale": (0.02, 1.0), "views": 3}
    mixture = mix(tmp_path / "out", [{"name": "folder", "weight": 1}], augmentation=augmentation)
    with open_loader(mixture, seed=5, global_batch=32) as loader:
        batch = next(loader)
    sizes, config = (np.full(32, 199), np.full(32, 301)), mixture.config.augmentation
    views = [fitted(random_crops(5, batch.positions, *sizes, config, view), 16) for view in range(3)]
    needed = np.min([shrinks for _, shrinks in views], 0).tolist()
    assert len(set(needed)) > 1, "all alike: nothing is shown"
    for i, shrink in enumerate(needed):
        pixels = decode(data, Colour.RGB, 1, shrink)
        for image, (crops, _) in zip(batch.images[i], views, strict=True):
            expected = np.empty_like(image)
            crop_into(expected, pixels, crops[i] // shrink)
            assert np.array_equal(image, expected)


def test_what_is_read_at_once_is_bounded(shards: Path) -> None:
    folder = shards / "digits" / "train"
    manifest = load_manifest(folder)
    one = SampleReader(LocalStore(folder, manifest), manifest)
    located = [None, *one.locate_all(range(30)), None]
    one.close()
    sizes = [found.num_bytes if found else 0 for found in located]
    for most in (1, 400, 1000, 10**9):
        pieces = list(_pieces(located, most))
        assert [place for piece in pieces for place in range(32)[piece]] == list(range(32))
        assert all(sum(sizes[piece]) <= most or sum(size > 0 for size in sizes[piece]) == 1 for piece in pieces)
    assert len(list(_pieces(located, 400))) > 3


def test_batches_are_in_the_memory_that_is_handed_in(shards: Path) -> None:
    memory: list[NDArray[np.uint8]] = []

    def allocate(shape: tuple[int, ...]) -> NDArray[np.uint8]:
        memory.append(np.empty(shape, np.uint8))
        return memory[-1]

    expected = delivered(opener(mix(shards)), 120, global_batch=24)
    assert delivered(lambda **more: opener(mix(shards))(**more, allocate=allocate), 120, global_batch=24) == expected
    with open_loader(mix(shards), seed=5, global_batch=24, allocate=allocate) as loader:
        held = memory[-3:]
        for _ in range(5):
            images = next(loader).images
            assert sum(np.shares_memory(images, part) for part in held) == 1
    with pytest.raises(InputError, match=r"allocate: arrays \(24, 1, 16, 16, 3\) without gaps expected"):
        opener(mix(shards))(global_batch=24, allocate=lambda shape: allocate(shape)[:, :, ::2])


def test_any_number_of_threads_gives_the_same_batches(shards: Path) -> None:
    expected = delivered(opener(mix(shards, threads=1)), 160, global_batch=40)
    for threads in (2, 7):
        assert delivered(opener(mix(shards, threads=threads)), 160, global_batch=40) == expected


@pytest.mark.parametrize("lanes", [1, 2])
def test_any_number_of_ranks_gets_the_same_batches(shards: Path, lanes: int) -> None:
    mixture = mix(shards, order={"lanes": lanes, "window": 2})
    assert_same_batches_for_any_world_size(opener(mixture), 120, global_batch=24, worlds=(2, 3, 4, 8))


def test_a_run_continues_from_the_state_of_any_batch(shards: Path) -> None:
    """Also with other batch sizes and ranks, across the ends of passes and epochs."""
    mixture = mix(shards, epoch_samples=100)
    assert_resumes_exactly(opener(mixture), 240, global_batch=24, others=((12, 1), (24, 3), (16, 4), (48, 2)))


def test_the_state_is_that_of_the_batch_however_far_the_threads_are(shards: Path) -> None:
    mixture = mix(shards)
    with open_loader(mixture, seed=5, global_batch=8) as loader:
        first, states = next(loader), []
        for _ in range(5):
            states.append(json.dumps(loader.state_dict(first)))
            next(loader)
    assert len(set(states)) == 1
    assert json.loads(states[0])["position"] == 8


# ---- weights in flight


def sources_of(batch: Batch) -> list[int]:
    return np.bincount(batch.entries, minlength=3).tolist()


def test_weights_that_are_set_rule_after_the_batch_in_hand(shards: Path) -> None:
    mixture = mix(shards)
    first = mixture.make_plan(5)
    changed = first.reweighed(24, (0, 3, 1))
    with open_loader(mixture, seed=5, global_batch=12) as loader:
        next(loader)
        held = next(loader)
        kept = held.images.copy()
        loader.set_weights({"digits": 0, "photos": 0.75, "scattered": 0.25})
        assert np.array_equal(held.images, kept)
        for start in (24, 36, 48):
            batch = next(loader)
            assert (batch.position, batch.samples.tolist()) == (
                start,
                changed.samples(start, start + 12).sample.tolist(),
            )
            assert sources_of(batch) == [0, 9, 3]
        state = loader.state_dict(batch)
        expected = delivered_by(loader, 2)
        with pytest.raises(InputError, match="position 0: is before 24, where weights were set"):
            loader.state_dict()
    with open_loader(mixture, seed=5, global_batch=12, state=state) as loader:
        assert delivered_by(loader, 2) == expected
        loader.set_weights({"digits": 5, "photos": 2, "scattered": 3})


def test_the_same_weights_set_anywhere_change_nothing(shards: Path) -> None:
    """Also from a batch that a prefetcher has passed: what it had come again."""
    mixture = mix(shards)
    with open_loader(mixture, seed=5, global_batch=12) as loader:
        expected = delivered_by(loader, 9)
    with open_loader(mixture, seed=5, global_batch=12) as loader:
        found = []
        loader.set_weights({"digits": 0.5, "photos": 0.2, "scattered": 0.3})
        for _ in range(3):
            batches = [next(loader) for _ in range(3)]
            found.append(batches[0])
            loader.set_weights({"digits": 5, "photos": 2, "scattered": 3}, after=batches[0])
        assert [batch.proof for batch in found] == [row[1] for row in expected[:3]]
        assert delivered_by(loader, 6) == expected[3:]


def delivered_by(loader: Loader, num: int) -> list[tuple[int, int, list[int], bytes]]:
    return [(b.position, b.proof, b.samples.tolist(), b.images.tobytes()) for b in islice(loader, num)]


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"digits": 1}, "one for each of digits, photos, scattered expected, digits found"),
        ({"digits": 1, "photos": -1, "scattered": 1}, "at least 0 expected"),
        ({"digits": 0, "photos": 0, "scattered": 0}, "at least one above 0"),
    ],
)
def test_wrong_weights_change_nothing(shards: Path, weights: dict[str, float], said: str) -> None:
    with open_loader(mix(shards), seed=5, global_batch=12) as loader:
        expected = delivered_by(loader, 3)
    with open_loader(mix(shards), seed=5, global_batch=12) as loader:
        found = delivered_by(loader, 1)
        with pytest.raises(InputError, match=said):
            loader.set_weights(weights)
        assert found + delivered_by(loader, 2) == expected


def test_ranks_that_do_not_divide_the_batch_are_refused(shards: Path) -> None:
    with pytest.raises(InputError, match="nearest is 24"):
        open_loader(mix(shards), seed=5, global_batch=25, world=8)


# ---- damage


def damage(copied: Path, samples: Sequence[int]) -> None:
    """Flip a bit in the images of some of the digits."""
    folder = copied / "digits" / "train"
    manifest = load_manifest(folder)
    reader = SampleReader(LocalStore(folder, manifest), manifest)
    for sample in samples:
        located = reader.locate(sample)
        flip(folder / manifest.shard_name(located.shard), int(located.row.image_offset) + 12)


def test_a_damaged_sample_is_replaced_by_rule_and_nothing_else_changes(copied: Path, shards: Path) -> None:
    expected, proof = delivered(opener(mix(shards, ONLY_DIGITS)), 200, global_batch=20)
    lost = (3, 77, 150)
    damage(copied, lost)
    mixture = mix(copied, ONLY_DIGITS)
    found, other_proof = delivered(opener(mixture), 200, global_batch=20)
    plan = mixture.make_plan(5)
    planned = plan.samples(0, 200)
    for position in range(200):
        if planned.sample[position] in lost:
            candidates = (plan.replacement(0, int(planned.draw[position]), attempt) for attempt in range(1, 17))
            assert found[position][1] == next(sample for sample in candidates if sample not in lost)
        else:
            assert found[position] == expected[position]
    assert other_proof != proof
    assert_same_batches_for_any_world_size(opener(mixture), 200, global_batch=20, worlds=(2, 5))
    assert_resumes_exactly(opener(mixture), 200, global_batch=40, others=((20, 2),))


def test_damage_is_reported_in_the_state_and_goes_along(copied: Path) -> None:
    damage(copied, (3, 77))
    with open_loader(mix(copied, ONLY_DIGITS), seed=5, global_batch=50) as loader:
        for _ in range(4):
            batch = next(loader)
        state = loader.state_dict(batch)
        assert "crc32" in loader.damaged["digits"][3]
    assert state["damaged"] == {"digits": [3, 77]}
    with open_loader(mix(copied, ONLY_DIGITS), seed=5, global_batch=50, state=state) as loader:
        assert loader.state_dict()["damaged"] == {"digits": [3, 77]}


def test_more_damage_than_the_limit_stops_the_run(copied: Path) -> None:
    damage(copied, range(0, 44, 4))
    with (
        open_loader(mix(copied, ONLY_DIGITS), seed=5, global_batch=20) as loader,
        pytest.raises(TooMuchDamage, match=r"digits: 11 damaged samples found, 10 allowed.*hjepa-shards verify"),
    ):
        list(islice(loader, 10))


def test_a_sample_whose_replacements_are_all_damaged_stops_the_run(
    copied: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loader_module, "_DAMAGE_LEAST", 1000)
    damage(copied, range(200))
    with (
        open_loader(mix(copied, ONLY_DIGITS), seed=5, global_batch=4) as loader,
        pytest.raises(TooMuchDamage, match="16 replacements are all damaged"),
    ):
        next(loader)


@pytest.mark.parametrize("name", ["digits-train-000001.tar", "digits-train-000001.tar.index"])
def test_a_missing_file_stops_the_run_and_is_never_replaced(
    copied: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "_RETRY_WAITS_S", (0.0, 0.0))
    (copied / "digits" / "train" / name).unlink()
    with (
        open_loader(mix(copied, ONLY_DIGITS), seed=5, global_batch=100) as loader,
        pytest.raises(ShardError, match=r"000001.tar.*failed 3 times: No such file") as caught,
    ):
        list(islice(loader, 2))
    assert not isinstance(caught.value, TooMuchDamage)
    assert loader.damaged == {}


# ---- evaluation


@pytest.mark.parametrize("world", range(1, 6))
def test_an_evaluation_counts_each_sample_once(shards: Path, world: int) -> None:
    folder = shards / "digits" / "test"
    for limit in (None, 101, 3):
        ranks = [
            list(read_split(folder, image_size=8, batch=16, rank=rank, world=world, limit=limit, threads=1))
            for rank in range(world)
        ]
        assert len({tuple(len(batch.images) for batch in batches) for batches in ranks}) == 1
        counted = [int(s) for batches in ranks for batch in batches for s in batch.samples[batch.valid]]
        assert counted == list(range(limit or 200))


def test_an_evaluation_shows_the_whole_image_in_manifest_order(shards: Path) -> None:
    folder = shards / "digits" / "test"
    manifest = load_manifest(folder)
    reader = SampleReader(LocalStore(folder, manifest), manifest)
    for batch in read_split(folder, image_size=8, batch=64, threads=2):
        for i, sample in enumerate(batch.samples):
            located = reader.locate(int(sample))
            assert batch.labels[i] == located.label
            assert np.array_equal(batch.images[i], reader.pixels(located))  # digits are 8x8
    reader.close()


def test_an_evaluation_stops_at_a_damaged_sample(copied: Path) -> None:
    damage(copied, [60])
    with pytest.raises(ChecksumMismatch):
        list(read_split(copied / "digits" / "train", image_size=8, batch=50, threads=2))
