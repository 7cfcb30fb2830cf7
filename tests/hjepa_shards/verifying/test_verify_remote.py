"""Splits at URLs: what is wrong is what would be wrong in a folder, whatever the server can and cannot do."""

import gzip
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import zstandard

from hjepa_shards.errors import InputError
from hjepa_shards.verifying.verify_images import verify_deep
from hjepa_shards.verifying.verify_remote import unfinished_below, verify_remote
from hjepa_shards.verifying.verify_split import Problem, verify
from tests.conftest import Command
from tests.hjepa_shards.storage.bad_server import Server, serving
from tests.hjepa_shards.verifying.test_verify_images import changed, forge
from tests.hjepa_shards.verifying.test_verify_split import flip, index_path, shard, swap


@pytest.fixture
def split(shards: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shards / "digits" / "train", tmp_path / "digits" / "train"))


def served(folder: Path) -> dict[str, bytes]:
    return {f"x/{path.name}": path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.fixture
def far(split: Path) -> Iterator[Server]:
    """A server of the split, which cannot list its files."""
    with serving() as server:
        server.files = served(split)
        yield server


def damage(split: Path) -> None:
    flip(shard(split, 0), 530)
    index_path(shard(split, 1)).unlink()
    shard(split, 2).unlink()
    with shard(split, 3).open("ab") as file:
        file.write(b"x")


def facts(problems: list[Problem]) -> list[tuple[str, str, tuple[int, ...], tuple[str | None, ...]]]:
    """All but the place and the advice."""
    return [(one.name, one.what.partition(";")[0], one.lost_samples, one.lost_keys) for one in problems]


def test_a_right_split_is_right_and_its_progress_is_that_of_its_bytes(far: Server, split: Path) -> None:
    for deep in (False, True):
        seen: list[tuple[int, int]] = []
        assert verify_remote(far.url("x"), lambda *numbers, seen=seen: seen.append(numbers), 3, deep=deep) == []
        total = sum(path.stat().st_size for path in split.glob("*.tar"))
        assert seen[-1] == (total, total)
        assert seen == sorted(seen)
    assert verify_remote(f"file://{split}/", workers=2) == []


def test_damage_is_that_of_the_folder_named_by_its_url(far: Server, split: Path) -> None:
    damage(split)
    (split / "digits-train-000099.tar").touch()
    far.files = served(split)
    expected = facts(verify(split))
    assert len(expected) == 5
    found = verify_remote(f"file://{split}")
    assert facts(found) == expected
    assert {str(one.path).rpartition("/")[0] for one in found} == {f"file://{split}"}
    assert all("repair" not in one.what for one in found)
    assert facts(verify_remote(far.url("x"))) == expected[:-1]  # its files cannot be listed


def test_deep_looks_inside_too(far: Server, split: Path) -> None:
    forge(split, changed("label", 77))
    far.files = served(split)
    assert verify_remote(far.url("x")) == []
    expected = facts(verify_deep(split))
    assert expected
    assert facts(verify_remote(far.url("x"), workers=2, deep=True)) == expected


@pytest.mark.parametrize("form", [".zst", ".gz"])
def test_compressed_shards_are_judged_as_what_is_in_them(far: Server, split: Path, form: str) -> None:
    packed = gzip.compress if form == ".gz" else zstandard.compress
    for path in split.glob("*.tar"):
        far.files[f"x/{path.name}{form}"] = packed(far.files.pop(f"x/{path.name}"))
    assert verify_remote(far.url("x"), deep=True) == []
    name = f"x/{shard(split, 1).name}{form}"
    far.files[name] = far.files[name][:-50]
    [problem] = verify_remote(far.url("x"))
    assert problem.path == far.url(f"x/{shard(split, 1).name}")
    assert problem.what.endswith("upload it again")


def test_without_a_manifest_nothing_can_be_judged_and_unfinished_builds_are_named(split: Path) -> None:
    (split / "manifest.json").unlink()
    with pytest.raises(InputError, match="a built split is expected there"):
        verify_remote(f"file://{split}")
    [problem] = unfinished_below(f"file://{split.parents[1]}")
    assert problem.path == f"file://{split}"
    assert "an unfinished build" in problem.what


def test_the_commands_take_urls(command: Command, far: Server, split: Path) -> None:
    root = f"file://{split.parents[1]}"
    for url in (root, f"{root}/digits", f"{root}/digits/train/", far.url("x")):
        code, out, err = command("verify", url, "--deep")
        assert (code, err) == (0, "")
        assert out.count("right ") == 1
        code, out, err = command("info", url)
        assert (code, err) == (0, "")
        assert "order digest: " in out
    swap(*sorted(split.glob("*.tar.index"))[:2])
    code, out, _ = command("verify", root, split)
    assert code == 1
    assert " ".join(out.split()).count(": swapped;") == 4
    (split / "manifest.json").unlink()
    code, out, _ = command("verify", root)
    assert code == 1
    assert f"{root}/digits/train: no manifest.json: an unfinished build" in " ".join(out.split())
    code, _, err = command("info", far.url("y"))
    assert (code, err.count("\n")) == (2, 1)
    assert "a web server that does not list its files wants the split itself" in err


def test_what_reads_folders_only_says_so_of_a_url(command: Command, tmp_path: Path) -> None:
    for arguments in (["duplicates"], ["report", "--html", tmp_path / "x.html"]):
        code, _, err = command(*arguments, "s3://bucket/digits")
        assert code == 2
        assert err.startswith("error: s3://bucket/digits: a folder of this machine expected, a URL found")
