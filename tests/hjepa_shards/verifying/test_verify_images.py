"""Shards whose checksums are right and whose samples are not: `verify` is content, `verify_deep` is not."""

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
import pytest

from hjepa_shards.building.index_tars import index_tars
from hjepa_shards.shards.exclusions import read_exclusions
from hjepa_shards.shards.manifest import load_manifest, save_manifest
from hjepa_shards.shards.sidecar import Sidecar, pack
from hjepa_shards.verifying.verify_images import verify_deep
from hjepa_shards.verifying.verify_split import verify
from tests.conftest import Command
from tests.hjepa_shards.building.test_index_tars import write_tar
from tests.hjepa_shards.images.test_png_chunks import DAMAGED, WHOLE
from tests.hjepa_shards.verifying.test_verify_split import flip, index_path, keys, shard

Change = Callable[[Any, bytearray], None]


@pytest.fixture
def split(shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shards / "digits" / "train", tmp_path / "train"))


def forge(split: Path, change: Change, number: int = 1) -> None:
    """Change rows and tar of a shard, then make sidecar and manifest agree with that."""
    path = shard(split, number)
    sidecar = Sidecar(index_path(path))
    rows, tar = sidecar.checked_rows().copy(), bytearray(path.read_bytes())
    change(rows, tar)
    path.write_bytes(tar)
    index = pack(rows, flags=sidecar.flags, tar_bytes=len(tar), keys_digest=sidecar.keys_digest)
    index_path(path).write_bytes(index)
    manifest = load_manifest(split)
    shas, index_shas, sizes = list(manifest.shard_sha256), list(manifest.index_sha256), manifest.shard_bytes.copy()
    shas[number], index_shas[number] = hashlib.sha256(tar).hexdigest(), hashlib.sha256(index).hexdigest()
    sizes[number] = len(tar)
    save_manifest(split, replace(manifest, shard_sha256=shas, index_sha256=index_shas, shard_bytes=sizes))


def test_what_was_built_or_indexed_is_right_inside(shards: Path, tmp_path: Path) -> None:
    for folder in (shards / "digits" / "train", shards / "photos" / "train"):
        seen: list[tuple[int, int]] = []
        assert verify_deep(folder, lambda done, total, seen=seen: seen.append((done, total)), 2) == []
        assert seen == sorted(seen)
        assert seen[-1][0] == seen[-1][1]
        copy = tmp_path / folder.parent.name / "train"
        copy.mkdir(parents=True)
        for path in folder.glob("*.tar"):
            shutil.copy(path, copy)
        index_tars(copy)
        assert verify_deep(copy) == []


def test_damaged_files_are_reported_once_and_the_other_shards_looked_into(split: Path) -> None:
    def label(rows: Any, tar: bytearray) -> None:
        rows["label"][3] += 1

    forge(split, label, number=2)
    flip(shard(split, 0), 5)
    damaged, forged = verify_deep(split)
    assert damaged.path == shard(split, 0)
    assert (forged.shard, forged.lost_samples) == (2, (96 + 3,))


def bytes_of_image(row: Any) -> slice:
    return slice(int(row["image_offset"]), int(row["image_offset"] + row["image_bytes"]))


def broken_image(rows: Any, tar: bytearray) -> None:
    span = bytes_of_image(rows[5])
    tar[span] = tar[span][:40] + bytes(len(tar[span]) - 40)
    rows["image_crc32"][5] = crc32(tar[span])


def other_pixels(rows: Any, tar: bytearray) -> None:
    tar[rows[5]["image_offset"] + 45] ^= 1


