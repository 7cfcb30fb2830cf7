"""What is known of raw data before a build: published numbers, files, classes, images that decode."""

import re
from pathlib import Path

import pytest
from PIL import Image

from hjepa_shards.downloading.verify_raw import (
    FILES_MD5,
    NUM_DECODED,
    PUBLISHED_IMAGES,
    check_raw_files,
    check_raw_splits,
)
from hjepa_shards.errors import InputError
from hjepa_shards.sources.registry import SOURCES
from hjepa_shards.storage.http_download import Watcher
from tests.hjepa_shards.sources.published.test_cifar import BATCHES, make_pickles


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_is_opened_or_says_why_not(source: str) -> None:
    checks = check_raw_splits(source, None)
    assert [check.split for check in checks] == list(SOURCES[source].default_splits)
    for check in checks:
        assert bool(check.unopened) == bool(SOURCES[source].layout)
        assert check.wrong == ()


def test_published_numbers_are_those_that_the_sources_tell_people() -> None:
    for name, numbers in PUBLISHED_IMAGES.items():
        told = {int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", SOURCES[name].images)}
        built = {numbers[split] for split in SOURCES[name].default_splits}
        assert built <= told, name
        assert set(numbers) == set(SOURCES[name].splits), name


def test_without_deep_a_thousand_images_are_decoded_and_with_it_all(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    watcher = Watcher(bar=lambda what: lambda done, total: seen.append((done, total)), note=lambda line: None)
    [train] = check_raw_splits("digits", None, splits=["train"], workers=2, watcher=watcher)
    assert (train.images, train.decoded, train.wrong) == (1347, NUM_DECODED, ())
    assert seen == [(done, NUM_DECODED) for done in range(1, NUM_DECODED + 1)]
    [train] = check_raw_splits("digits", None, splits=["train"], deep=True)
    assert train.decoded == 1347


def test_the_same_images_are_looked_at_each_time(tmp_path: Path) -> None:
    """So that what is wrong today is wrong tomorrow."""
    for i in range(NUM_DECODED + 200):
        (tmp_path / f"{i:05}.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    first, again = (check_raw_splits("folder", tmp_path, workers=workers) for workers in (1, 2))
    assert first == again
    assert "1,000 of 1,000 images cannot be decoded" in first[0].wrong[0]
    assert "and 995 more" in first[0].wrong[0]


def test_numbers_that_are_not_the_published_ones_are_wrong(tmp_path: Path) -> None:
    make_pickles(tmp_path / "cifar-10-batches-py", [*BATCHES, "test_batch"], "labels")
    train, test = check_raw_splits("cifar10", tmp_path)
    assert (train.images, train.published, train.classes) == (15, 50_000, 10)
    assert train.wrong[0] == "50,000 images expected, as published, 15 found"
    assert train.wrong[1].startswith("3 of 10 classes have no image: ")
    assert test.published == 10_000


def test_a_damaged_split_is_wrong_and_a_missing_one_cannot_be_judged(tmp_path: Path) -> None:
    make_pickles(tmp_path / "cifar-10-batches-py", BATCHES, "labels")
    whole = (tmp_path / "cifar-10-batches-py" / "data_batch_3").read_bytes()
    (tmp_path / "cifar-10-batches-py" / "data_batch_3").write_bytes(whole[:-100])
    train, test = check_raw_splits("cifar10", tmp_path)
    assert "data_batch_3" in train.wrong[0]
    assert not train.unopened
    assert "test_batch expected" in test.unopened


def test_files_that_are_empty_unfinished_or_other_than_published_are_named(tmp_path: Path) -> None:
    (tmp_path / "val_256.tar.part").write_bytes(b"1")
    (tmp_path / "val_256").mkdir()
    (tmp_path / "val_256" / "Places365_val_00000001.jpg").write_bytes(b"")
    (tmp_path / "places365_val.txt").write_bytes(b"Places365_val_00000001.jpg 165\n")
    (tmp_path / "train_256_places365standard.tar").write_bytes(b"not two bytes alike")
    (tmp_path / ".hidden").write_bytes(b"")
    files = check_raw_files("places365", tmp_path)
    assert files.count == 4
    assert files.as_published == ()
    unfinished, published, tar, empty = sorted(
        files.wrong, key=lambda line: ("jpg" in line, "tar:" in line, "txt" in line)
    )
    assert "an unfinished download" in unfinished
    assert "md5 e9f2fd57bfd9d07630173f4e8708e4b1 expected" in published
    assert "sha256 0ade5d7d38c682aa0203014a2b99ad3bf608bf1de0f151dc0d80efba54660a0a expected" in tar
    assert "an empty one found" in empty


def test_large_files_are_read_with_deep_only(tmp_path: Path) -> None:
    with (tmp_path / "ILSVRC2012_img_val.tar").open("wb") as file:
        file.truncate(6_744_924_160)  # a sparse file: reading it would take long
    assert check_raw_files("imagenet100", tmp_path).wrong == ()


def test_links_are_looked_through_and_loops_are_not_followed(tmp_path: Path) -> None:
    (tmp_path / "raw" / "train").mkdir(parents=True)
    (tmp_path / "raw" / "train" / "loop").symlink_to(tmp_path / "raw")
    (tmp_path / "raw" / "train" / "nowhere.png").symlink_to(tmp_path / "nothing")
    Image.new("RGB", (8, 8)).save(tmp_path / "elsewhere.png")
    (tmp_path / "raw" / "train" / "a.png").symlink_to(tmp_path / "elsewhere.png")
    assert check_raw_files("folder", tmp_path / "raw").count == 1


def test_an_unknown_source_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="'cifar': unknown"):
        check_raw_splits("cifar", tmp_path)


def test_real_pieces_are_judged(real_data: Path) -> None:
    files = check_raw_files("cifar10", real_data / "cifar10")
    assert sorted(files.as_published) == [*BATCHES, "test_batch"]
    assert files.wrong == ()
    [test] = check_raw_splits("cifar10", real_data / "cifar10", splits=["test"])
    assert (test.images, test.decoded, test.wrong) == (10_000, NUM_DECODED, ())
    files = check_raw_files("stl10", real_data / "stl10-part")
    assert len(files.wrong) == 2
    for check in check_raw_splits("coco", real_data / "coco"):
        assert check.decoded == check.images > 20
        assert len(check.wrong) == 1


@pytest.mark.slow  # importing torchvision takes longer than all the others
def test_digests_of_files_are_torchvision_s() -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    for source, theirs in (("cifar10", datasets.CIFAR10), ("cifar100", datasets.CIFAR100), ("stl10", datasets.STL10)):
        for name, md5 in theirs.train_list + theirs.test_list:
            assert FILES_MD5[source][name] == md5
    places = datasets.Places365
    assert FILES_MD5["places365"] == dict([places._CATEGORIES_META, *places._FILE_LIST_META.values()])
