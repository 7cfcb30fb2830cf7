"""ImageNet in each of its layouts: the same samples, the same shards, and what torchvision reads."""

import gzip
import os
import pickle
from pathlib import Path

import pytest

from hjepa_shards.building.build import BuildOptions, build
from hjepa_shards.errors import InputError, ShardError
from hjepa_shards.sources.published.imagenet import synset_names
from hjepa_shards.sources.registry import open_split
from tests.hjepa_shards.building.test_build import files_of
from tests.hjepa_shards.sources.layouts import jpeg, put, tarred
from tests.hjepa_shards.sources.published.test_imagenet_val import devkit

SYNSETS = ("n01440764", "n01443537", "n02119789", "n04380533")
TRAIN = {
    f"{synset}/{synset}_{10 * number + 7}.JPEG": jpeg(20 * label + number)
    for label, synset in enumerate(SYNSETS)
    for number in range(5)
}
VAL_SYNSETS = [SYNSETS[label] for label in (2, 0, 0, 3, 1, 2, 2, 1)]
VAL = {f"ILSVRC2012_val_{number:08d}.JPEG": jpeg(100 + number) for number in range(1, len(VAL_SYNSETS) + 1)}
VAL_TREE = {f"{synset}/{name}": data for synset, (name, data) in zip(VAL_SYNSETS, VAL.items(), strict=True)}


def below(folder: str, files: dict[str, bytes]) -> dict[str, bytes]:
    return {f"{folder}/{name}": data for name, data in files.items()}


def train_tar() -> bytes:
    return tarred(
        {
            f"{synset}.tar": tarred({n.partition("/")[2]: d for n, d in TRAIN.items() if n.startswith(synset)})
            for synset in SYNSETS
        }
    )


def tree(raw: Path) -> Path:
    return put(raw, below("train", TRAIN) | below("val", VAL_TREE))


def flat(raw: Path) -> Path:
    return put(raw, below("train", TRAIN) | below("val", VAL) | devkit(SYNSETS, VAL_SYNSETS))


def kaggle(raw: Path) -> Path:
    lines = ["ImageId,PredictionString"]
    lines += [f"{name[:-5]},{synset} 1 2 3 4 {synset} 5 6 7 8 " for name, synset in zip(VAL, VAL_SYNSETS, strict=True)]
    csv = {"LOC_val_solution.csv": "\n".join(lines[:1] + lines[:0:-1]).encode()}
    return put(raw, below("ILSVRC/Data/CLS-LOC/train", TRAIN) | below("ILSVRC/Data/CLS-LOC/val", VAL) | csv)


def tars(raw: Path) -> Path:
    packed = {"ILSVRC2012_img_train.tar": train_tar(), "ILSVRC2012_img_val.tar": tarred(VAL)}
    kit = tarred({"ILSVRC2012_devkit_t12/": b""} | devkit(SYNSETS, VAL_SYNSETS))
    return put(raw, packed | {"ILSVRC2012_devkit_t12.tar.gz": gzip.compress(kit)})


def chosen(folder: Path, *synsets: str) -> Path:
    path = folder / "classes.txt"
    path.write_text("# mine\n" + "\n".join(synsets) + "\n\n")
    return path


# ---- layouts


@pytest.mark.parametrize("synsets", [SYNSETS, (SYNSETS[2], SYNSETS[1])], ids=["all", "two classes"])
def test_every_layout_gives_the_same_bytes(tmp_path: Path, synsets: tuple[str, ...]) -> None:
    classes = chosen(tmp_path, *synsets)
    options = BuildOptions(samples_per_shard=5, classes=classes)
    built = {}
    for layout in (tree, flat, kaggle, tars):
        raw, out = layout(tmp_path / layout.__name__), tmp_path / "shards" / layout.__name__
        manifests = build("imagenet100", raw=raw, out=out, splits=("train", "val"), options=options)
        assert [m.num_samples for m in manifests] == ([20, 8] if synsets == SYNSETS else [10, 5])
        assert not any(m.exclusions for m in manifests)
        built[layout.__name__] = files_of(out)
    assert len(built["tree"]) > 10
    assert all(files == built["tree"] for files in built.values())