def other_label_in_the_tar(rows: Any, tar: bytearray) -> None:
    start = int(rows[5]["image_offset"]) + -(-int(rows[5]["image_bytes"]) // 512) * 512 + 512
    assert tar[start : start + 1] == str(rows["label"][5]).encode()
    tar[start] = ord("0") + (int(rows["label"][5]) + 1) % 10


def moved(rows: Any, tar: bytearray) -> None:
    rows["image_offset"][5] += 1


def changed(column: str, value: int) -> Change:
    def change(rows: Any, tar: bytearray) -> None:
        assert rows[column][5] != value
        rows[column][5] = value

    return change


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (broken_image, "cannot be decoded"),
        (other_pixels, "crc32"),
        (other_label_in_the_tar, "label is not the row's"),
        (moved, "no member of the tar starts"),
        (changed("image_bytes", 90), "image member is not the row's"),
        (changed("key_hash", 7), "key is not the row's"),
        (changed("label", 77), "label is no class"),
        (changed("codec", 1), "codec is not the row's"),
        (changed("width", 9), "width is not the row's"),
        (changed("height", 9), "pixels are not as many"),
        (changed("colour", 3), "colour is not the row's"),
        (changed("orientation", 6), "orientation is not the row's"),
    ],
)
def test_a_sample_that_is_not_what_its_row_says_is_named(split: Path, change: Change, said: str) -> None:
    forge(split, change)
    assert verify(split) == []
    found = verify_deep(split, workers=2)
    [problem] = [problem for problem in found if said in problem.what]
    assert problem.path == shard(split, 1)
    assert problem.lost_samples == (48 + 5,)
    assert problem.lost_keys in ((keys(split, 1)[5],), (None,))


def test_rows_in_another_order_are_found(split: Path) -> None:
    def exchange(rows: Any, tar: bytearray) -> None:
        rows[[3, 4]] = rows[[4, 3]]

    forge(split, exchange)
    [problem] = verify_deep(split)
    assert "in that order" in problem.what


def test_a_tar_with_more_members_than_rows_is_found(split: Path) -> None:
    def fewer(rows: Any, tar: bytearray) -> None:
        end = int(rows[-1]["image_offset"]) - 512
        member = bytes(tar[end:-1024])
        tar[-1024:] = member + bytes(1024)

    forge(split, fewer)
    assert ["other members" in problem.what for problem in verify_deep(split)] == [True]


def test_a_sidecar_of_other_numbers_than_the_manifest_is_found(split: Path) -> None:
    manifest = load_manifest(split)
    digests = list(manifest.keys_digest)
    digests[2] = "0" * 32
    save_manifest(split, replace(manifest, keys_digest=digests))
    [problem] = verify_deep(split)
    assert problem.path == shard(split, 2)
    assert "header" in problem.what
    assert verify(split) == []


def test_a_tar_whose_headers_are_none_is_found(split: Path) -> None:
    def without_header(rows: Any, tar: bytearray) -> None:
        tar[0:512] = np.random.default_rng(0).bytes(512)

    forge(split, without_header)
    [problem] = verify_deep(split)
    assert "cannot be read" in problem.what


def test_what_cannot_be_decoded_becomes_a_list_that_a_build_excludes(
    split: Path, command: Command, tmp_path: Path
) -> None:
    def another_label(rows: Any, tar: bytearray) -> None:
        rows["label"][3] += 1

    forge(split, broken_image, number=1)
    forge(split, another_label, number=2)
    out = tmp_path / "bad.jsonl"
    code, said, _ = command("verify", split, "--deep", "--out", out)
    assert code == 1
    assert f"{out}: 1 images to exclude" in said.replace("\n", "")
    assert "1 other problems are not in it" in said
    [key] = [keys(split, 1)[5]]
    assert read_exclusions(out, "digits", "train") == {key: "the image cannot be decoded"}
    code, said, _ = command("build", "digits", "--split", "train", "--exclude", out, "--out", tmp_path, "--workers", 1)
    assert (code, "1 samples excluded on request" in said) == (0, True)
    assert "digits-train: all 1,346 images were decoded" in said
    assert command("verify", split, "--out", out)[0] == 2


def test_of_pngs_damage_that_training_would_show_is_found(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {f"{i}.png": data for i, data in enumerate((WHOLE, *DAMAGED.values()))})
    manifest = index_tars(tmp_path)
    [problem] = verify_deep(tmp_path)
    assert problem.is_of_images
    assert len(problem.lost_samples) == manifest.num_samples - 1
    assert 0 not in problem.lost_samples
