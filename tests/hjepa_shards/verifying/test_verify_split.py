"""Whatever is wrong with a split is found, and exactly the lost samples are named."""

import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from hjepa_shards.building.build import BuildOptions, build
from hjepa_shards.building.index_tars import index_tars
from hjepa_shards.errors import ManifestError
from hjepa_shards.shards.manifest import load_manifest
from hjepa_shards.shards.sidecar import HEADER_BYTES, ROW, Sidecar
from hjepa_shards.shards.tar import scan
from hjepa_shards.verifying.verify_split import Problem, verify, without_manifest


@pytest.fixture
def split(shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shards / "digits" / "train", tmp_path / "train"))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three shards of at most 10 samples."""
    root = tmp_path_factory.mktemp("small")
    build("digits", raw=None, out=root, splits=("train",), options=BuildOptions(samples_per_shard=10, limit=24))
    return root / "digits" / "train"


def shard(split: Path, number: int) -> Path:
    return split / f"digits-train-{number:06}.tar"


def flip(path: Path, offset: int, bit: int = 2) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1 << bit
    path.write_bytes(data)


def index_path(path: Path) -> Path:
    return path.with_name(path.name + ".index")


def index_of(path: Path) -> Sidecar:
    return Sidecar(index_path(path))


def swap(one: Path, other: Path) -> None:
    spare = one.with_name("spare")
    one.rename(spare)
    other.rename(one)
    spare.rename(other)


def keys(split: Path, number: int) -> list[str]:
    return [member.key for member in scan(shard(split, number)) if member.extension == "png"]


def test_a_whole_split_has_no_problem_and_reports_progress(split: Path) -> None:
    for workers in (1, 3):
        seen: list[tuple[int, int]] = []
        assert verify(split, lambda done, total, seen=seen: seen.append((done, total)), workers) == []
        total = sum(path.stat().st_size for path in split.glob("*.tar"))
        assert seen[-1] == (total, total)
        assert seen == sorted(seen)


def test_any_number_of_threads_finds_the_same(split: Path) -> None:
    flip(shard(split, 3), 5000)
    shard(split, 1).unlink()
    flip(index_path(shard(split, 0)), 100)
    found = verify(split)
    assert [problem.shard for problem in found] == [0, 1, 3]
    assert verify(split, workers=4) == found


@pytest.mark.parametrize("name", ["digits-train-000001.tar", "digits-train-000002.tar.index", "manifest.json"])
def test_every_flipped_bit_is_found_and_names_the_sample_that_it_hit(small: Path, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(small, tmp_path / "train"))
    path = folder / name
    whole = path.read_bytes()
    rows = index_of(shard(folder, 1)).checked_rows()
    images = {
        10 + i: range(int(row.image_offset), int(row.image_offset + row.image_bytes)) for i, row in enumerate(rows)
    }
    dice = random.Random(name)
    for bit in dice.sample(range(8 * len(whole)), 150):
        flip(path, bit // 8, bit % 8)
        if name == "manifest.json":
            with pytest.raises(ManifestError, match="checksum"):
                verify(folder)
        else:
            [problem] = verify(folder)
            assert problem.path == path
            hit = tuple(sample for sample, image in images.items() if bit // 8 in image)
            assert problem.lost_samples == (() if name.endswith(".index") else hit)
        path.write_bytes(whole)
    assert verify(folder) == []


def test_a_flipped_bit_in_an_image_loses_exactly_that_sample(split: Path) -> None:
    row = index_of(shard(split, 1)).row(7)
    flip(shard(split, 1), int(row.image_offset) + int(row.image_bytes) // 2)
    [problem] = verify(split)
    assert problem.path == shard(split, 1)
    assert problem.shard == 1
    assert problem.lost_samples == (48 + 7,)
    assert problem.lost_keys == (keys(split, 1)[7],)


def test_a_flipped_bit_between_images_is_found_and_loses_none(split: Path) -> None:
    flip(shard(split, 0), 5)  # a name in a tar header
    [problem] = verify(split)
    assert "sha256" in problem.what
    assert problem.lost_samples == ()


def test_a_cut_shard_loses_exactly_the_samples_after_the_cut(split: Path) -> None:
    row = index_of(shard(split, 2)).row(40)
    expected = keys(split, 2)
    os.truncate(shard(split, 2), int(row.image_offset) + 3)
    [problem] = verify(split)
    assert "bytes expected" in problem.what
    assert problem.lost_samples == tuple(range(96 + 40, 96 + 48))
    assert problem.lost_keys == (expected[40], *[None] * 7)  # its header is still there, the others went with the rest


def test_appended_bytes_are_found_and_lose_none(split: Path) -> None:
    for path in (shard(split, 0), index_path(shard(split, 2))):
        with path.open("ab") as file:
            file.write(b"\0")
    problems = verify(split)
    assert [problem.path for problem in problems] == [shard(split, 0), index_path(shard(split, 2))]
    assert all("bytes expected" in problem.what and not problem.lost_samples for problem in problems)


def test_an_empty_file_is_found(split: Path) -> None:
    os.truncate(shard(split, 0), 0)
    os.truncate(index_path(shard(split, 1)), 0)
    assert [(problem.path, len(problem.lost_samples)) for problem in verify(split)] == [
        (shard(split, 0), 48),
        (index_path(shard(split, 1)), 0),
    ]


def test_a_missing_shard_loses_all_of_its_samples(split: Path) -> None:
    shard(split, 4).unlink()
    [problem] = verify(split)
    assert "is missing" in problem.what
    assert problem.lost_samples == tuple(range(192, 200))
    assert problem.lost_keys == (None,) * 8


def test_swapped_shards_are_both_found(split: Path) -> None:
    swap(shard(split, 0), shard(split, 1))
    problems = verify(split)
    assert [problem.path for problem in problems] == [shard(split, 0), shard(split, 1)]
    assert problems[0].lost_samples == tuple(range(48))
    assert problems[1].lost_samples == tuple(range(48, 96))


def test_swapped_sidecars_are_both_found_and_called_so(split: Path) -> None:
    a, b = index_path(shard(split, 0)), index_path(shard(split, 1))
    swap(a, b)
    problems = verify(split)
    assert [problem.path for problem in problems] == [a, b]
    assert problems[0].what.startswith(f"sha256 is that of {b.name}: swapped")
    assert not any(problem.lost_samples for problem in problems)


def test_a_sidecar_that_is_missing_damaged_or_of_another_shard_is_found(split: Path) -> None:
    indices = [index_path(shard(split, i)) for i in range(4)]
    indices[0].unlink()
    flip(indices[1], 70)
    shutil.copy(indices[3], indices[2])
    assert [problem.path for problem in verify(split)] == indices[:3]
    assert not any(problem.lost_samples for problem in verify(split))


def test_what_a_damaged_sidecar_still_describes_is_not_lost(split: Path) -> None:
    flip(shard(split, 0), 5)  # no sample
    flip(index_path(shard(split, 0)), HEADER_BYTES + 7 * ROW.itemsize + 9)
    flip(index_path(shard(split, 0)), 3)  # the header
    index, tar = verify(split)
    assert index.lost_samples == ()
    assert tar.lost_samples == (7,)
    assert tar.lost_keys == (None,)
    assert "its index" in tar.what


def test_files_that_the_manifest_does_not_know_are_named(split: Path) -> None:
    names = ["digits-train-000009.tar", "digits-train-000009.tar.index", ".digits-train-000002.tar.123.tmp"]
    for name in names:
        (split / name).write_bytes(b"")
    assert [problem.name for problem in verify(split)] == names


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no file here whose first byte cannot be read")
def test_a_file_that_cannot_be_read_is_a_problem_of_that_file(split: Path) -> None:
    for path in (shard(split, 0), index_path(shard(split, 1)), index_path(shard(split, 2))):
        path.unlink()
        path.symlink_to("/proc/self/mem")  # reading there is EIO
    index_path(shard(split, 3)).unlink()
    index_path(shard(split, 3)).mkdir()
    flip(shard(split, 2), 5)
    found = {problem.path: problem for problem in verify(split)}
    assert list(found) == [
        shard(split, 0),
        index_path(shard(split, 1)),
        index_path(shard(split, 2)),
        shard(split, 2),
        index_path(shard(split, 3)),
    ]
    assert len(found[shard(split, 0)].lost_samples) == 48
    assert len(found[shard(split, 2)].lost_samples) == 48


@pytest.fixture
def foreign(shards: Path) -> Iterator[Path]:
    """A split that another user may look into, while this process is that user."""
    root = Path(tempfile.mkdtemp())
    root.chmod(0o755)
    folder = Path(shutil.copytree(shards / "digits" / "train", root / "train"))
    was = os.geteuid()
    try:
        yield folder
    finally:
        os.seteuid(was)
        shutil.rmtree(root)


def test_a_file_without_permission_is_a_problem_of_that_file(foreign: Path) -> None:
    shard(foreign, 1).chmod(0)
    index_path(shard(foreign, 2)).chmod(0)
    if os.geteuid() == 0:
        os.seteuid(65534)
    tar, index = verify(foreign)
    assert (tar.path, index.path) == (shard(foreign, 1), index_path(shard(foreign, 2)))
    assert tar.what.startswith("cannot be read: Permission denied")
    assert tar.lost_samples == tuple(range(48, 96))
    assert index.what.startswith("cannot be read: Permission denied")
    assert index.lost_samples == ()


def test_a_manifest_without_permission_is_an_error_that_says_so(foreign: Path) -> None:
    (foreign / "manifest.json").chmod(0)
    if os.geteuid() == 0:
        os.seteuid(65534)
    with pytest.raises(ManifestError, match="Permission denied"):
        verify(foreign)


def test_tars_without_a_manifest_are_named_with_what_to_do(split: Path, tmp_path: Path) -> None:
    assert without_manifest(tmp_path) == []
    (split / "manifest.json").unlink()
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(shard(split, 0), other / "a.tar")
    (tmp_path / "just-begun" / ".journal").mkdir(parents=True)

    def said(problems: list[Problem]) -> dict[str, str]:
        return {problem.name: problem.what for problem in problems}

    found = said(without_manifest(tmp_path))
    assert list(found) == ["just-begun", "other", "train"]
    assert "0 tars" in found["just-begun"]
    assert "unfinished build" in found["just-begun"]
    assert "1 tars" in found["other"]
    assert "hjepa-shards index" in found["other"]
    assert "5 tars" in found["train"]
    assert "unfinished build" in found["train"]


def test_problems_of_indexed_tars_say_to_index_or_to_fetch(split: Path, tmp_path: Path) -> None:
    folder = tmp_path / "foreign" / "train"
    folder.mkdir(parents=True)
    for number in range(2):
        shutil.copy(shard(split, number), folder / f"{number}.tar")
    index_tars(folder)
    assert verify(folder) == []
    flip(folder / "0.tar", 5)
    flip(folder / "1.tar.index", 5)
    tar, index = verify(folder)
    assert "fetch it again" in tar.what
    assert "`hjepa-shards index`" in index.what
    assert load_manifest(folder).encoder is None
