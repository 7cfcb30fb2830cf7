"""Folders for copies belong to one user."""

import os
from pathlib import Path

import pytest

from hjepa_shards.errors import InputError
from hjepa_shards.storage.scratch_folder import scratch_folder


@pytest.fixture(autouse=True)
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HJEPA_SCRATCH", str(tmp_path / "scratch"))
    return tmp_path / "scratch"


def test_it_is_made_for_its_user_alone_and_found_again(scratch: Path) -> None:
    folder = scratch_folder("hjepa-1")
    (folder / "copy.tar").touch()
    assert folder == scratch / "hjepa-1" == scratch_folder("hjepa-1")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert (folder / "copy.tar").exists()


def test_a_link_another_users_folder_and_a_file_are_refused(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (scratch / "elsewhere").mkdir(parents=True)
    (scratch / "link").symlink_to("elsewhere")
    with pytest.raises(InputError, match="a folder of your own expected, a link or another user's found"):
        scratch_folder("link")
    (scratch / "file").touch()
    with pytest.raises(InputError, match="cannot be made: File exists; name another place in HJEPA_SCRATCH"):
        scratch_folder("file")
    monkeypatch.setattr(os, "geteuid", lambda: scratch.stat().st_uid + 1)
    with pytest.raises(InputError, match="another user's found"):
        scratch_folder("elsewhere")
