"""A build is a pure function of list, settings and encoder: whatever the workers, kills and bad images."""

import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from PIL import Image

from hjepa_shards.building.build import BuildOptions, build
from hjepa_shards.errors import BuildMismatch, InputError
from hjepa_shards.images.encode import EncodeSettings
from hjepa_shards.shards.manifest import Manifest, load_manifest
from hjepa_shards.shards.sidecar import Sidecar
from hjepa_shards.verifying.repair import repair
from hjepa_shards.verifying.verify_split import verify
from tests.conftest import Command

SMALL = BuildOptions(samples_per_shard=48, limit=200)


def digits(out: Path, options: BuildOptions = SMALL) -> Manifest:
    return build("digits", raw=None, out=out, splits=("train",), options=options)[0]


def files_of(folder: Path) -> dict[str, bytes]:
    """What a build leaves, but for its lock and the times of raw files."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name not in (".lock", "raw.json")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def keys_of(folder: Path, manifest: Manifest, shard: int) -> list[str]:
    """Of a shard's samples, in order."""
    with tarfile.open(folder / manifest.shard_name(shard)) as tar:
        return list(dict.fromkeys(name.partition(".")[0] for name in tar.getnames()))


def test_a_limit_keeps_all_classes_and_takes_the_same_images_for_any_larger_one(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    for number in range(60):
        path = raw / f"class{number // 20}" / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    names = []
    for limit in (20, 40, 100):
        options = BuildOptions(samples_per_shard=100, limit=limit)
        build("folder", raw=raw, out=tmp_path / str(limit), options=options)
        folder = tmp_path / str(limit) / "folder" / "train"
        names.append({unquote(key) for key in keys_of(folder, load_manifest(folder), 0)})
    assert [len(found) for found in names] == [20, 40, 60]
    assert names[0] < names[1] < names[2]
    assert {name.partition("/")[0] for name in names[0]} == {"class0", "class1", "class2"}


def test_two_collections_of_one_source_are_under_one_root_and_are_repaired(pictures: Path, tmp_path: Path) -> None:
    folder_build(pictures, tmp_path)
    options = BuildOptions(samples_per_shard=8, name="mine")
    (mine,) = build("folder", raw=pictures / "train" / "a", out=tmp_path, options=options)
    assert (mine.source, mine.raw_source, mine.name) == ("mine", "folder", "mine-train")
    folder = tmp_path / "mine" / "train"
    before = files_of(folder)
    os.truncate(folder / "mine-train-000000.tar", 100)
    assert repair(folder, raw=pictures / "train" / "a").repaired == ("mine-train-000000.tar",)
    assert files_of(folder) == before
    assert not verify(tmp_path / "folder" / "train")


@pytest.mark.parametrize(("name", "message"), [("a/b", "letters, digits"), ("", "letters"), ("coco", "called so")])
def test_a_name_that_would_be_taken_for_something_else_is_refused(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(InputError, match=f"--name.*{message}"):
        build("digits", raw=None, out=tmp_path, options=BuildOptions(name=name))
    assert not list(tmp_path.iterdir())


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """30 images in two classes, 3 of them broken in different ways."""
    raw = tmp_path / "pictures"
    generator = np.random.Generator(np.random.Philox(7))
    for i in range(30):
        path = raw / "train" / "ab"[i % 2] / f"{i:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
    (raw / "train" / "a" / "04.png").write_bytes(b"not an image")
    (raw / "train" / "b" / "11.png").write_bytes(b"")
    whole = (raw / "train" / "a" / "22.png").read_bytes()
    (raw / "train" / "a" / "22.png").write_bytes(whole[: len(whole) // 2])
    return raw


def folder_build(raw: Path, out: Path, workers: int = 1) -> Manifest:
    return build("folder", raw=raw, out=out, options=BuildOptions(samples_per_shard=8, workers=workers))[0]


def test_one_and_two_workers_write_the_same_bytes(shards: Path, tmp_path: Path) -> None:
    progress: list[tuple[int, ...]] = []
    build(
        "digits",
        raw=None,
        out=tmp_path,
        splits=("train",),
        options=BuildOptions(samples_per_shard=48, limit=200, workers=2),
        progress=lambda *numbers: progress.append(numbers),
    )
    assert files_of(tmp_path / "digits" / "train") == files_of(shards / "digits" / "train")
    assert progress[-1] == (200, 200, 200 * 64)


def test_the_slices_are_runs_of_the_shuffle_and_hold_every_sample_once(shards: Path) -> None:
    folder = shards / "digits" / "train"
    manifest = load_manifest(folder)
    assert manifest.shard_samples.tolist() == [48, 48, 48, 48, 8]
    assert manifest.settings["samples_per_shard"] == 48
    keys = [key for shard in range(5) for key in keys_of(folder, manifest, shard)]
    assert len(set(keys)) == 200
    assert keys != sorted(keys)
    assert verify(folder) == []


def test_shards_of_tiny_images_are_as_large_as_requested(tmp_path: Path) -> None:
    """A digit is 150 bytes of PNG and 2 KiB of tar."""
    options = BuildOptions(shard_mb=1)
    (manifest,) = build("digits", raw=None, out=tmp_path, splits=("train",), options=options)
    full = manifest.shard_bytes[:-1] / 2**20
    assert len(full) >= 2
    assert all(abs(full - 1) < 0.15)


def test_excluded_images_are_named_and_nothing_else_moves(pictures: Path, tmp_path: Path) -> None:
    manifest = folder_build(pictures, tmp_path / "with")
    assert sorted(e["name"] for e in manifest.exclusions) == ["a/04.png", "a/22.png", "b/11.png"]
    assert all(e["reason"] and "0x" not in e["reason"] for e in manifest.exclusions)
    assert manifest.num_samples == 27
    broken = {"a%2F04", "a%2F22", "b%2F11"}
    for name in ("a/04", "b/11", "a/22"):
        Image.new("RGB", (20, 20)).save(pictures / "train" / f"{name}.png")
    whole = folder_build(pictures, tmp_path / "whole")
    assert whole.shard_samples.tolist() == [8, 8, 8, 6]
    for shard in range(4):
        expected = [key for key in keys_of(tmp_path / "whole/folder/train", whole, shard) if key not in broken]
        assert keys_of(tmp_path / "with/folder/train", manifest, shard) == expected


def test_a_build_with_bad_images_is_the_same_for_any_workers(pictures: Path, tmp_path: Path) -> None:
    folder_build(pictures, tmp_path / "one")
    folder_build(pictures, tmp_path / "two", workers=2)
    assert files_of(tmp_path / "one") == files_of(tmp_path / "two")


def test_a_shard_of_nothing_but_bad_images_stays_in_its_place(pictures: Path, tmp_path: Path) -> None:
    before = folder_build(pictures, tmp_path / "before")
    lost = keys_of(tmp_path / "before/folder/train", before, 1)
    for key in lost:
        (pictures / "train" / (key.replace("%2F", "/") + ".png")).write_bytes(b"bad")
    after = folder_build(pictures, tmp_path / "after")
    expected = before.shard_samples.copy()
    expected[1] = 0
    assert after.shard_samples.tolist() == expected.tolist()
    assert len(Sidecar(tmp_path / "after/folder/train/folder-train-000001.tar.index")) == 0
    assert verify(tmp_path / "after/folder/train") == []


@pytest.mark.parametrize(("workers", "kills"), [(1, (0, 6)), (2, (3,))])
def test_a_build_killed_at_any_moment_continues_to_the_same_bytes(
    tmp_path: Path, workers: int, kills: tuple[int, ...]
) -> None:
    command = [sys.executable, "-c", "from hjepa_shards.cli import main; main()"] + (
        f"build scattered --out {tmp_path / 'killed'} --split train --limit 400 --samples-per-shard 40 "
        f"--workers {workers}"
    ).split()
    folder = tmp_path / "killed" / "scattered" / "train"
    for shards_before_the_kill in kills:
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True) as process:
            deadline = time.monotonic() + 20
            while len(list(folder.glob(".journal/scattered*.json"))) < shards_before_the_kill or not folder.exists():
                assert process.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.005)
            os.kill(process.pid, signal.SIGKILL)
        assert not (folder / "manifest.json").exists()
        _wait_for_the_end_of(process.pid)
    options = BuildOptions(samples_per_shard=40, limit=400)
    build("scattered", raw=None, out=tmp_path / "killed", splits=("train",), options=options)
    build("scattered", raw=None, out=tmp_path / "whole", splits=("train",), options=options)
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")


def _wait_for_the_end_of(session: int) -> None:
    """Workers of a killed build end by themselves."""
    deadline = time.monotonic() + 20
    while True:
        try:
            os.killpg(session, 0)
        except ProcessLookupError:
            return
        assert time.monotonic() < deadline, "workers outlive their build"
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (BuildOptions(samples_per_shard=50, limit=200), "samples_per_shard: 48 before, 50 now"),
        (BuildOptions(samples_per_shard=48, limit=100), "num_samples: 200 before, 100 now"),
        (BuildOptions(samples_per_shard=48, limit=200, seed=1), "seed: 0 before, 1 now"),
        (
            BuildOptions(samples_per_shard=48, limit=200, settings=EncodeSettings(pixels="jpeg")),
            "settings.pixels: png before, jpeg now",
        ),
    ],
)
def test_other_settings_are_refused_by_name(shards: Path, options: BuildOptions, named: str) -> None:
    before = files_of(shards)
    with pytest.raises(BuildMismatch, match=named):
        digits(shards, options)
    assert files_of(shards) == before


