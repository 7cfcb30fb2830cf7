"""Places365: file lists, both sizes, folders and tars, against torchvision's reader; and what is wrong with them."""

import pickle
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hjepa_shards.building.build import BuildOptions, build
from hjepa_shards.errors import DecodeError, InputError, ShardError
from hjepa_shards.sources.registry import open_split
from tests.hjepa_shards.building.test_build import files_of
from tests.hjepa_shards.sources.layouts import jpeg, put, tarred

CATEGORIES = ("/a/airfield", "/a/airplane_cabin", "/g/greenhouse/indoor", "/z/zen_garden")
TRAIN = [("a/airfield/00000001.jpg", 0), ("a/airfield/00000002.jpg", 0), ("g/greenhouse/indoor/00000001.jpg", 2)]
TRAIN += [("a/airplane_cabin/00000007.jpg", 1), ("z/zen_garden/00004993.jpg", 3)]
VAL = [(f"Places365_val_{number:08d}.jpg", label) for number, label in ((1, 3), (2, 0), (3, 2), (4, 2))]
TEST = [f"Places365_test_{number:08d}.jpg" for number in (1, 2, 3)]
LISTS = {
    "categories_places365.txt": "\n".join(f"{name} {label}" for label, name in enumerate(CATEGORIES)).encode(),
    "places365_train_standard.txt": "".join(f"/{name} {label}\n" for name, label in TRAIN).encode(),
    "places365_train_challenge.txt": "".join(f"/{name} {label}\n" for name, label in TRAIN[:4]).encode(),
    "places365_val.txt": "".join(f"{name} {label}\n" for name, label in VAL).encode(),
    "places365_test.txt": "\n".join(TEST).encode(),
}
IMAGES = {name: jpeg(number) for number, name in enumerate([name for name, _ in TRAIN + VAL] + TEST)}
FOLDERS = {"train": "data_{}_standard", "val": "val_{}", "test": "test_{}", "train-challenge": "data_{}_challenge"}
TARS = {"train": "train_{}_places365standard.tar", "val": "val_{}.tar", "test": "test_{}.tar"}


def images_of(split: str) -> dict[str, bytes]:
    if split == "train-challenge":
        return {name: IMAGES[name] for name, _ in TRAIN[:4]}
    return {
        name: data for name, data in IMAGES.items() if ("Places365" not in name and "train" in split) or split in name
    }


def unpacked(raw: Path, size: str, *splits: str) -> Path:
    put(raw, LISTS)
    for split in splits:
        put(raw / FOLDERS[split].format(size), images_of(split))
    return raw


def tars(raw: Path, size: str, *splits: str) -> Path:
    put(raw, LISTS)
    for split in splits:
        inside = f"data_{size}" if split == "train" else f"{split}_{size}"
        files = {f"{inside}/": b""} | {f"{inside}/{name}": data for name, data in images_of(split).items()}
        put(raw, {TARS[split].format(size): tarred(files)})
    return raw


def read(raw: Path, split: str) -> dict[str, tuple[object, int]]:
    opened = open_split("places365", raw, split)
    return {sample.name: (opened.read(sample), sample.label) for sample in opened.samples}


# ---- layouts


