"""The user's own folders: which are splits, which are classes, and that no image is lost without a word."""

import io
import os
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hjepa_shards.building.build import BuildOptions, build
from hjepa_shards.errors import DecodeError, InputError
from hjepa_shards.images.image_magic import NUM_MAGIC_BYTES, has_image_magic
from hjepa_shards.shards.manifest import load_manifest
from hjepa_shards.sources.formats.class_folders import TreeSplit
from hjepa_shards.sources.registry import default_splits, open_split
from hjepa_shards.verifying.repair import repair
from tests.conftest import Command
from tests.hjepa_shards.sources.layouts import jpeg, put

COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"
JPEG = jpeg(0)


def tree(root: Path, *names: str) -> Path:
    return put(root, dict.fromkeys(names, JPEG))


def opened(raw: Path, split: str = "train", **how: bool) -> TreeSplit:
    found = open_split("folder", raw, split, **how)
    assert isinstance(found, TreeSplit)
    return found


def listed(raw: Path, split: str = "train", **how: bool) -> list[tuple[str, int]]:
    return [(sample.name, sample.label) for sample in opened(raw, split, **how).samples]


# ---- classes


@pytest.mark.parametrize(
    ("train", "test", "names", "labels"),
    [
        ("ant bee cat", "ant cat", "ant bee cat", [0, 2]),
        ("ant cat", "ant bee cat", "ant cat bee", [0, 2, 1]),
        ("ant cat", "bee", "ant cat bee", [2]),
        (f"ant {COMPOSED} dog", f"{DECOMPOSED} dog", f"ant {COMPOSED} dog", [1, 2]),
    ],
)
def test_every_split_has_the_numbers_of_train(
    tmp_path: Path, train: str, test: str, names: str, labels: list[int]
) -> None:
    raw = tree(tmp_path, *(f"train/{n}/1.jpg" for n in train.split()), *(f"test/{n}/1.jpg" for n in test.split()))
    split = opened(raw, "test")
    assert split.class_names == tuple(names.split())
    assert [label for _, label in listed(raw, "test")] == labels
    assert opened(raw).class_names == tuple(train.split())


def test_two_spellings_of_one_class_are_refused_by_name(tmp_path: Path) -> None:
    raw = tree(tmp_path, f"{COMPOSED}/1.jpg", f"{DECOMPOSED}/1.jpg")
    with pytest.raises(InputError, match=r"two classes that differ expected, 'cafe\\u0301' and 'caf\\xe9' are one"):
        opened(raw)


def test_what_archivers_add_is_no_class_and_an_empty_folder_is_one(tmp_path: Path) -> None:
    raw = tree(tmp_path, "ant/1.jpg", "__MACOSX/ant/._1.jpg", ".cache/x.jpg", "ant/__MACOSX/1.jpg", "ant/Thumbs.db")
    (raw / "bee").mkdir()
    split = opened(raw)
    assert split.class_names == ("ant", "bee")
    assert listed(raw) == [("ant/1.jpg", 0)]
    assert split.notes == ("classes without an image: bee",)


# ---- splits


@pytest.mark.parametrize(
    "folders",
    ["Training Testing", "Train Test", "TRAIN Valid TEST", "train validation", "training", "train VAL notes"],
)
def test_words_for_splits_are_read_as_such(tmp_path: Path, folders: str) -> None:
    known = {"tr": "train", "va": "val", "te": "test"}
    raw = tree(tmp_path, *(f"{folder}/ant/{folder}.jpg" for folder in folders.split()))
    expected = {known[folder[:2].lower()]: folder for folder in folders.split() if folder != "notes"}
    assert default_splits("folder", raw) == tuple(split for split in ("train", "val", "test") if split in expected)
    for split, folder in expected.items():
        assert listed(raw, split) == [(f"ant/{folder}.jpg", 0)]
        assert opened(raw, split).class_names == ("ant",)


def test_a_class_that_is_called_train_is_one(tmp_path: Path) -> None:
    raw = tree(tmp_path, "Bus/1.jpg", "Car/1.jpg", "Train/1.jpg")
    assert opened(raw).class_names == ("Bus", "Car", "Train")


@pytest.mark.parametrize("split", ["train", "test"])
def test_two_folders_for_one_split_are_refused(tmp_path: Path, split: str) -> None:
    raw = tree(tmp_path, "train/ant/1.jpg", "Training/ant/1.jpg", "test/ant/1.jpg")
    with pytest.raises(InputError, match="one folder for the split train expected, Training and train found"):
        opened(raw, split)


# ---- any tree


def test_any_tree_is_built_without_labels(command: Command, tmp_path: Path) -> None:
    raw = put(tmp_path / "raw", {name: jpeg(i) for i, name in enumerate(("x.jpg", "a/1.jpg", "a/b/c/2.jpg"))})
    arguments = ("build", "folder", "--raw", raw, "--out", tmp_path / "out", "--workers", 1)
    code, _, said = command(*arguments)
    assert code == 2
    assert "both found (1 images, x.jpg the first, and 1 folders, a the first)" in said
    assert "--no-classes" in said
    assert command(*arguments, "--no-classes")[0] == 0
    built = tmp_path / "out" / "folder" / "train"
    manifest = load_manifest(built)
    assert (manifest.num_samples, manifest.class_names, list(manifest.members)) == (3, [], ["jpg"])
    assert command("verify-raw", "folder", "--raw", raw, "--no-classes")[0] == 0
    (built / manifest.shard_name(0)).unlink()
    assert repair(built, raw=raw).repaired == (manifest.shard_name(0),)
    assert command("build", "digits", "--out", tmp_path, "--no-classes")[0] == 2