@pytest.mark.slow
def test_worker_processes_read_the_tars(tmp_path: Path) -> None:
    for layout, workers in ((tree, 1), (tars, 2)):
        options = BuildOptions(samples_per_shard=5, classes=chosen(tmp_path, *SYNSETS), workers=workers)
        out = tmp_path / "shards" / layout.__name__
        build("imagenet", raw=layout(tmp_path / layout.__name__), out=out, splits=("train", "val"), options=options)
    assert files_of(tmp_path / "shards" / "tree") == files_of(tmp_path / "shards" / "tars")


@pytest.mark.parametrize("layout", [tree, flat, kaggle, tars])
@pytest.mark.parametrize("split", ["train", "val"])
def test_names_labels_and_bytes_are_those_of_the_files(tmp_path: Path, layout, split: str) -> None:
    opened = open_split("imagenet", layout(tmp_path / "raw"), split, classes=chosen(tmp_path, *SYNSETS))
    assert opened.class_names[3] == "n04380533 table lamp"
    expected = TRAIN if split == "train" else VAL_TREE
    assert {sample.name: opened.read(sample) for sample in opened.samples} == expected
    assert all(SYNSETS[sample.label] == sample.name[:9] for sample in opened.samples)
    assert all(sample.index == 0 for sample in opened.samples)


def test_val_without_a_devkit_has_the_published_labels(tmp_path: Path) -> None:
    """The first files of ILSVRC 2012's validation set are of n01751748, n09193705, n02105855, n04263257."""
    published = ["n01751748", "n09193705", "n02105855", "n04263257"]
    names = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 5)]
    classes = chosen(tmp_path, *published)
    for raw in (put(tmp_path / "flat", {f"val/{name}": b"x" for name in names}), tmp_path / "tar"):
        put(raw, {"ILSVRC2012_img_val.tar": tarred(dict.fromkeys(names, b"x"))} if raw.name == "tar" else {})
        split = open_split("imagenet", raw, "val", classes=classes)
        assert sorted(sample.name for sample in split.samples) == sorted(
            map("/".join, zip(published, names, strict=True))
        )


@pytest.mark.filterwarnings("ignore:Python 3.14 will:DeprecationWarning")  # torchvision unpacks without a filter
@pytest.mark.parametrize("split", ["train", "val"])
def test_the_tars_are_what_torchvision_unpacks(tmp_path: Path, split: str, monkeypatch: pytest.MonkeyPatch) -> None:
    imagenet = pytest.importorskip("torchvision.datasets.imagenet")
    raw = tars(tmp_path / "raw")
    opened = open_split("imagenet", raw, split, classes=chosen(tmp_path, *SYNSETS))
    for name, (file, _) in imagenet.ARCHIVE_META.items():  # the fixture has checksums of its own
        monkeypatch.setitem(imagenet.ARCHIVE_META, name, (file, None))
    theirs = imagenet.ImageNet(str(raw), split)
    read = {os.path.relpath(path, raw / split): (Path(path).read_bytes(), label) for path, label in theirs.imgs}
    assert read == {sample.name: (opened.read(sample), sample.label) for sample in opened.samples}
    assert theirs.wnids == [name.split()[0] for name in opened.class_names]


def test_a_tree_is_taken_before_the_tar_beside_it(tmp_path: Path) -> None:
    raw = put(tars(tmp_path / "raw"), {"train/n01440764/other.JPEG": b"x"})
    [sample] = open_split("imagenet", raw, "train", classes=chosen(tmp_path, "n01440764")).samples
    assert sample.name == "n01440764/other.JPEG"


def test_a_split_of_tars_travels_small_and_reads_there(tmp_path: Path) -> None:
    split = open_split("imagenet", tars(tmp_path / "raw"), "train", classes=chosen(tmp_path, *SYNSETS))
    arrived = pickle.loads(pickle.dumps(split))
    assert "samples" not in arrived.__dict__
    assert {sample.name: arrived.read(sample) for sample in split.samples} == TRAIN


# ---- what is wrong with a layout


def test_missing_classes_are_named_in_every_layout(tmp_path: Path) -> None:
    for layout in (tree, flat, tars):
        for split in ("train", "val"):
            with pytest.raises(
                InputError, match=r"1,000 classes expected, 4 of them found; missing: n01484850 great wh"
            ):
                open_split("imagenet", layout(tmp_path / layout.__name__), split)