def test_other_input_is_refused_by_name(pictures: Path, tmp_path: Path) -> None:
    folder_build(pictures, tmp_path / "out")
    (pictures / "train" / "a" / "00.png").rename(pictures / "train" / "a" / "zz.png")
    with pytest.raises(BuildMismatch, match="input_digest"):
        folder_build(pictures, tmp_path / "out")


def test_building_again_changes_nothing_and_repairs_what_was_removed(tmp_path: Path) -> None:
    digits(tmp_path)
    folder = tmp_path / "digits" / "train"
    before = files_of(folder)
    digits(tmp_path)
    assert files_of(folder) == before
    (folder / "digits-train-000001.tar").unlink()
    (folder / "digits-train-000003.tar.index").unlink()
    assert len(verify(folder)) == 2
    digits(tmp_path)
    assert files_of(folder) == before


def test_a_folder_with_foreign_tars_is_not_built_into(tmp_path: Path) -> None:
    folder = tmp_path / "digits" / "train"
    folder.mkdir(parents=True)
    (folder / "mine.tar").write_bytes(b"precious")
    with pytest.raises(BuildMismatch, match="no build journal"):
        digits(tmp_path)
    assert (folder / "mine.tar").read_bytes() == b"precious"


def test_arrays_can_be_kept_as_png_or_made_jpeg(tmp_path: Path) -> None:
    for pixels, extension in (("keep", "png"), ("png", "png"), ("jpeg", "jpg")):
        options = BuildOptions(limit=10, settings=EncodeSettings(pixels=pixels))  # type: ignore[arg-type]
        manifest = digits(tmp_path / pixels, options)
        assert manifest.members == [extension, "cls"]
        assert manifest.num_samples == 10