# ---- links, kinds of files, what is no file


def test_linked_folders_are_read_once_and_loops_are_named(tmp_path: Path) -> None:
    store = tree(tmp_path / "store", "1.jpg", "deep/2.jpg")
    raw = tree(tmp_path / "raw", "ant/0.jpg", "ant/part/3.jpg", "bee/4.jpg")
    for name, target in {
        "ant/more": store,
        "ant/again": store / "deep",  # once, and by the first name
        "ant/self": raw / "ant",
        "ant/up": tmp_path,
        "bee/ants": raw / "ant" / "part",
    }.items():
        (raw / name).symlink_to(target)
    (store / "back").symlink_to(store)
    assert listed(raw) == [
        ("ant/0.jpg", 0),
        ("ant/part/3.jpg", 0),
        ("bee/4.jpg", 1),
        ("ant/again/2.jpg", 0),
        ("ant/more/1.jpg", 0),
    ]
    assert opened(raw).notes == (
        "2 linked folders that are read under another name, not read twice; the first: ant/more/deep, which is "
        "ant/again",
        "3 links to a folder that they are in, not followed; the first: ant/self",
    )


def encoded(codec: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(buffer, codec, **options)
    return buffer.getvalue()


CODECS = {
    **{"jfif": "JPEG", "jpe": "JPEG", "ppm": "PPM", "avif": "AVIF", "jp2": "JPEG2000", "tga": "TGA"},
    **{"bmp": "BMP", "gif": "GIF", "webp": "WEBP", "tiff": "TIFF", "PNG": "PNG"},
}


def test_every_kind_that_a_decoder_reads_is_read_also_without_an_extension(tmp_path: Path) -> None:
    raw = put(tmp_path / "raw", {f"{kind}/1.{kind}": encoded(codec) for kind, codec in CODECS.items()})
    put(raw, {f"{kind}/bare": encoded(codec) for kind, codec in CODECS.items() if codec != "TGA"})
    put(raw, {"ppm/2.pgm": b"P5 1 1 255\n\x07"})
    [manifest] = build("folder", raw=raw, out=tmp_path, options=BuildOptions(limit=1000))
    assert manifest.num_samples == 2 * len(CODECS)
    assert not manifest.exclusions
    assert manifest.notes == []


@pytest.mark.parametrize(
    "text", [b"", b"BM", b"BMW cars of 1990 and later on, a list", b"P1", b"Photos", b"II and III"]
)
def test_a_text_without_an_extension_is_no_image(tmp_path: Path, text: bytes) -> None:
    assert not has_image_magic(text[:NUM_MAGIC_BYTES])
    raw = put(tmp_path, {"ant/1.jpg": JPEG, "ant/README": text})
    assert listed(raw) == [("ant/1.jpg", 0)]
    assert opened(raw).notes == ()


def test_files_that_are_not_read_are_counted_by_kind(tmp_path: Path) -> None:
    raw = tree(
        tmp_path, "ant/1.jpg", "ant/.DS_Store", "ant/2.HEIC", "ant/b/3.heic", "ant/x.txt", "list.csv", "ant/y.a\nb"
    )
    kinds, heic = opened(raw).notes
    assert kinds == "files that are no images by their names, not read: 2 .heic, 1 .csv, 1 .txt, 1 of odd names"
    assert "pillow-heif" in heic
    assert opened(tree(tmp_path / "texts", "ant/1.jpg", "ant/1.xml", "LICENSE.txt")).notes == ()
    only = tree(tmp_path / "only", "ant/1.heic")
    with pytest.raises(InputError, match=r"images expected, none found; .* 1 \.heic; HEIC .*pillow-heif"):
        listed(only)


def test_what_is_no_file_is_counted_and_never_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = tree(tmp_path, "ant/1.jpg")
    os.mkfifo(raw / "ant" / "2.jpg")
    os.mkfifo(raw / "ant" / "bare")
    (raw / "ant" / "3.jpg").symlink_to(raw / "ant" / "2.jpg")
    (raw / "ant" / "4.jpg").symlink_to("/dev/zero")
    (raw / "ant" / "5.jpg").symlink_to(raw / "ant")
    monkeypatch.chdir(raw / "ant")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("6.jpg")
    split = opened(raw)
    assert listed(raw) == [(f"ant/{number}.jpg", 0) for number in (1, 3, 4, 5)]
    assert split.notes == ("3 FIFOs, sockets and devices, not read; the first: ant/2.jpg",)
    for sample in split.samples:
        if sample.name != "ant/1.jpg":
            with pytest.raises(DecodeError, match="no file: a folder, FIFO, socket or device"):
                split.read(sample)