@pytest.mark.parametrize("size", ["large", "256"])
@pytest.mark.parametrize("split", ["train", "val", "test", "train-challenge"])
def test_it_is_what_torchvision_reads(tmp_path: Path, size: str, split: str, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    raw = unpacked(tmp_path / "raw", size, split)
    monkeypatch.setattr(datasets.Places365, "_CATEGORIES_META", ("categories_places365.txt", None))
    for name, (file, _) in datasets.Places365._FILE_LIST_META.items():  # the fixture has checksums of its own
        monkeypatch.setitem(datasets.Places365._FILE_LIST_META, name, (file, None))
    theirs = datasets.Places365(str(raw), "train-standard" if split == "train" else split, small=size == "256")
    opened = open_split("places365", raw, split)
    assert [sample.label for sample in opened.samples] == [-1 if label is None else label for label in theirs.targets]
    assert [opened.read(sample) for sample in opened.samples] == [Path(path).read_bytes() for path, _ in theirs.imgs]
    assert list(opened.class_names) == ([] if split == "test" else theirs.classes)


def test_tars_and_folders_give_the_same_bytes(tmp_path: Path) -> None:
    options = BuildOptions(samples_per_shard=3)
    built = []
    for layout in (unpacked, tars):
        raw, out = layout(tmp_path / layout.__name__, "large", "train", "val"), tmp_path / "shards" / layout.__name__
        train, val = build("places365", raw=raw, out=out, options=options)
        assert (train.num_samples, val.num_samples) == (5, 4)
        built.append(files_of(out))
    assert built[0] == built[1]


@pytest.mark.parametrize("folder", ["data_large", "data_256"])
def test_folders_may_have_the_names_under_which_they_were_packed(tmp_path: Path, folder: str) -> None:
    raw = put(put(tmp_path, LISTS) / folder, images_of("train")).parent
    assert read(raw, "train") == {name: (IMAGES[name], label) for name, label in TRAIN}
    assert read(raw, "train-challenge") == {name: (IMAGES[name], label) for name, label in TRAIN[:4]}


@pytest.mark.parametrize("layout", [unpacked, tars])
def test_which_of_both_sizes_is_meant_has_to_be_said(tmp_path: Path, layout) -> None:
    raw = layout(layout(tmp_path / "raw", "large", "train", "val"), "256", "train", "val")
    inner = FOLDERS if layout is unpacked else TARS
    for split in ("train", "val"):
        large, small = (raw / inner[split].format(size) for size in ("large", "256"))
        with pytest.raises(InputError, match=f"both found; choose with --raw {large} or --raw {small}"):
            open_split("places365", raw, split)
        for path, size in ((large, "large images"), (small, "small images, squeezed to 256x256")):
            for other in ("train", "val"):
                opened = open_split("places365", path, other)
                assert opened.provenance.upstream.startswith(f"Places365, {size}, http")
                assert len(opened.samples) == len(images_of(other))


def test_the_real_lists_are_understood(tmp_path: Path, real_data: Path) -> None:
    lists = {path.name.replace(".excerpt", ""): path.read_bytes() for path in (real_data / "places365").glob("*.txt")}
    raw = put(tmp_path, lists)
    for split, folder in (("train", "data_256_standard"), ("val", "val_256"), ("test", "test_256")):
        lines = lists[f"places365_{'train_standard' if split == 'train' else split}.txt"].decode().split("\n")
        names = [line.split()[0] for line in lines if line]
        put(raw / folder, {name.lstrip("/"): b"x" for name in names})
        opened = open_split("places365", raw, split)
        assert [f"/{sample.name}" if split == "train" else sample.name for sample in opened.samples] == names
        if split != "test":
            assert len(opened.class_names) == 365
            assert {"/g/greenhouse/indoor", "/z/zen_garden"} < set(opened.class_names)
            assert [sample.label for sample in opened.samples] == [int(line.split()[1]) for line in lines if line]


# ---- what is wrong


def many(raw: Path, images: int, absent: int) -> Path:
    """A val list of this many images, the first `absent` of them not there."""
    names = [f"Places365_val_{number:08d}.jpg" for number in range(images)]
    put(raw, LISTS | {"places365_val.txt": "".join(f"{name} 1\n" for name in names).encode()})
    put(raw / "val_256", {name: jpeg(number) for number, name in enumerate(names[absent:])})
    return raw


def test_a_few_absent_images_are_excluded_by_name(tmp_path: Path) -> None:
    raw = many(tmp_path / "raw", images=200, absent=2)
    [manifest] = build("places365", raw=raw, out=tmp_path / "out", splits=("val",))
    assert manifest.num_samples == 198
    assert sorted(manifest.exclusions, key=lambda exclusion: exclusion["name"]) == [
        {
            "name": f"Places365_val_0000000{number}.jpg",
            "index": 0,
            "reason": "named by places365_val.txt, not among the images",
        }
        for number in (0, 1)
    ]
    split = open_split("places365", raw, "val")
    with pytest.raises(DecodeError, match=r"named by places365_val.txt"):
        pickle.loads(pickle.dumps(split)).read(split.samples[0])


def test_more_absent_images_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"val_256: 200 images expected, .*val.txt names them, 3 of them missing, Places"
    ):
        open_split("places365", many(tmp_path, images=200, absent=3), "val")


def test_an_empty_class_is_named(tmp_path: Path) -> None:
    assert open_split("places365", unpacked(tmp_path, "256", "val"), "val").notes == (
        "classes without an image: /a/airplane_cabin",
    )


def test_missing_lists_and_images_say_what_was_looked_for(tmp_path: Path) -> None:
    (tmp_path / "data_256").mkdir()
    with pytest.raises(
        InputError,
        match=r"categories_places365.txt, places365_train_standard.txt expected, data_256 found; unpack "
        r"filelist_places365-standard.tar there .*data_large_standard, data_large, data_256_standard, data_256",
    ):
        open_split("places365", tmp_path, "train")
    with pytest.raises(
        InputError, match=r"one of val_large, val_256, val_large.tar, val_256.tar expected, none of them"
    ):
        open_split("places365", put(tmp_path, LISTS), "val")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("places365_val.txt", b"", "a list of images expected, it is empty"),
        ("places365_val.txt", b"a.jpg 0\nb.jpg\n", "line 2: an image and its label expected, 'b.jpg' found"),
        ("places365_val.txt", b"a b.jpg 0\n", "line 1: an image and its label expected, 'a b.jpg 0' found"),
        ("places365_val.txt", b"../../etc/a.jpg 0\n", "line 1: an image and its label expected"),
        ("places365_val.txt", b"a.jpg 4\n", r"line 1: a label in 0..3 expected, '4' found"),
        ("places365_val.txt", b"a.jpg -1\n", r"line 1: a label in 0..3 expected, '-1' found"),
        ("places365_val.txt", b"a.jpg 1\n\nb.jpg 1\na.jpg 2\n", "names a.jpg twice"),
        ("places365_val.txt", b"\xff\xfe\n", "a list in UTF-8 expected"),
        ("categories_places365.txt", b"\n", "categories expected, it is empty"),
        ("categories_places365.txt", b"/a/airfield 0\n/b/bar 2\n", "line 2: a category and its number 1 expected"),
    ],
)
def test_a_wrong_list_names_the_line(tmp_path: Path, name: str, text: bytes, message: str) -> None:
    raw = put(unpacked(tmp_path, "256", "val"), {name: text})
    with pytest.raises(ShardError, match=f"{name}.*{message}"):
        open_split("places365", raw, "val")


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_flipped_lists_give_our_own_errors(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    raw = unpacked(tmp_path_factory.getbasetemp() / "flipped", "256", "val")
    name = data.draw(st.sampled_from(["categories_places365.txt", "places365_val.txt"]))
    flipped = bytearray(LISTS[name])
    for _ in range(data.draw(st.integers(1, 3))):
        flipped[data.draw(st.integers(0, len(flipped) - 1))] = data.draw(st.integers(0, 255))
    try:
        opened = open_split("places365", put(raw, {name: bytes(flipped)}), "val")
    except (InputError, ShardError):
        return
    assert all(0 <= sample.label < len(opened.class_names) for sample in opened.samples)
