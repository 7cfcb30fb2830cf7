"""What a third party may have put under a name: it is neither followed nor emptied, and blocks no process."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from hjepa_shards.base.atomic_files import exclusive, shared
from hjepa_shards.base.regular_files import open_regular, read_regular
from hjepa_shards.errors import InputError
from hjepa_shards.storage.shard_cache import ShardCache


def test_a_regular_file_is_read_also_through_a_link_and_no_larger_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "link").symlink_to("file")
    assert read_regular(tmp_path / "link", 5) == b"12345"
    assert read_regular(tmp_path / "link", 1 << 60) == b"12345", "no buffer of that size"
    with pytest.raises(OSError, match="larger than the 4 bytes"):
        read_regular(tmp_path / "file", 4)


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_could_block_or_never_end_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "name"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises(OSError, match="not a regular file"):
        open_regular(path)


LOCKS: list[Callable[[Path], object]] = [
    lambda folder: exclusive(folder, "busy").__enter__(),
    lambda folder: shared(folder, folder / "part", "busy").__enter__(),
    lambda folder: ShardCache(folder, 10),
]


@pytest.mark.parametrize("take", LOCKS)
@pytest.mark.parametrize("target", ["mine", "none"])
def test_a_lock_that_is_a_link_is_refused_and_its_target_is_as_it_was(
    tmp_path: Path, take: Callable[[Path], object], target: str
) -> None:
    (tmp_path / "mine").write_text("all my work")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / ".lock").symlink_to(tmp_path / target)
    with pytest.raises(InputError, match=r"\.lock: a file of our own expected, a link found"):
        take(folder)
    assert (tmp_path / "mine").read_text() == "all my work"
    assert not (tmp_path / "none").exists()


def test_a_lock_empties_no_file(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text("x")
    with exclusive(tmp_path, "busy"):
        pass
    assert (tmp_path / ".lock").read_text() == "x"
