"""COCO: images with all their captions, real ones too; and hostile annotation files."""

import copy
import json
import pickle
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hjepa_shards.building.build import BuildOptions, build
from hjepa_shards.errors import DecodeError, InputError, ShardError
from hjepa_shards.sources.registry import open_split
from tests.hjepa_shards.sources.layouts import jpeg, put

LICENCES = [{"id": 4, "name": "Attribution License", "url": "x"}, {"id": 5, "name": "Attribution-ShareAlike License"}]
CAPTIONS = {
    9: [(31, "A cat. "), (12, "A \u732b on\na mat"), (70, 'He said "no", <b>twice</b>')],
    139: [(8, "A room")],
    25: [],
}


def annotations(captions: dict[int, list[tuple[int, str]]] = CAPTIONS) -> dict[str, Any]:
    """As published: images and captions in no order."""
    return {
        "info": {"description": "COCO 2017 Dataset", "year": 2017},
        "licenses": copy.deepcopy(LICENCES),
        "images": [
            {"license": 4 + place % 2, "file_name": f"{image:012d}.jpg", "height": 24, "width": 32, "id": image}
            for place, image in enumerate(captions)
        ],
        "annotations": [
            {"image_id": image, "id": number, "caption": text}
            for image, texts in reversed(captions.items())
            for number, text in texts
        ],
    }


def raw_of(folder: Path, content: object, images: Iterable[int] = CAPTIONS, split: str = "val") -> Path:
    put(folder / f"{split}2017", {f"{image:012d}.jpg": jpeg(image) for image in images})
    data = content if isinstance(content, bytes) else json.dumps(content).encode()
    return put(folder, {f"annotations/captions_{split}2017.json": data})


# ---- what is read


def test_an_image_has_all_its_captions_in_the_order_of_their_ids(tmp_path: Path) -> None:
    split = open_split("coco", raw_of(tmp_path, annotations()), "val")
    assert {sample.name: sample.captions for sample in split.samples} == {
        "000000000009.jpg": ("A \u732b on\na mat", "A cat. ", 'He said "no", <b>twice</b>'),
        "000000000139.jpg": ("A room",),
        "000000000025.jpg": (),
    }
    assert all(sample.label == -1 and sample.index == 0 for sample in split.samples)
    assert [split.read(sample) for sample in split.samples] == [jpeg(image) for image in CAPTIONS]
    assert split.class_names == ()
    assert split.notes == (
        "licences of the images: 2 Attribution License, 1 Attribution-ShareAlike License",
        "1 images without a caption",
    )


def test_images_that_the_annotations_do_not_cover_are_counted(tmp_path: Path) -> None:
    split = open_split("coco", raw_of(tmp_path, annotations(), images=(*CAPTIONS, 7, 8)), "val")
    assert len(split.samples) == len(CAPTIONS)
    assert split.notes[-1] == "2 images in val2017 that captions_val2017.json does not list: left out"


def test_captions_survive_into_the_shards(tmp_path: Path) -> None:
    raw = raw_of(raw_of(tmp_path / "raw", annotations()), annotations(), split="train")
    train, val = build("coco", raw=raw / ".." / "raw", out=tmp_path / "out", options=BuildOptions(samples_per_shard=8))
    assert train.members == val.members == ["jpg", "txt", "json"]
    tar = (tmp_path / "out" / "coco" / "val" / val.shard_name(0)).read_bytes()
    texts = ("A \u732b on\na mat", "A cat. ", 'He said "no", <b>twice</b>')
    assert json.dumps({"captions": texts}, ensure_ascii=False).encode() in tar
    assert b'{"captions": []}' in tar


def test_unlabelled_images_need_no_captions(tmp_path: Path) -> None:
    content = {key: value for key, value in annotations().items() if key != "annotations"}
    put(tmp_path, {"annotations/image_info_unlabeled2017.json": json.dumps(content).encode()})
    put(tmp_path / "unlabeled2017", {f"{image:012d}.jpg": jpeg(image) for image in CAPTIONS})
    split = open_split("coco", tmp_path, "unlabeled")
    assert len(split.samples) == 3
    assert not any(sample.captions for sample in split.samples)
    assert len(split.notes) == 1