def test_a_missing_split_names_folder_and_tar(tmp_path: Path) -> None:
    put(tmp_path, {"train/n01440764/a.JPEG": b""})
    with pytest.raises(
        InputError, match=r"val expected, train found; ILSVRC2012_img_val.tar would do as well; register at https://ima"
    ):
        open_split("imagenet", tmp_path, "val")


def test_half_sorted_validation_files_are_refused(tmp_path: Path) -> None:
    raw = put(tmp_path / "raw", below("val", VAL) | {"val/n01440764/ILSVRC2012_val_00000009.JPEG": b""})
    with pytest.raises(InputError, match=r"8 files \(ILSVRC2012_val_00000001.JPEG the first\) and 1 folders found"):
        open_split("imagenet", raw, "val")


@pytest.mark.parametrize("split", ["train", "val"])
def test_damaged_tars_are_refused_when_they_are_opened(tmp_path: Path, split: str) -> None:
    path = tars(tmp_path / "raw") / f"ILSVRC2012_img_{split}.tar"
    whole, classes = path.read_bytes(), chosen(tmp_path, *SYNSETS)
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ShardError, match=r"cut short: fetch it again"):
        open_split("imagenet", tmp_path / "raw", split, classes=classes)
    path.write_bytes(b"<html><title>403 Forbidden</title></html>" * 40)
    with pytest.raises(ShardError, match="this is a web page: the server sent an error"):
        open_split("imagenet", tmp_path / "raw", split, classes=classes)


def test_an_inner_tar_that_is_none_names_its_place(tmp_path: Path) -> None:
    raw = put(tmp_path, {"ILSVRC2012_img_train.tar": tarred({"n01440764.tar": b"\xff\xd8" * 600})})
    split = open_split("imagenet", raw, "train", classes=chosen(tmp_path, "n01440764"))
    with pytest.raises(ShardError, match=r"img_train.tar: a tar expected at byte 512, b'\\xff\\xd8"):
        assert split.samples
    put(raw, {"ILSVRC2012_img_train.tar": tarred(VAL)})
    with pytest.raises(ShardError, match=r"a tar of tars, as n01440764.tar, expected, none of them in it"):
        open_split("imagenet", raw, "train")


# ---- classes


def test_labels_follow_the_sorted_class_list_not_the_folders(tmp_path: Path) -> None:
    names = ("n02119789/b.JPEG", "n01440764/a.JPEG", "n01443537/c.JPEG", "n02119789/d.JPEG")
    put(tmp_path, {f"train/{name}": b"" for name in names})
    classes = chosen(tmp_path, "n02119789 kit fox", "n01440764")
    split = open_split("imagenet100", tmp_path, "train", classes=classes)
    assert [(sample.name, sample.label) for sample in split.samples] == [
        ("n01440764/a.JPEG", 0),
        ("n02119789/b.JPEG", 1),
        ("n02119789/d.JPEG", 1),
    ]
    assert split.class_names == ("n01440764 tench, Tinca tinca", "n02119789 kit fox, Vulpes macrotis")


def test_the_shipped_lists_are_the_published_ones(tmp_path: Path) -> None:
    put(tmp_path, {f"train/{synset}/1.JPEG": b"" for synset in synset_names()})
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


def test_an_empty_class_is_named(tmp_path: Path) -> None:
    put(tmp_path, {"train/n01440764/a.JPEG": b"", "train/n01443537/notes.txt": b""})
    classes = chosen(tmp_path, "n01440764", "n01443537")
    assert open_split("imagenet", tmp_path, "train", classes=classes).notes == ("classes without an image: n01443537",)


def test_another_number_of_images_than_published_is_noted(tmp_path: Path) -> None:
    raw = tree(tmp_path / "raw")
    assert open_split("imagenet", raw, "val", classes=chosen(tmp_path, *SYNSETS)).notes == (
        "8 images found, 200 were published",
    )
    put(raw, {f"train/{synset}/1.JPEG": b"" for synset in synset_names()})
    assert open_split("imagenet", raw, "train").notes == ("1,020 images found, 1,281,167 were published",)
