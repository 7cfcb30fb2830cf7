"""The images inside scikit-learn: what they are, that splits are disjoint, and that nothing about them ever moves."""

import hashlib
import pickle
from collections import Counter

import numpy as np
import pytest

from hjepa_shards.sources.base import RawSplit
from hjepa_shards.sources.own.bundled import Scattered
from hjepa_shards.sources.registry import open_split


def all_pixels(split: RawSplit) -> np.ndarray:
    return np.stack([np.asarray(split.read(sample)) for sample in split.samples])


def labels_of(split: RawSplit) -> np.ndarray:
    return np.array([sample.label for sample in split.samples])


def test_digits_are_those_of_scikit_learn_in_bytes() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    images, labels = datasets.load_digits(return_X_y=True)
    splits = [open_split("digits", None, name) for name in ("train", "test")]
    assert [len(split.samples) for split in splits] == [1347, 450]
    assert sorted(sample.index for split in splits for sample in split.samples) == list(range(1797))
    for split in splits:
        rows = [sample.index for sample in split.samples]
        assert np.array_equal(all_pixels(split), np.round(images[rows].reshape(-1, 8, 8) * 255 / 16))
        assert np.array_equal(labels_of(split), labels[rows])


def test_photo_tiles_of_train_and_val_share_no_pixel() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    photos = dict(zip(("china", "flower"), datasets.load_sample_images().images, strict=True))
    seen = {}
    for name, first_column, count in (("train", 224, 288), ("val", 0, 144)):
        split = open_split("photos", None, name)
        assert len(split.samples) == count
        used = {photo: np.zeros((427, 640), bool) for photo in photos}
        for sample in split.samples:
            photo, corner = sample.name.split("/")
            top, left = (int(number) for number in corner.split("-"))
            where = np.s_[top : top + 64, first_column + left : first_column + left + 64]
            used[photo][where] = True
            assert np.array_equal(split.read(sample), photos[photo][where])
            assert sample.label == -1
        seen[name] = used
    assert not any((seen["train"][photo] & seen["val"][photo]).any() for photo in photos)


def test_scattered_digits_are_balanced_and_in_the_scene() -> None:
    for name, count in (("train", 8192), ("test", 2048)):
        split = open_split("scattered", None, name)
        per_digit = Counter(labels_of(split).tolist())
        assert sum(per_digit.values()) == count
        assert max(per_digit.values()) - min(per_digit.values()) <= 1
        sample = split.samples[7]
        image = split.read(sample)
        assert isinstance(image, np.ndarray)
        assert (image.shape, image.dtype) == ((32, 32, 3), np.uint8)


GOLDEN = {
    ("digits", "train"): "0ede1e16740cf23bf7540642b72cf6c9",
    ("digits", "test"): "2df6e48db72b70a3ff3a0c9e26041793",
    ("scattered", "train"): "587ec9ad0580c4fadf2b14c34dfe5c00",
    ("scattered", "test"): "bce331d0ad1a468babf271bbc6224ca5",
}
"""blake2b of what is drawn. The photographs are excluded: JPEG decoders may differ by a step of brightness."""


@pytest.mark.parametrize(("source", "name"), GOLDEN)
def test_what_is_drawn_never_changes(source: str, name: str) -> None:
    split = open_split(source, None, name)
    digest = hashlib.blake2b(digest_size=16)
    for sample in split.samples:
        digest.update(f"{sample.name} {sample.index} {sample.label}\n".encode())
    drawn = split._draws if isinstance(split, Scattered) else all_pixels(split)
    digest.update(drawn.astype("<u8").tobytes())
    assert digest.hexdigest() == GOLDEN[source, name]


def test_pixels_alone_do_not_tell_scattered_digits() -> None:
    train, test = (open_split("scattered", None, name) for name in ("train", "test"))
    bank, queries = (all_pixels(split).sum(-1, dtype=np.float32).reshape(-1, 1024) / 765 for split in (train, test))
    centre = bank.mean(0)
    bank, queries = bank - centre, queries - centre
    targets = np.eye(10, dtype=np.float32)[labels_of(train)]
    weights = np.linalg.solve(bank.T @ bank + 100 * np.eye(1024, dtype=np.float32), bank.T @ targets)
    right = ((queries @ weights).argmax(1) == labels_of(test)).mean()
    assert 0.07 < right < 0.15


@pytest.mark.parametrize(("source", "name"), [("digits", "test"), ("photos", "val"), ("scattered", "train")])
def test_a_split_travels_small_and_reads_the_same(source: str, name: str) -> None:
    split = open_split(source, None, name)
    sample = split.samples[100]
    before = split.read(sample)
    parcel = pickle.dumps(split)
    assert len(parcel) < 1024
    assert np.array_equal(pickle.loads(parcel).read(sample), before)