@pytest.mark.parametrize(("split", "images", "captions"), [("train", 26, 130), ("val", 25, 125)])
def test_real_images_have_their_real_captions(real_data: Path, split: str, images: int, captions: int) -> None:
    opened = open_split("coco", real_data / "coco", split)
    content = json.loads((real_data / "coco" / "annotations" / f"captions_{split}2017.json").read_text())
    written = sorted(content["annotations"], key=lambda entry: entry["id"])
    assert (len(opened.samples), sum(len(sample.captions) for sample in opened.samples)) == (images, captions)
    for image, sample in zip(content["images"], opened.samples, strict=True):
        assert sample.name == image["file_name"]
        assert list(sample.captions) == [entry["caption"] for entry in written if entry["image_id"] == image["id"]]
        assert opened.read(sample) == (real_data / "coco" / f"{split}2017" / sample.name).read_bytes()
    assert opened.notes[0].startswith("licences of the images: ")


def test_real_captions_of_the_complete_val_split(tmp_path: Path, real_data: Path) -> None:
    """25 of its 5,000 images are there: as it is, that is refused; with a file for each, all captions come through."""
    complete = (real_data / "coco" / "annotations" / "captions_val2017_complete.json").read_bytes()
    put(tmp_path, {"annotations/captions_val2017.json": complete})
    there = [path.name for path in (real_data / "coco" / "val2017").iterdir()]
    put(tmp_path / "val2017", dict.fromkeys(there, b"x"))
    with pytest.raises(
        InputError,
        match=r"val2017: 5,000 images expected, as .*captions_val2017.json names them, 4,975 of them missing, 0",
    ):
        open_split("coco", tmp_path, "val")
    put(tmp_path / "val2017", dict.fromkeys([image["file_name"] for image in json.loads(complete)["images"]], b"x"))
    split = open_split("coco", tmp_path, "val")
    assert (len(split.samples), sum(len(sample.captions) for sample in split.samples)) == (5000, 25_014)
    assert min(len(sample.captions) for sample in split.samples) == 5


def test_it_is_what_torchvision_reads(tmp_path: Path) -> None:
    pytest.importorskip("pycocotools", reason="torchvision's CocoCaptions needs pycocotools")
    datasets = pytest.importorskip("torchvision.datasets")
    raw = raw_of(tmp_path, annotations())
    theirs = datasets.CocoCaptions(str(raw / "val2017"), str(raw / "annotations" / "captions_val2017.json"))
    opened = {sample.name: sample for sample in open_split("coco", raw, "val").samples}
    for image, (_, captions) in zip(theirs.ids, theirs, strict=True):
        assert sorted(captions) == sorted(opened[f"{image:012d}.jpg"].captions)


# ---- absent images


def test_a_few_absent_images_are_excluded_by_name(tmp_path: Path) -> None:
    content = annotations({image: [(image, f"number {image}")] for image in range(1, 151)})
    raw = raw_of(tmp_path / "raw", content, images=range(2, 151))
    [manifest] = build("coco", raw=raw, out=tmp_path / "out", splits=("val",))
    assert manifest.num_samples == 149
    assert manifest.exclusions == [
        {"name": "000000000001.jpg", "index": 0, "reason": "named by captions_val2017.json, not among the images"}
    ]
    split = open_split("coco", raw, "val")
    with pytest.raises(DecodeError, match="not among the images"):
        pickle.loads(pickle.dumps(split)).read(split.samples[0])


def test_a_split_travels_without_its_captions(tmp_path: Path) -> None:
    content = annotations({image: [(image, f"number {image}")] for image in range(1, 151)})
    split = open_split("coco", raw_of(tmp_path, content, images=range(1, 151)), "val")
    assert len(pickle.dumps(split)) < 1000


def test_a_missing_folder_or_annotation_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "train2017").mkdir()
    with pytest.raises(
        InputError,
        match=r"annotations/captions_train2017.json expected, train2017 found; fetch train2017.zip and the annotations",
    ):
        open_split("coco", tmp_path, "train")


# ---- hostile annotations


