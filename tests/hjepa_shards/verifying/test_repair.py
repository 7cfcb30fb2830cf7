"""Damage of every kind, made good to the last bit, and refused where it cannot be."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hjepa_shards.building.build import BuildOptions, build
from hjepa_shards.building.index_tars import index_tars
from hjepa_shards.errors import BuildMismatch, InputError, ManifestError
from hjepa_shards.images.encode import EncodeSettings
from hjepa_shards.shards.location import splits_at
from hjepa_shards.verifying.repair import repair
from hjepa_shards.verifying.verify_split import verify
from tests.conftest import Command
from tests.hjepa_shards.building.test_build import files_of
from tests.hjepa_shards.verifying.test_verify_split import flip


@pytest.fixture
def split(shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shards / "digits" / "train", tmp_path / "digits" / "train"))


def swap(folder: Path, one: str, other: str) -> None:
    os.rename(folder / one, folder / "x")
    os.rename(folder / other, folder / one)
    os.rename(folder / "x", folder / other)


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


DAMAGE: dict[str, Callable[[Path], None]] = {
    "a flipped bit": lambda folder: flip(folder / "digits-train-000001.tar", 700),
    "a flipped bit in a sidecar": lambda folder: flip(folder / "digits-train-000004.tar.index", 70),
    "cut short": lambda folder: cut(folder / "digits-train-000000.tar"),
    "missing": lambda folder: (folder / "digits-train-000003.tar").unlink(),
    "a missing sidecar": lambda folder: (folder / "digits-train-000003.tar.index").unlink(),
    "swapped": lambda folder: swap(folder, "digits-train-000001.tar", "digits-train-000002.tar"),
    "swapped sidecars": lambda folder: swap(folder, "digits-train-000001.tar.index", "digits-train-000002.tar.index"),
    "a flipped bit in the manifest": lambda folder: flip(folder / "manifest.json", 100),
    "a missing manifest": lambda folder: (folder / "manifest.json").unlink(),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_every_damage_is_made_good(split: Path, damage: Callable[[Path], None]) -> None:
    before = files_of(split)
    damage(split)
    assert files_of(split) != before
    assert repair(split).left == ()
    assert files_of(split) == before
    assert repair(split).repaired == ()


def test_only_what_is_broken_is_touched(split: Path) -> None:
    flip(split / "digits-train-000001.tar", 700)
    (split / "digits-train-000003.tar.index").unlink()
    shutil.rmtree(split / ".journal")  # shards that were fetched from elsewhere have none
    times = {path.name: path.stat().st_mtime_ns for path in split.iterdir()}
    seen: list[tuple[int, ...]] = []
    done = repair(split, progress=lambda *numbers: seen.append(numbers))
    assert done.repaired == ("digits-train-000001.tar", "digits-train-000003.tar.index")
    assert seen[-1] == (96, 96, 96 * 64)
    assert verify(split) == []
    changed = {path.name for path in split.iterdir() if times.get(path.name) != path.stat().st_mtime_ns}
    assert changed == set(done.repaired)


def test_unknown_files_are_left_and_named(split: Path) -> None:
    shutil.copy(split / "digits-train-000000.tar", split / "digits-train-000009.tar")
    flip(split / "digits-train-000001.tar", 700)
    done = repair(split)
    assert done.repaired == ("digits-train-000001.tar",)
    assert [problem.name for problem in done.left] == ["digits-train-000009.tar"]


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    raw = tmp_path / "pictures"
    raw.mkdir()
    for i in range(30):
        Image.fromarray(np.full((20, 30, 3), 8 * i, np.uint8)).save(raw / f"{i:02}.png")
    (raw / "04.png").write_bytes(b"not an image")
    return raw


def test_limit_exclusions_and_settings_are_those_of_the_manifest(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "list").write_text('{"source": "folder", "split": "train", "key": "07", "reason": "twice"}\n')
    options = BuildOptions(
        samples_per_shard=8,
        limit=20,
        seed=3,
        exclude=tmp_path / "list",
        settings=EncodeSettings(pixels="jpeg", shorter_side=16, quality=71),
    )
    (manifest,) = build("folder", raw=pictures, out=tmp_path, options=options)
    assert [entry["name"] for entry in manifest.exclusions] == ["07.png", "04.png"]
    folder = tmp_path / "folder" / "train"
    before = files_of(folder)
    for path in folder.glob("*.tar"):
        path.unlink()
    assert len(repair(folder, raw=pictures).repaired) == 3
    assert files_of(folder) == before


def test_other_raw_data_is_refused_and_nothing_is_changed(pictures: Path, tmp_path: Path) -> None:
    options = BuildOptions(samples_per_shard=8, settings=EncodeSettings(pixels="png"))
    build("folder", raw=pictures, out=tmp_path, options=options)
    folder = tmp_path / "folder" / "train"
    for name in ("folder-train-000000.tar", "folder-train-000001.tar"):
        flip(folder / name, 700)
    broken = files_of(folder)
    for i in range(30):  # other bytes under the same names
        Image.fromarray(np.full((20, 30, 3), i, np.uint8)).save(pictures / f"{i:02}.png")
    with pytest.raises(InputError, match=r"other bytes than when it was built. Nothing was changed"):
        repair(folder, raw=pictures)
    (pictures / "11.png").rename(pictures / "zz.png")
    with pytest.raises(BuildMismatch, match=r"input_digest: \w+ before, \w+ now"):
        repair(folder, raw=pictures)
    assert files_of(folder) == broken


def test_of_foreign_tars_only_sidecars_are_made_again(split: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine" / "train"
    folder.mkdir(parents=True)
    for path in split.glob("*.tar"):
        shutil.copy(path, folder)
    index_tars(folder)
    before = files_of(folder)
    cut(folder / "digits-train-000002.tar.index")
    assert repair(folder).repaired == ("digits-train-000002.tar.index",)
    assert files_of(folder) == before
    cut(folder / "digits-train-000002.tar.index")
    flip(folder / "digits-train-000002.tar", 700)
    flip(folder / "digits-train-000003.tar", 700)
    done = repair(folder)
    assert done.repaired == ()
    assert len(done.left) == 3


def test_a_manifest_that_nothing_can_restore_is_named(split: Path) -> None:
    flip(split / "manifest.json", 100)
    shutil.rmtree(split / ".journal")
    with pytest.raises(ManifestError, match="checksum"):
        repair(split)


def test_what_killed_commands_left_is_cleared_and_no_split(split: Path, command: Command) -> None:
    before = files_of(split)
    workshop = split / ".repair"
    (workshop / ".journal").mkdir(parents=True)
    shutil.copy(split / "manifest.json", workshop)
    (split / ".manifest.json.0123456789abcdef.tmp").write_text("{")
    (split.parent / ".unfinished").mkdir()
    shutil.copy(split / "manifest.json", split.parent / ".unfinished")
    assert splits_at(str(split.parent.parent), "digits") == ["train"]
    code, out, _ = command("info", split.parent)
    assert (code, "order digest" in out) == (0, True), "its details, as of one split alone"
    assert repair(split).left == ()
    assert files_of(split) == before


def test_a_workshop_that_is_a_link_is_removed_and_not_followed(split: Path, tmp_path: Path) -> None:
    (tmp_path / "mine" / ".journal").mkdir(parents=True)
    (tmp_path / "mine" / "thesis.tex").touch()
    (split / ".repair").symlink_to(tmp_path / "mine")
    flip(split / "digits-train-000001.tar", 700)
    assert repair(split).left == ()
    assert [path.name for path in (tmp_path / "mine").iterdir() if path.name != ".journal"] == ["thesis.tex"]
    assert not (split / ".repair").exists()
