"""Images in folders, their own and ImageNet's: order, names, labels, and what is odd about real trees."""

import os
import pickle
from pathlib import Path

import pytest

from hjepa_shards.errors import InputError
from hjepa_shards.sources import open_split
from hjepa_shards.sources.imagenet import synset_names


def put(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(os.fsencode(name))
    return root


def listed(raw: Path, split: str = "train", source: str = "folder") -> list[tuple[str, int]]:
    return [(sample.name, sample.label) for sample in open_split(source, raw, split).samples]


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
    with pytest.raises(InputError, match=r"a/gone.png: cannot be read: No such file"):
        split.read(next(sample for sample in split.samples if "gone" in sample.name))
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


# ---- ImageNet


def chosen(folder: Path, *synsets: str) -> Path:
    path = folder / "classes.txt"
    path.write_text("# mine\n" + "\n".join(synsets) + "\n\n")
    return path


def test_labels_follow_the_sorted_class_list_not_the_folders(tmp_path: Path) -> None:
    put(
        tmp_path, "train/n02119789/b.JPEG", "train/n01440764/a.JPEG", "train/n01443537/c.JPEG", "train/n02119789/d.JPEG"
    )
    put(tmp_path, "val/n02119789/e.JPEG", "val/n01440764/f.JPEG")
    classes = chosen(tmp_path, "n02119789 kit fox", "n01440764")
    split = open_split("imagenet100", tmp_path, "train", classes=classes)
    assert [(sample.name, sample.label) for sample in split.samples] == [
        ("n01440764/a.JPEG", 0),
        ("n02119789/b.JPEG", 1),
        ("n02119789/d.JPEG", 1),
    ]
    assert split.class_names == ("n01440764 tench, Tinca tinca", "n02119789 kit fox, Vulpes macrotis")
    assert len(open_split("imagenet100", tmp_path, "val", classes=classes).samples) == 2


def test_the_shipped_lists_are_the_published_ones(tmp_path: Path) -> None:
    put(tmp_path, *(f"train/{synset}/1.JPEG" for synset in synset_names()))
    whole = open_split("imagenet", tmp_path, "train")
    assert [sample.label for sample in whole.samples] == list(range(1000))
    assert [whole.class_names[label].split()[1].strip(",") for label in (0, 1, 999)] == ["tench", "goldfish", "toilet"]
    hundred = open_split("imagenet100", tmp_path, "train")
    assert len(hundred.samples) == len(hundred.class_names) == 100
    assert set(hundred.class_names) < set(whole.class_names)
    assert hundred.class_names[0].startswith("n01558993 ")
    if "HJEPA_TEST_DATA" in os.environ:
        published = (Path(os.environ["HJEPA_TEST_DATA"]) / "imagenet" / "imagenet100.txt").read_text().split()
        assert [name.split()[0] for name in hundred.class_names] == published


def test_missing_classes_are_named(tmp_path: Path) -> None:
    put(tmp_path, "train/n01440764/a.JPEG")
    with pytest.raises(InputError, match=r"1,000 class folders expected, 1 of them found; missing: n01443537 goldfish"):
        open_split("imagenet", tmp_path, "train")
    with pytest.raises(InputError, match=r"val expected, train found; register at https://image-net.org"):
        open_split("imagenet", tmp_path, "val")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["n01440764", "tench"], r"line 3: a synset such as n01440764 expected, 'tench' found"),
        (["n01440764", "n01440764"], r"line 3: n01440764 again, first on line 2"),
        ([], "none found"),
    ],
)
def test_a_wrong_class_list_names_the_line(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_split("imagenet100", tmp_path, "train", classes=chosen(tmp_path, *lines))


def test_an_empty_class_of_imagenet_is_named(tmp_path: Path) -> None:
    put(tmp_path, "train/n01440764/a.JPEG")
    (tmp_path / "train" / "n01443537").mkdir()
    classes = chosen(tmp_path, "n01440764", "n01443537")
    assert open_split("imagenet", tmp_path, "train", classes=classes).notes == ("classes without an image: n01443537",)
