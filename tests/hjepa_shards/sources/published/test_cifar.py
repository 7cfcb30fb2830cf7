"""CIFAR in its four published layouts; the real files, where they are available, against torchvision's own reader."""

import os
import pickle
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from hjepa_shards.errors import InputError, ShardError
from hjepa_shards.sources.base import RawSplit
from hjepa_shards.sources.published.cifar import CIFAR10_CLASSES, CIFAR100_CLASSES, CIFAR100_GROUPS
from hjepa_shards.sources.registry import open_split


@pytest.fixture
def real() -> Path:
    if "HJEPA_TEST_DATA" not in os.environ:
        pytest.skip("HJEPA_TEST_DATA is unset: no real CIFAR here")
    return Path(os.environ["HJEPA_TEST_DATA"])


def made_pixels(count: int, seed: int) -> np.ndarray:
    """uint8 [count, 3072]"""
    return np.random.default_rng(seed).integers(0, 256, (count, 3072), dtype=np.uint8)


def make_pickles(folder: Path, files: list[str], label_key: str, images: int = 3) -> dict[str, np.ndarray]:
    folder.mkdir(parents=True)
    written = {}
    for seed, file in enumerate(files):
        written[file] = made_pixels(images, seed)
        content = {
            "data": written[file],
            label_key: [(seed + row) % 10 for row in range(images)],
            "filenames": [f"name_{row // 2}.png" for row in range(images)],
        }
        (folder / file).write_bytes(pickle.dumps(content, protocol=2))
    return written


BATCHES = [f"data_batch_{part}" for part in range(1, 6)]


def test_pickles_of_cifar10_give_names_labels_and_pixels(tmp_path: Path) -> None:
    written = make_pickles(tmp_path / "cifar-10-batches-py", BATCHES, "labels")
    split = open_split("cifar10", tmp_path, "train")
    assert split.class_names == CIFAR10_CLASSES
    assert len(split.samples) == 15
    sample = split.samples[5]
    assert (sample.name, sample.index, sample.label) == ("data_batch_2/name_1.png", 2, 3)
    assert np.array_equal(split.read(sample), written["data_batch_2"][2].reshape(3, 32, 32).transpose(1, 2, 0))
    assert len({(s.name, s.index) for s in split.samples}) == 15


def test_the_folder_itself_may_be_given(tmp_path: Path) -> None:
    make_pickles(tmp_path / "cifar-100-python", ["train", "test"], "fine_labels")
    assert len(open_split("cifar100", tmp_path / "cifar-100-python", "test").samples) == 3


@pytest.mark.parametrize(("source", "labels"), [("cifar10", 1), ("cifar100", 2)])
def test_records_give_labels_and_pixels(tmp_path: Path, source: str, labels: int) -> None:
    pixels = made_pixels(4, 0)
    folder = tmp_path / {"cifar10": "cifar-10-batches-bin", "cifar100": "cifar-100-binary"}[source]
    folder.mkdir()
    fine = np.array([[3], [0], [9], [5]], np.uint8)
    coarse = np.full((4, labels - 1), 11, np.uint8)
    name = {"cifar10": "test_batch.bin", "cifar100": "test.bin"}[source]
    (folder / name).write_bytes(np.hstack([coarse, fine, pixels]).tobytes())
    split = open_split(source, tmp_path, "test")
    assert [sample.label for sample in split.samples] == [3, 0, 9, 5]
    assert np.array_equal(split.read(split.samples[2]), pixels[2].reshape(3, 32, 32).transpose(1, 2, 0))


def test_a_split_travels_small_and_reads_on_arrival(tmp_path: Path) -> None:
    make_pickles(tmp_path / "cifar-10-batches-py", BATCHES, "labels", images=100)
    split = open_split("cifar10", tmp_path, "train")
    sample = split.samples[250]
    before = split.read(sample)
    parcel = pickle.dumps(split)
    assert len(parcel) < 4096
    assert np.array_equal(pickle.loads(parcel).read(sample), before)


