"""build, merge and index as a user types them, twice: what was done, and what to type next."""

import shlex
import shutil
from pathlib import Path

import pytest
from PIL import Image

from hjepa_shards.cli import _COMMANDS, app
from hjepa_shards.sources.published.imagenet import synset_names
from tests.conftest import Command

FEW = ["--samples-per-shard", 64, "--limit", 128]


def next_lines(out: str) -> list[str]:
    """The commands behind `next`."""
    lines = out.partition("\nnext")[2].splitlines()
    return [line.rpartition("hjepa-shards ")[2] for line in lines]


def test_a_second_build_says_of_each_split_that_there_is_nothing_to_do(command: Command, tmp_path: Path) -> None:
    arguments = ["build", "digits", "--out", tmp_path, *FEW]
    code, first, err = command(*arguments, "--split", "train")
    assert (code, err) == (0, "")
    assert "128 images in" in first
    assert "already" not in first
    code, second, _ = command(*arguments)
    assert f"already built, nothing to do: {tmp_path}/digits/train (128 images)" in second
    assert f"{tmp_path}/digits/test │" in second
    assert f"{tmp_path}/digits/train │" not in second
    code, third, err = command(*arguments)
    assert (code, err) == (0, "")
    assert third.count("already built, nothing to do") == 2
    assert "images/s" not in third
    assert "━" not in third
    (tmp_path / "digits" / "test" / "digits-test-000001.tar").unlink()
    _, again, _ = command(*arguments)
    assert again.count("already built, nothing to do") == 1
    assert "64 images in" in again


def test_a_manifest_that_was_lost_is_work_and_images_left_out_are_counted_again(
    command: Command, tmp_path: Path
) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    shutil.copy(__file__, raw / "none.png")
    command("build", "photos", "--split", "train", "--out", tmp_path, *FEW)
    (tmp_path / "photos" / "train" / "manifest.json").unlink()
    assert "already" not in command("build", "photos", "--split", "train", "--out", tmp_path, *FEW)[1]
    Image.new("RGB", (8, 8)).save(raw / "good.png")
    arguments = ["build", "folder", "--raw", raw, "--out", tmp_path, "--samples-per-shard", 2]
    assert command(*arguments)[0] == 3
    code, out, _ = command(*arguments)
    assert code == 3
    assert "already built, nothing to do" in out
    assert "excluded 1 of folder-train" in out


@pytest.mark.parametrize("root", ["data/shards", "elsewhere/it's here", "URL"])
def test_what_comes_next_can_be_typed(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, root: str
) -> None:
    monkeypatch.chdir(tmp_path)
    out = f"file://{tmp_path}/far" if root == "URL" else root
    _, said, _ = command("build", "digits", "--out", out, *FEW)
    info, mix = map(shlex.split, next_lines(said))
    assert info == ["info", f"{out}/digits"]
    assert "digits=1" in mix
    assert ("--root" in mix) == (root != "data/shards")
    code, said, _ = command(*info)
    assert (code, said.count("128")) == (0, 2)
    code, said, _ = command(*mix)
    assert (code, "not built" in said) == (0, False)
    assert (tmp_path / "mix.yaml").exists()
    _, said, _ = command("build", "photos", "--split", "val", "--out", out, *FEW)
    assert next_lines(said)[0] == f"info {shlex.quote(f'{out}/photos/val')}"
    assert "--source photos:val=1" in next_lines(said)[1]


def test_parts_and_their_merge_say_so_too(command: Command, tmp_path: Path) -> None:
    part = ["build", "digits", "--split", "train", "--out", tmp_path, *FEW, "--part"]
    _, first, _ = command(*part, "1/2")
    assert f"part 1/2 is built: 1 of 2 shards of {tmp_path}/digits/train" in first
    assert f"next, when all parts are built: hjepa-shards merge {tmp_path}/digits" in first
    assert "part 1/2 is built already, nothing to do: 1 of 2" in command(*part, "1/2")[1]
    command(*part, "2/2")
    _, merged, _ = command("merge", tmp_path / "digits")
    assert "already" not in merged
    assert next_lines(merged)[0] == f"info {tmp_path}/digits/train"
    assert "already built, nothing to do" in command("merge", tmp_path / "digits")[1]


def test_indexed_tars_have_a_next_step(command: Command, shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "mine" / "train"
    folder.mkdir(parents=True)
    for tar in (shards / "digits" / "train").glob("*.tar"):
        shutil.copy(tar, folder)
    _, out, _ = command("index", folder)
    assert next_lines(out) == [f"info {folder}", f"mix --source mine=1 --root {tmp_path} --out mix.yaml"]


def test_a_split_that_is_missing_in_raw_data_is_left_out_on_request(command: Command, tmp_path: Path) -> None:
    for synset in synset_names():
        (tmp_path / "train" / synset).mkdir(parents=True)
    for options, advice in ([], "; or build what is available, with --split train\n"), (["--split", "val"], "val\n"):
        code, out, err = command("build", "imagenet", "--raw", tmp_path, "--out", tmp_path / "out", *options)
        assert (code, out) == (2, "")
        assert err.startswith(f"error: {tmp_path}: val expected, train found")
        assert err.endswith(advice)
    code, _, err = command("build", "imagenet", "--raw", tmp_path / "train", "--out", tmp_path / "out")
    assert "build what is available" not in err


def test_every_command_says_what_is_true_of_it_after_ctrl_c(
    command: Command, shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {info.name for info in app.registered_commands} == set(_COMMANDS)
    continuing = {name for name, (_, after) in _COMMANDS.items() if "continues" in after}
    assert continuing == {"build", "download"}

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("hjepa_shards.verifying.verify_split.verify", interrupt)
    code, out, err = command("verify", shards / "digits")
    assert (code, out) == (130, "")
    assert err == "interrupted; nothing is half done; the same command begins again\n"
    monkeypatch.setattr("hjepa_shards.building.build.build_splits", interrupt)
    assert command("build", "digits")[2] == "interrupted; the same command continues with what is not done yet\n"
