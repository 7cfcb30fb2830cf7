"""STL-10: column-major planes, labels from 1, and files that do not fit together."""

import os
import pickle
from pathlib import Path

import numpy as np
import pytest

from hjepa_shards.errors import InputError, ShardError
from hjepa_shards.sources.registry import open_split


def make(folder: Path, images: int = 4) -> np.ndarray:
    """The three splits in their original layout; gives the images as [images, 96, 96, 3]."""
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (images, 96, 96, 3), dtype=np.uint8)
    on_disk = np.stack([[image[:, :, channel].T for channel in range(3)] for image in pixels])
    for name in ("train", "test", "unlabeled"):
        (folder / f"{name}_X.bin").write_bytes(on_disk.tobytes())
    for name in ("train", "test"):
        (folder / f"{name}_y.bin").write_bytes(bytes(1 + 3 * row % 10 for row in range(images)))
    return pixels


@pytest.mark.parametrize("name", ["train", "test", "unlabeled"])
def test_images_are_upright_and_labels_start_at_0(tmp_path: Path, name: str) -> None:
    pixels = make(tmp_path / "stl10_binary")
    split = open_split("stl10", tmp_path, name)
    assert [sample.name for sample in split.samples] == [f"{name}/{row:06d}" for row in range(4)]
    assert [sample.label for sample in split.samples] == ([-1] * 4 if name == "unlabeled" else [0, 3, 6, 9])
    assert len(split.class_names) == (0 if name == "unlabeled" else 10)
    for sample in split.samples:
        assert np.array_equal(split.read(sample), pixels[sample.index])


def test_a_labelled_split_needs_no_other_file(tmp_path: Path) -> None:
    make(tmp_path / "stl10_binary")
    (tmp_path / "stl10_binary" / "unlabeled_X.bin").unlink()
    assert len(open_split("stl10", tmp_path / "stl10_binary", "train").samples) == 4
    with pytest.raises(
        InputError, match=r"unlabeled_X.bin expected, test_X.bin.* found; `hjepa-shards download stl10`"
    ):
        open_split("stl10", tmp_path, "unlabeled")


def test_files_that_do_not_fit_say_so(tmp_path: Path) -> None:
    folder = tmp_path / "stl10_binary"
    make(folder)
    (folder / "train_y.bin").write_bytes(bytes([1, 2, 3]))
    with pytest.raises(ShardError, match=r"train_y.bin: a byte for each of the 4 images .* 3 bytes found"):
        _ = open_split("stl10", tmp_path, "train").samples
    for label in (0, 11):
        (folder / "train_y.bin").write_bytes(bytes([1, 2, label, 3]))
        with pytest.raises(ShardError, match=rf"labels in 1..10 expected, {label} found at image 2"):
            _ = open_split("stl10", tmp_path, "train").samples
    for length in (0, 1, 27_647, 27_649):
        (folder / "unlabeled_X.bin").write_bytes(bytes(length))
        with pytest.raises(ShardError, match=rf"a multiple of 27,648 bytes expected, {length:,} found"):
            _ = open_split("stl10", tmp_path, "unlabeled").samples


def test_a_split_travels_small_and_reads_on_arrival(tmp_path: Path) -> None:
    pixels = make(tmp_path / "stl10_binary")
    split = open_split("stl10", tmp_path, "train")
    sample = split.samples[3]
    split.read(sample)
    parcel = pickle.dumps(split)
    assert len(parcel) < 2048
    assert np.array_equal(pickle.loads(parcel).read(sample), pixels[3])


def test_the_real_beginning_of_stl10() -> None:
    if "HJEPA_TEST_DATA" not in os.environ:
        pytest.skip("HJEPA_TEST_DATA is unset: no real STL-10 here")
    folder = Path(os.environ["HJEPA_TEST_DATA"]) / "stl10-part" / "stl10_binary"
    theirs = np.fromfile(folder / "train_X.bin", np.uint8).reshape(-1, 3, 96, 96)
    split = open_split("stl10", folder.parent, "train")
    assert len(split.samples) == len(theirs) == 300
    assert list(split.class_names) == (folder / "class_names.txt").read_text().split()
    labels = np.fromfile(folder / "train_y.bin", np.uint8)
    assert [sample.label + 1 for sample in split.samples] == labels.tolist()
    for row in (0, 150, 299):
        expected = np.stack([theirs[row, channel].T for channel in range(3)], axis=-1)
        assert np.array_equal(split.read(split.samples[row]), expected)
