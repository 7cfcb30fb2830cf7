"""Images in folders: order, names, labels, and what is odd about real trees."""

import os
import pickle
from pathlib import Path

import pytest

from hjepa_shards.errors import DecodeError, InputError
from hjepa_shards.sources.registry import default_splits, open_split


def put(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.fsencode(name))
    return root


def listed(raw: Path, split: str = "train") -> list[tuple[str, int]]:
    return [(sample.name, sample.label) for sample in open_split("folder", raw, split).samples]


# ---- folder


def test_class_folders_give_labels_in_order_of_name(tmp_path: Path) -> None:
    put(tmp_path, "dog/b.JPG", "dog/a.jpeg", "cat/deep/er/x.png", "cat/z.webp", "cat/notes.txt", "cat/.hidden.png")
    split = open_split("folder", tmp_path, "train")
    assert split.class_names == ("cat", "dog")
    assert listed(tmp_path) == [("cat/z.webp", 0), ("cat/deep/er/x.png", 0), ("dog/a.jpeg", 1), ("dog/b.JPG", 1)]
    assert split.read(split.samples[1]) == b"cat/deep/er/x.png"
    assert len({(sample.name, sample.index) for sample in split.samples}) == 4


def test_a_flat_folder_has_no_labels(tmp_path: Path) -> None:
    put(tmp_path, "b.tif", "a.gif", "c.bmp", "readme.md")
    assert listed(tmp_path) == [("a.gif", -1), ("b.tif", -1), ("c.bmp", -1)]
    assert open_split("folder", tmp_path, "train").class_names == ()


def test_split_folders_are_used_where_there_are_some(tmp_path: Path) -> None:
    put(tmp_path, "train/cat/1.png", "val/cat/2.png")
    assert listed(tmp_path) == [("cat/1.png", 0)]
    assert listed(tmp_path, "val") == [("cat/2.png", 0)]
    with pytest.raises(InputError, match=r"test: a folder with the images of split test expected.*beside train, val"):
        open_split("folder", tmp_path, "test")


def test_the_splits_that_are_there_are_built_and_what_is_beside_them_is_named(tmp_path: Path) -> None:
    assert default_splits("folder", put(tmp_path / "flat", "cat/1.png", "test/1.png")) == ("train",)
    raw = put(tmp_path / "raw", "train/cat/1.png", "test/cat/2.png", "notes/3.txt", "a.png")
    assert default_splits("folder", raw) == ("train", "test")
    split = open_split("folder", raw, "test")
    assert split.notes == ("raw/test was read as a split; not read: a.png, notes beside it",)
    assert open_split("folder", tmp_path / "flat" / "cat", "train").notes == ()


def test_odd_names_come_through_and_can_be_read(tmp_path: Path) -> None:
    put(tmp_path, "caf\u00e9/\u732b 1.png", "caf\u00e9/a\nb.png", "caf\u00e9/a.b.c.jpg", "caf\u00e9/back\\xff.png")
    raw_name = os.fsdecode(b"\xff\xfe.png")
    try:
        put(tmp_path, f"caf\u00e9/{raw_name}")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    split = open_split("folder", tmp_path, "train")
    assert {sample.name.encode().decode() for sample in split.samples} == {
        "caf\u00e9/\u732b 1.png",
        "caf\u00e9/a\nb.png",
        "caf\u00e9/a.b.c.jpg",
        "caf\u00e9/back\\xff.png",
        "caf\u00e9/\\xff\\xfe.png",
    }
    assert all(split.read(sample) for sample in split.samples)


def test_an_empty_class_keeps_its_place_and_is_named(tmp_path: Path) -> None:
    put(tmp_path, "a/1.png", "c/1.png")
    (tmp_path / "b").mkdir()
    split = open_split("folder", tmp_path, "train")
    assert listed(tmp_path) == [("a/1.png", 0), ("c/1.png", 2)]
    assert split.notes == ("classes without an image: b",)


def test_linked_classes_are_followed_and_loops_are_not(tmp_path: Path) -> None:
    put(tmp_path / "store", "1.png")
    raw = put(tmp_path / "raw", "a/2.png")
    (raw / "b").symlink_to(tmp_path / "store")
    (raw / "a" / "loop").symlink_to(raw)
    assert listed(raw) == [("a/2.png", 0), ("b/1.png", 1)]


def test_what_cannot_be_listed_or_read_is_named(tmp_path: Path) -> None:
    raw = put(tmp_path / "raw", "a/1.png")
    (raw / "a" / "gone.png").symlink_to(tmp_path / "nowhere")
    split = open_split("folder", raw, "train")
    with pytest.raises(DecodeError, match="a link to nothing"):
        split.read(next(sample for sample in split.samples if "gone" in sample.name))
    (raw / "a" / "1.png").unlink()
    with pytest.raises(InputError, match=r"a/1.png: cannot be read: No such file"):
        split.read(next(sample for sample in split.samples if "1" in sample.name))
    put(raw, "a/1.png")
    with pytest.raises(InputError, match="nothing given"):
        open_split("folder", None, "train")
    with pytest.raises(InputError, match="no such folder"):
        open_split("folder", tmp_path / "nowhere", "train")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: images expected, none found"):
        listed(tmp_path / "empty")
    with pytest.raises(InputError, match=r"both found \(1 images, x.png .* 1 folders, a "):
        open_split("folder", put(raw, "x.png"), "train")


def test_a_split_travels_small(tmp_path: Path) -> None:
    put(tmp_path, *(f"class/{number}.png" for number in range(300)))
    split = open_split("folder", tmp_path, "train")
    sample = split.samples[7]
    parcel = pickle.dumps(split)
    assert len(parcel) < 1024
    assert pickle.loads(parcel).read(sample) == split.read(sample)