def with_image(**changed: object) -> dict[str, Any]:
    content = annotations()
    content["images"][1] |= changed
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "annotations in JSON expected, JSONDecodeError"),
        (b"<!DOCTYPE html>", "annotations in JSON expected"),
        (b"\xff\xfe\x00", "annotations in JSON expected"),
        (b"[" * 100_000, "annotations in JSON expected, RecursionError"),
        (b'{"images": [' + b"9" * 5000 + b"]}", "annotations in JSON expected"),
        (b"[]", r"an object with images and annotations expected, \[\] found"),
        ({"images": {}}, r"images: a list of objects expected, \{\} found"),
        ({"images": [7]}, r"images: a list of objects expected, \[7\] found"),
        ({"images": []}, "images expected, none listed"),
        (with_image(id="139"), "id: a whole number expected, '139' found in"),
        (with_image(id=True), "id: a whole number expected, True found in"),
        (with_image(id=9), "3 images expected to have an id each, two share one"),
        (with_image(file_name=None), "file_name: a text expected, None found in"),
        (
            with_image(file_name="../../etc/x.jpg"),
            "file_name: an image such as 000000000139.jpg expected, '../../etc/x",
        ),
        (with_image(file_name="/etc/x.jpg"), "file_name: an image such as"),
        (with_image(file_name="x\0.jpg"), "file_name: an image such as"),
        (with_image(file_name="\ud800.jpg"), "file_name: an image such as"),
        (with_image(file_name="passwd"), "file_name: an image such as"),
        (with_image(file_name="000000000009.jpg"), "names 000000000009.jpg twice"),
        (with_image(license=[]), r"license: a whole number expected, \[\] found"),
        (annotations() | {"annotations": None}, "annotations: a list of objects expected, None found"),
        (annotations() | {"annotations": [{"image_id": 9, "id": 1}]}, "caption: a text expected, None found"),
        (annotations() | {"annotations": [{"image_id": 9.5, "id": 1}]}, "image_id: a whole number expected, 9.5 found"),
        (annotations() | {"licenses": [{"id": 1, "name": 1}]}, "name: a text expected, 1 found"),
    ],
)
def test_hostile_annotations_are_refused_by_name(tmp_path: Path, content: object, message: str) -> None:
    with pytest.raises(ShardError, match=f"captions_val2017.json: {message}.*unpack or fetch it again"):
        open_split("coco", raw_of(tmp_path, content), "val")


def test_captions_of_unlisted_images_are_counted_and_half_surrogates_replaced(tmp_path: Path) -> None:
    content = annotations()
    content["annotations"] += [
        {"image_id": 1000, "id": 1, "caption": "whose?"},
        {"image_id": 25, "id": 2, "caption": "half \ud83d of a smile"},
    ]
    split = open_split("coco", raw_of(tmp_path, content), "val")
    assert split.samples[2].captions == ("half ? of a smile",)
    assert "1 captions belong to images that captions_val2017.json does not list" in split.notes


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["images", "annotations", "id", "file_name", "caption", "license"]), inner)
    ),
    max_leaves=12,
)


@pytest.fixture(scope="module")
def changed_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return raw_of(tmp_path_factory.mktemp("changed"), annotations())


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_changed_annotations_give_our_own_errors_or_proper_samples(changed_folder: Path, data: st.DataObject) -> None:
    content: Any = annotations()
    for _ in range(data.draw(st.integers(1, 2))):
        place = content[data.draw(st.sampled_from(["images", "annotations", "licenses"]))]
        entry = data.draw(st.sampled_from(place)) if isinstance(place, list) and place else None
        if isinstance(entry, dict) and entry:
            entry[data.draw(st.sampled_from(sorted(entry)))] = data.draw(JSON)
        content |= data.draw(st.fixed_dictionaries({}, optional={"images": JSON, "annotations": JSON}))
    raw = put(changed_folder, {"annotations/captions_val2017.json": json.dumps(content).encode()})
    try:
        split = open_split("coco", raw, "val")
    except (InputError, ShardError):
        return
    for sample in split.samples:
        assert "/" not in sample.name
        assert all(text.encode() is not None for text in (sample.name, *sample.captions))
    assert all(note.encode() is not None for note in split.notes)