def test_a_wrong_folder_says_what_was_sought_found_and_to_do(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    with pytest.raises(InputError, match=r"data_batch_1.*expected, photos found; `hjepa-shards download cifar10`"):
        open_split("cifar10", tmp_path, "train")
    with pytest.raises(InputError, match="no such folder"):
        open_split("cifar10", tmp_path / "nowhere", "train")
    make_pickles(tmp_path / "cifar-10-batches-py", BATCHES[:3], "labels")
    with pytest.raises(InputError, match=r"cifar-10-batches-py: data_batch_4, data_batch_5 expected"):
        open_split("cifar10", tmp_path, "train")


def test_a_truncated_file_names_both_md5_and_where_to_get_it(tmp_path: Path) -> None:
    make_pickles(tmp_path / "cifar-10-batches-py", BATCHES, "labels")
    path = tmp_path / "cifar-10-batches-py" / "data_batch_4"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ShardError, match=r"data_batch_4: .*md5 634d18\w+ expected, \w{32} found; download it again"):
        _ = open_split("cifar10", tmp_path, "train").samples


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": [1, 2]}, r"`data` of uint8 \[images, 3072\] expected, list found"),
        ({"data": made_pixels(3, 0)[:, :3000]}, r"uint8 \[3, 3000\] found"),
        ({"data": made_pixels(3, 0).astype(np.int32)}, "uint8"),
        ({"labels": None}, "`labels`, a list of int, expected, nothing found"),
        ({"labels": [1, 2, "3"]}, "a list of int"),
        ({"labels": [1, 2]}, "3 entries of `labels` expected, 2 found"),
        ({"labels": [1, 2, 10]}, r"labels in 0..9 expected, 10 found at image 2"),
        ({"labels": [1, -1, 1]}, r"-1 found at image 1"),
        ({"filenames": ["a"]}, "3 entries of `filenames` expected, 1 found"),
        ({"filenames": {}}, "`filenames`, a list of str, expected, dict found"),
    ],
)
def test_a_pickle_of_something_else_says_what_is_wrong(tmp_path: Path, change: dict, message: str) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    make_pickles(folder, ["test_batch"], "labels")
    content = pickle.loads((folder / "test_batch").read_bytes())
    (folder / "test_batch").write_bytes(pickle.dumps(content | change, protocol=2))
    with pytest.raises(ShardError, match=message):
        _ = open_split("cifar10", tmp_path, "test").samples


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "a multiple of 3,073 bytes expected, 0 found"),
        (bytes(3072), "a multiple of 3,073 bytes expected, 3,072 found"),
        (b"\x0a" + bytes(3072), r"labels in 0..9 expected, 10 found at image 0"),
    ],
)
def test_wrong_records_say_what_is_wrong(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "test_batch.bin").write_bytes(data)
    with pytest.raises(ShardError, match=message):
        _ = open_split("cifar10", tmp_path, "test").samples


def test_cifar100_has_twenty_groups_of_five() -> None:
    assert len(CIFAR100_CLASSES) == 100
    assert len(CIFAR100_GROUPS) == 20
    assert list(CIFAR100_GROUPS) == sorted(CIFAR100_GROUPS)
    assert all(len(names) == 5 for names in CIFAR100_GROUPS.values())


def pixels_of(split: RawSplit, row: int) -> np.ndarray:
    pixels = split.read(split.samples[row])
    assert isinstance(pixels, np.ndarray)
    return pixels


@pytest.mark.parametrize(("split", "images"), [("train", 50_000), ("test", 10_000)])
def test_real_cifar10_is_what_torchvision_reads(real: Path, split: str, images: int) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    theirs = datasets.CIFAR10(real / "cifar10", train=split == "train")
    ours = open_split("cifar10", real / "cifar10", split)
    assert len(ours.samples) == len(theirs) == images
    assert list(ours.class_names) == theirs.classes
    assert Counter(sample.label for sample in ours.samples) == dict.fromkeys(range(10), images // 10)
    for row in np.random.default_rng(0).choice(images, 100, replace=False):
        image, label = theirs[row]
        assert np.array_equal(pixels_of(ours, row), np.asarray(image))
        assert ours.samples[row].label == label


def test_real_cifar100_is_what_pickle_reads(real: Path) -> None:
    folder = real / "cifar100-test" / "cifar-100-python"
    theirs = pickle.loads((folder / "test").read_bytes(), encoding="latin1")
    meta = pickle.loads((folder / "meta").read_bytes(), encoding="latin1")
    ours = open_split("cifar100", folder.parent, "test")
    assert list(ours.class_names) == meta["fine_label_names"]
    assert list(CIFAR100_GROUPS) == meta["coarse_label_names"]
    assert [sample.label for sample in ours.samples] == theirs["fine_labels"]
    groups = [list(CIFAR100_GROUPS).index(ours.class_groups[sample.label]) for sample in ours.samples]
    assert groups == theirs["coarse_labels"]
    assert [sample.name for sample in ours.samples] == [f"test/{name}" for name in theirs["filenames"]]
    for row in range(0, 10_000, 100):
        assert np.array_equal(pixels_of(ours, row), theirs["data"][row].reshape(3, 32, 32).transpose(1, 2, 0))
