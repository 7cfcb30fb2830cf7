"""verify and duplicates as their user sees them: lines, exit codes, files."""

import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import Command
from tests.hjepa_shards.duplicates.test_find_duplicates import photos, png, split_of
from tests.hjepa_shards.duplicates.test_perceptual_hash import tile
from tests.hjepa_shards.verifying.test_verify_images import changed, forge
from tests.hjepa_shards.verifying.test_verify_split import flip, index_of, keys, shard, swap


@pytest.fixture
def split(shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shards / "digits" / "train", tmp_path / "digits" / "train"))


def words(text: str) -> str:
    """Without the line breaks of a terminal."""
    return " ".join(text.split())


@pytest.mark.parametrize("options", [(), ("--deep",), ("--workers", 3), ("--deep", "--workers", 3)])
def test_what_is_right_is_called_right(command: Command, split: Path, options: tuple[str, ...]) -> None:
    code, out, err = command("verify", split, split.parent, *options)
    assert (code, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == ["verify", "right"]  # named twice, looked at once


def test_lost_samples_are_named_by_number_and_key(command: Command, split: Path) -> None:
    row = index_of(shard(split, 1)).row(7)
    flip(shard(split, 1), int(row.image_offset) + 9)
    code, out, _ = command("verify", split)
    assert code == 1
    assert f"1 samples lost: 55 ({keys(split, 1)[7]})" in words(out)
    assert "1 problems, 1 samples lost" in out


def test_only_deep_looks_inside(command: Command, split: Path) -> None:
    forge(split, changed("label", 77))
    assert command("verify", split)[0] == 0
    code, out, _ = command("verify", split, "--deep")
    assert code == 1
    assert "label is no class" in words(out)


def test_swapped_files_are_called_so(command: Command, split: Path) -> None:
    swap(*sorted(split.glob("*.tar.index"))[:2])
    code, out, _ = command("verify", split)
    assert code == 1
    assert words(out).count(": swapped;") == 2


def test_a_damaged_manifest_is_exit_code_2_and_does_not_hide_the_other_splits(command: Command, split: Path) -> None:
    other = Path(shutil.copytree(split, split.parent / "other"))
    third = Path(shutil.copytree(split, split.parent / "third"))
    flip(split / "manifest.json", 300)
    flip(other / "manifest.json", 300)
    flip(shard(third, 0), 5)
    code, out, err = command("verify", split.parent)
    assert code == 2
    assert "sha256 differs" in words(out)
    assert [line.split("manifest.json")[0] for line in err.splitlines()] == [f"error: {other}/", f"error: {split}/"]


def test_what_has_no_manifest_is_named_and_wrong(command: Command, split: Path) -> None:
    (split / "manifest.json").unlink()
    code, out, _ = command("verify", split.parent)
    assert code == 1
    assert "unfinished build" in words(out)
    assert "hjepa-shards build" in words(out)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["verify", "{split}", "--workers", "0"], "--workers"),
        (["verify", "/nonexistent"], "/nonexistent"),
        (["duplicates", "/nonexistent"], "/nonexistent"),
        (["duplicates", "{split}", "--near", "16"], "--near"),
        (["duplicates", "{split}", "--workers", "-1"], "--workers"),
        (["duplicates", "{split}", "--out", "/nonexistent/x"], "/nonexistent: a folder"),
    ],
)
def test_wrong_arguments_are_one_line(command: Command, split: Path, arguments: list[str], said: str) -> None:
    code, _, err = command(*(argument.format(split=split) for argument in arguments))
    assert code == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert said in err


def test_copies_are_a_table_and_two_files(command: Command, tmp_path: Path) -> None:
    split_of(tmp_path, "a/train", {**photos(range(4)), "x": (png(tile(0)), 0)})
    split_of(tmp_path, "a/val", {"v": (png(tile(2)), 0)})
    exclusions, report = tmp_path / "out.jsonl", tmp_path / "dup.json"
    code, out, _ = command("duplicates", tmp_path, "--out", exclusions, "--report", report)
    assert code == 0
    lines = [line for line in out.splitlines() if "a/train" in line]
    assert [("leak" in line, "itself" in line) for line in lines] == [(True, False), (False, True)]
    assert "100.00%" in lines[0]
    assert [json.loads(line)["key"] for line in exclusions.read_text().splitlines()] == ["photo2", "x"]
    assert len(json.loads(report.read_text())["groups"]) == 2


def test_no_copies_are_said_to_be_none(command: Command, tmp_path: Path) -> None:
    code, out, _ = command("duplicates", split_of(tmp_path, "a/train", photos(range(3))))
    assert code == 0
    assert "no duplicates among 3 images" in out
