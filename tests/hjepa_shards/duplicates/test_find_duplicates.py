"""Planted duplicates are found and nothing else; what stays and what is excluded follows the rule."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hjepa_shards.building.build import BuildOptions, build
from hjepa_shards.building.index_tars import index_tars
from hjepa_shards.duplicates.find_duplicates import Duplicates, Group, find_duplicates
from hjepa_shards.errors import InputError
from hjepa_shards.shards.manifest import load_manifest
from hjepa_shards.shards.raw_sample import decode_key
from hjepa_shards.shards.tar import TarWriter, scan
from hjepa_shards.sources.registry import open_split
from tests.hjepa_shards.duplicates.test_perceptual_hash import Pixels, encoded, tile
from tests.hjepa_shards.verifying.test_verify_split import flip, index_of

Images = dict[str, tuple[bytes, int]]
"""Key -> encoded image and label."""


def split_of(root: Path, name: str, images: Images, per_shard: int = 4) -> Path:
    """A split (source/split) of these images, in this order."""
    folder = root / name
    folder.mkdir(parents=True)
    entries = list(images.items())
    for number in range(-(-len(entries) // per_shard)):
        with (folder / f"{number:06}.tar").open("wb") as file:
            tar = TarWriter(file)
            for key, (data, label) in entries[number * per_shard : (number + 1) * per_shard]:
                tar.add(f"{key}.png", data)
                tar.add(f"{key}.cls", b"%d" % label)
            tar.close()
    index_tars(folder)
    return folder


def png(pixels: Pixels) -> bytes:
    return encoded(np.ascontiguousarray(pixels), "PNG")


def photos(numbers: range, label: int = 0) -> Images:
    return {f"photo{i}": (png(tile(i)), label) for i in numbers}


def links(found: Duplicates) -> list[list[tuple[str, str | None, str]]]:
    return [[(f"{c.source}/{c.split}", c.key, c.kind) for c in group.samples] for group in found.groups]


def excluded(found: Duplicates) -> list[tuple[str, str, str]]:
    return [(e["source"], e["split"], e["key"]) for e in found.exclusions]


def test_different_pictures_are_no_copies(tmp_path: Path) -> None:
    folder = split_of(tmp_path, "a/train", photos(range(12)))
    found = find_duplicates([folder])
    assert (found.groups, found.relations, found.exclusions, found.remarks) == ((), (), (), ())
    assert found.num_samples == 12


def test_each_kind_of_copy_is_found_within_a_split_and_the_first_stays(tmp_path: Path) -> None:
    images = photos(range(8)) | {
        "same-file": (png(tile(2)), 1),
        "same-pixels": (encoded(tile(3), "WEBP", lossless=1), 0),
        "near": (encoded(tile(4), "JPEG", quality=70), 0),
        "mirrored": (png(tile(5)[:, ::-1]), 0),
    }
    folder = split_of(tmp_path, "a/train", images)
    found = find_duplicates([folder], workers=2)
    assert links(found) == [
        [("a/train", f"photo{first}", "first"), ("a/train", key, kind)]
        for first, key, kind in (
            (2, "same-file", "exact"),
            (3, "same-pixels", "exact"),
            (4, "near", "near"),
            (5, "mirrored", "mirrored"),
        )
    ]
    assert [group.kind for group in found.groups] == ["exact", "exact", "near", "mirrored"]
    assert not any(group.leak for group in found.groups)
    assert excluded(found) == [("a", "train", key) for key in ("same-file", "same-pixels", "near", "mirrored")]
    assert [copy.label for copy in found.groups[0].samples] == [0, 1]
    assert [copy.index for copy in found.groups[0].samples] == [2, 8]
    [relation] = found.relations
    assert (relation.first, relation.second, relation.leak) == ("a/train", "a/train", False)
    assert relation.images == {"exact": (2, 2), "near": (1, 1), "mirrored": (1, 1)}


def test_leaks_come_first_and_the_held_out_copy_stays(tmp_path: Path) -> None:
    train = split_of(tmp_path, "a/train", {**photos(range(6)), "again": (png(tile(0)), 0)})
    val = split_of(tmp_path, "a/val", {"v0": (encoded(tile(4), "JPEG", quality=80), 0), "v1": (png(tile(9)), 0)})
    other = split_of(tmp_path, "b/train", {"b0": (png(tile(9)), 0), "b1": (png(tile(1)), 0), "b2": (png(tile(10)), 0)})
    found = find_duplicates([other, train, val])
    assert links(found) == [
        [("a/val", "v0", "first"), ("a/train", "photo4", "near")],
        [("a/val", "v1", "first"), ("b/train", "b0", "exact")],
        [("b/train", "b1", "first"), ("a/train", "photo1", "exact")],
        [("a/train", "photo0", "first"), ("a/train", "again", "exact")],
    ]
    assert [group.leak for group in found.groups] == [True, True, False, False]
    assert [(r.first, r.second, r.leak, r.totals) for r in found.relations] == [
        ("a/val", "b/train", True, (1, 1)),
        ("a/val", "a/train", True, (1, 1)),
        ("b/train", "a/train", False, (1, 1)),
        ("a/train", "a/train", False, (1, 1)),
    ]
    assert excluded(found) == [
        ("b", "train", "b0"),
        ("a", "train", "photo1"),
        ("a", "train", "photo4"),
        ("a", "train", "again"),
    ]
    assert found.exclusions[0]["reason"] == "exact copy of a/val v1"
    assert found.exclusions[2]["reason"].startswith("near copy of a/val v0 (")


def test_held_out_copies_are_reported_and_never_excluded(tmp_path: Path) -> None:
    test = split_of(tmp_path, "a/test", {**photos(range(3)), "again": (png(tile(1)), 0)})
    val = split_of(tmp_path, "a/val", photos(range(1)))
    found = find_duplicates([test, val])
    assert len(found.groups) == 2
    assert not any(group.leak for group in found.groups)
    assert found.exclusions == ()
    assert {(r.first, r.second) for r in found.relations} == {("a/test", "a/test"), ("a/test", "a/val")}


def test_exact_duplicates_are_counted_once_for_each_image_whatever_is_between_them(tmp_path: Path) -> None:
    copies = {f"c{i}": (png(tile(0)), 0) for i in range(3)}
    test = split_of(tmp_path, "a/test", {"t0": (png(tile(0)), 0), "t1": (png(tile(0)), 0), "t2": (png(tile(7)), 0)})
    train = split_of(tmp_path, "a/train", {**copies, "n": (encoded(tile(0), "JPEG", quality=60), 0)})
    found = find_duplicates([train, test])
    totals = {(r.first, r.second): r.images for r in found.relations}
    assert totals["a/test", "a/train"] == {"exact": (2, 3), "near": (0, 1), "mirrored": (0, 0)}
    assert totals["a/train", "a/train"]["exact"] == (1, 2)
    assert len(found.groups) == 1
    assert len(found.exclusions) == 4


def test_a_sample_between_two_copies_does_not_make_them_copies(tmp_path: Path) -> None:
    """Eight crops, each a little further right: neighbours are duplicates, the ends of the row are not."""
    crops = [np.ascontiguousarray(tile(2)[:, 3 * i :][:, :116]) for i in range(8)]
    found = find_duplicates([split_of(tmp_path, "a/train", {f"s{i}": (png(crop), 0) for i, crop in enumerate(crops)})])
    [group] = found.groups
    assert len(group.samples) == 8
    gone = {key for _, _, key in excluded(found)}
    assert 3 <= len(gone) <= 6
    assert all(exclusion["reason"].split()[4] not in gone for exclusion in found.exclusions)


def test_blank_and_tiny_images_are_compared_exactly_only(tmp_path: Path) -> None:
    dice = np.random.default_rng(0)
    blank = {f"blank{i}": (png(np.full((40, 40, 3), 200 + i % 3, np.uint8)), 0) for i in range(6)}
    tiny = {f"tiny{i}": (png(tile(0)[:8, :8] + np.uint8(i)), 0) for i in range(3)}
    noise = {f"noise{i}": (png(dice.integers(0, 256, (40, 40, 3), dtype=np.uint8)), 0) for i in range(3)}
    found = find_duplicates([split_of(tmp_path, "a/train", blank | tiny | noise)])
    assert [[copy.key for copy in group.samples] for group in found.groups] == [
        [f"blank{i}", f"blank{i + 3}"] for i in range(3)
    ]
    assert found.remarks == ("9 images are blank or under 16 pixels: compared exactly only",)


def test_equal_only_at_a_fraction_of_the_size_is_near_not_exact(tmp_path: Path) -> None:
    pixels = tile(0)  # 150 x 150 JPEGs are decoded at half the size
    data = encoded(pixels, "JPEG", quality=100)
    checks = pixels.astype(np.int16)
    checks[::2, ::2] += 1
    checks[1::2, 1::2] += 1
    checks[1::2, ::2] -= 1
    checks[::2, 1::2] -= 1
    other = encoded(np.clip(checks, 0, 255).astype(np.uint8), "JPEG", quality=100)
    comment = data[:2] + b"\xff\xfe\x00\x06abcd" + data[2:]
    images = {"one": (data, 0), "comment": (comment, 0), "other": (other, 0)}
    found = find_duplicates([split_of(tmp_path, "a/train", images)])
    assert links(found) == [
        [("a/train", "one", "first"), ("a/train", "comment", "exact"), ("a/train", "other", "near")]
    ]


def test_damaged_samples_are_skipped_with_a_remark(tmp_path: Path) -> None:
    folder = split_of(tmp_path, "a/train", {**photos(range(4)), "x": (png(tile(1)), 0), "y": (png(tile(2)), 0)})
    row = index_of(folder / "000001.tar").row(0)
    flip(folder / "000001.tar", int(row.image_offset) + 50)
    found = find_duplicates([folder])
    assert links(found) == [[("a/train", "photo2", "first"), ("a/train", "y", "exact")]]
    assert found.remarks == ("a/train: 1 samples are damaged and were skipped; run `hjepa-shards verify`",)


def test_a_copy_whose_key_is_lost_is_said_not_to_be_excluded(tmp_path: Path) -> None:
    folder = split_of(tmp_path, "a/train", {**photos(range(4)), "x": (png(tile(1)), 0)})
    flip(folder / "000001.tar", 0)
    found = find_duplicates([folder])
    assert links(found) == [[("a/train", "photo1", "first"), ("a/train", None, "exact")]]
    assert found.exclusions == ()
    assert "1 duplicates cannot be excluded" in found.remarks[0]


def test_the_result_does_not_depend_on_threads_or_on_a_folder_named_twice(tmp_path: Path, shards: Path) -> None:
    folders = [shards / "photos" / "train", shards / "digits" / "train"]
    images = {**photos(range(5)), **{f"c{i}": (encoded(tile(i), "JPEG", quality=50 + i), 0) for i in range(5)}}
    folders.append(split_of(tmp_path, "a/train", images))
    one = find_duplicates(folders)
    assert len(one.groups) >= 5
    assert find_duplicates([*folders, folders[0]], workers=4) == one


def test_the_files_hold_what_was_found(tmp_path: Path) -> None:
    folder = split_of(tmp_path, "a/train", {**photos(range(3)), "ö[x]": (png(tile(1)), 5)})
    found = find_duplicates([folder])
    found.save_exclusions(tmp_path / "out.jsonl")
    lines = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {"source": "a", "split": "train", "key": "ö[x]", "reason": "exact copy of a/train photo1"}
    ]
    found.save_report(tmp_path / "dup.json")
    report: Any = json.loads((tmp_path / "dup.json").read_text(encoding="utf-8"))
    common = {"source": "a", "split": "train", "distance": 0, "class_name": None}
    assert report["groups"] == [
        {
            "kind": "exact",
            "leak": False,
            "samples": [
                {**common, "index": 1, "key": "photo1", "label": 0, "kind": "first", "excluded": False},
                {**common, "index": 3, "key": "ö[x]", "label": 5, "kind": "exact", "excluded": True},
            ],
        }
    ]
    assert report["counts"]["groups"] == report["counts"]["exact"] == report["counts"]["excluded"] == 1
    assert report["counts"]["relations"][0]["images"]["exact"] == [1, 1]


def test_keys_of_built_splits_are_the_manifests_also_where_names_were_replaced(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    names = ["a b.png", "ü.y.png", f"{'long' * 40}.png", "z.png"]
    for folder in ("first", "second"):
        (raw / folder).mkdir(parents=True)
        for i, name in enumerate(names):
            (raw / folder / name).write_bytes(png(tile(i)))
    [manifest] = build("folder", raw=raw, out=tmp_path / "out", options=BuildOptions(samples_per_shard=3))
    found = find_duplicates([tmp_path / "out" / "folder" / manifest.split])
    manifest = load_manifest(tmp_path / "out" / "folder" / manifest.split)
    assert len(manifest.renamed) == 2
    assert len(found.groups) == 4
    for group in found.groups:
        keys = [str(copy.key) for copy in group.samples]
        pair = {manifest.renamed[key][0] if key in manifest.renamed else f"{decode_key(key)}.png" for key in keys}
        assert pair in [{f"first/{name}", f"second/{name}"} for name in names]


def test_a_build_without_the_copies_holds_the_other_samples_under_the_same_keys(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    for i in range(6):
        (raw / f"{i}.png").write_bytes(png(tile(i % 4)))
    options = BuildOptions(samples_per_shard=4)
    build("folder", raw=raw, out=tmp_path / "all", options=options)
    found = find_duplicates([tmp_path / "all" / "folder" / "train"])
    found.save_exclusions(tmp_path / "out.jsonl")
    options = BuildOptions(samples_per_shard=4, exclude=tmp_path / "out.jsonl")
    build("folder", raw=raw, out=tmp_path / "some", options=options)
    folder = tmp_path / "some" / "folder" / "train"
    assert load_manifest(folder).num_samples == 4
    gone = {exclusion["key"] for exclusion in found.exclusions}
    left = {member.key for path in folder.glob("*.tar") for member in scan(path)}
    assert left | gone == {str(i) for i in range(6)}
    assert not left & gone
    assert find_duplicates([folder]).groups == ()


@pytest.mark.slow
def test_the_published_exact_copies_in_the_test_set_of_cifar100_are_found(real_data: Path, tmp_path: Path) -> None:
    """Barz and Denzler 2020 (ciFAIR) list two exact pairs; some of their near ones are nearer than their eyes saw."""
    raw = real_data / "cifar100-test" / "cifar-100-python"
    build("cifar100", raw=raw, out=tmp_path, splits=("test",))
    folder = tmp_path / "cifar100" / "test"
    renamed = load_manifest(folder).renamed
    by_name = {sample.name.removesuffix(".png"): sample.index for sample in open_split("cifar100", raw, "test").samples}

    def places(group: Group) -> set[int]:
        keys = [str(copy.key) for copy in group.samples]
        return {renamed[key][1] if key in renamed else by_name[decode_key(key)] for key in keys}

    found = find_duplicates([folder], workers=2)
    assert [places(group) for group in found.groups if group.kind == "exact"] in (
        [{3438, 7715}, {4654, 6709}],
        [{4654, 6709}, {3438, 7715}],
    )
    groups = [places(group) for group in found.groups]
    near = ((5421, 8001), (360, 1262), (2968, 6800), (5644, 9292), (2219, 8713), (2961, 6688))
    assert sum(any(set(pair) <= group for group in groups) for pair in near) >= 3
    assert 2 <= len(found.groups) < 200


def test_a_wrong_distance_is_refused(tmp_path: Path) -> None:
    folder = split_of(tmp_path, "a/train", photos(range(2)))
    for near in (-1, 16):
        with pytest.raises(InputError, match="--near"):
            find_duplicates([folder], near=near)