def test_keep_gives_a_split_one_extension_and_the_commonest(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    for i, extension in enumerate(("jpeg", "JPG", "png", "webp", "bmp")):
        Image.new("RGB", (9, 9)).save(raw / f"{i}.{extension}")
    manifest = build("folder", raw=raw, out=tmp_path / "out")[0]
    assert manifest.members == ["jpg"]  # no labels, no captions
    assert manifest.num_samples == 5


def test_shard_mb_chooses_a_multiple_of_256_samples_once(tmp_path: Path) -> None:
    digits(tmp_path, BuildOptions(limit=600, shard_mb=1))
    plan = json.loads((tmp_path / "digits/train/.journal/plan.json").read_text())
    assert plan["samples_per_shard"] % 256 == 0
    digits(tmp_path, BuildOptions(limit=600, shard_mb=2))  # chosen once
    assert json.loads((tmp_path / "digits/train/.journal/plan.json").read_text()) == plan


@pytest.mark.parametrize("name", ["samples_per_shard", "limit", "workers", "shard_mb"])
def test_numbers_below_one_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=f"--{name.replace('_', '-')}.*0 found"):
        digits(tmp_path, BuildOptions(**{name: 0}))  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_unknown_sources_and_splits_are_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"digitz.*digits"):
        build("digitz", raw=None, out=tmp_path)
    with pytest.raises(InputError, match=r"'dev'.*train, test"):
        build("digits", raw=None, out=tmp_path, splits=("dev",))


def test_nothing_in_the_result_tells_where_or_when_it_was_made(shards: Path) -> None:
    text = b"".join(files_of(shards / "digits" / "train").values())
    assert str(shards).encode() not in text
    assert os.uname().nodename.encode() not in text


def test_a_finished_split_that_can_only_be_read_needs_no_lock(small_disk: Path, command: Command) -> None:
    options = BuildOptions(samples_per_shard=30, limit=30)
    [built] = build("digits", raw=None, out=small_disk, splits=("test",), options=options)
    for lock in small_disk.rglob(".lock"):
        lock.unlink()
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    [again] = build("digits", raw=None, out=small_disk, splits=("test",), options=options)
    assert again.content_digest == built.content_digest
    for name in ("info", "verify"):
        assert command(name, small_disk / "digits" / "test")[0] == 0
    with pytest.raises(InputError, match="cannot be"):
        build("digits", raw=None, out=small_disk, splits=("train",), options=options)
