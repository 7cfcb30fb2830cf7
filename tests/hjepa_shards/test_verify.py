"""Whatever is wrong with a split is found, and exactly the lost samples are named."""

import os
import shutil
from pathlib import Path

import pytest

from hjepa_shards.errors import SidecarError
from hjepa_shards.manifest import load_manifest
from hjepa_shards.sidecar import Sidecar
from hjepa_shards.verify import keys_of, verify


@pytest.fixture
def split(shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shards / "digits" / "train", tmp_path / "train"))


def shard(split: Path, number: int) -> Path:
    return split / f"digits-train-{number:06}.tar"


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 4
    path.write_bytes(data)


def index_of(path: Path) -> Sidecar:
    return Sidecar(path.with_name(path.name + ".index"))


def test_a_whole_split_has_no_problem_and_reports_progress(split: Path) -> None:
    seen: list[tuple[int, int]] = []
    assert verify(split, lambda done, total: seen.append((done, total))) == []
    total = sum(path.stat().st_size for path in split.glob("*.tar"))
    assert seen[-1] == (total, total)


def test_a_flipped_bit_in_an_image_loses_exactly_that_sample(split: Path) -> None:
    row = index_of(shard(split, 1)).row(7)
    flip(shard(split, 1), int(row["image_offset"]) + int(row["image_bytes"]) // 2)
    [problem] = verify(split)
    assert problem.path == shard(split, 1)
    assert problem.lost_samples == (48 + 7,)


def test_a_flipped_bit_between_images_is_found_and_loses_none(split: Path) -> None:
    flip(shard(split, 0), 5)  # a name in a tar header
    [problem] = verify(split)
    assert "sha256" in problem.what
    assert problem.lost_samples == ()


def test_a_cut_shard_loses_exactly_the_samples_behind_the_cut(split: Path) -> None:
    row = index_of(shard(split, 2)).row(40)
    os.truncate(shard(split, 2), int(row["image_offset"]) + 3)
    [problem] = verify(split)
    assert "bytes expected" in problem.what
    assert problem.lost_samples == tuple(range(96 + 40, 96 + 48))


def test_a_missing_shard_loses_all_of_its_samples(split: Path) -> None:
    shard(split, 4).unlink()
    [problem] = verify(split)
    assert "is missing" in problem.what
    assert problem.lost_samples == tuple(range(192, 200))


def test_swapped_shards_are_both_found(split: Path) -> None:
    shard(split, 0).rename(split / "x")
    shard(split, 1).rename(shard(split, 0))
    (split / "x").rename(shard(split, 1))
    problems = verify(split)
    assert [problem.path for problem in problems] == [shard(split, 0), shard(split, 1)]
    assert problems[0].lost_samples == tuple(range(48))
    assert problems[1].lost_samples == tuple(range(48, 96))


def test_a_sidecar_that_is_missing_damaged_or_of_another_shard_is_found(split: Path) -> None:
    indices = [path.with_name(path.name + ".index") for path in (shard(split, i) for i in range(4))]
    indices[0].unlink()
    flip(indices[1], 70)
    shutil.copy(indices[3], indices[2])
    assert [problem.path for problem in verify(split)] == indices[:3]
    assert not any(problem.lost_samples for problem in verify(split))


def test_files_that_the_manifest_does_not_know_are_named(split: Path) -> None:
    (split / "digits-train-000009.tar").write_bytes(b"")
    (split / "digits-train-000009.tar.index").write_bytes(b"")
    assert [problem.path.name for problem in verify(split)] == [
        "digits-train-000009.tar",
        "digits-train-000009.tar.index",
    ]


def test_keys_come_in_the_order_of_the_samples(split: Path, shards: Path) -> None:
    keys = keys_of(split, load_manifest(split), 1)
    assert len(set(keys)) == 48
    shutil.copy(shards / "scattered" / "train" / "scattered-train-000000.tar", shard(split, 1))
    with pytest.raises(SidecarError, match="no member starts"):
        keys_of(split, load_manifest(split), 1)
