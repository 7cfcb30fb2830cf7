"""Checkpoints of third parties: nothing in them runs, nothing outside is read or removed, and lies are one line."""

import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from hjepa_train.checkpoints import checkpoint_files
from hjepa_train.checkpoints.checkpoint_files import CheckpointError, best, load, recover
from tests.hjepa_train.checkpoints.test_checkpoint_files import names, save_filled


def said_of(path: Path) -> str:
    """The one line about a checkpoint that is damaged."""
    with pytest.raises(CheckpointError, match=r"step-00000001: damaged: ") as refused:
        load(path)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 1000
    return str(refused.value)


def sealed(path: Path) -> Path:
    """files.json written again, as if what is there were what was saved."""
    files = {file.name: checkpoint_files._identity(file) for file in path.iterdir() if file.name != "files.json"}
    (path / "files.json").write_text(json.dumps(files))
    return path


class Malicious:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.path),)


def test_a_malicious_optimizer_executes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_filled(tmp_path, 1)
    (path / "optimizer.pt").write_bytes(pickle.dumps(Malicious(tmp_path / "executed"), protocol=2))
    monkeypatch.setattr("hjepa_train.checkpoints.checkpoint_files._verify", lambda path: None)
    with pytest.raises(CheckpointError, match="more than tensors"):
        load(path)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["../mine", "/etc/hostname", "a\0b", "..", "", "x" * 300])
def test_a_list_of_files_names_files_of_its_folder_alone(tmp_path: Path, name: str) -> None:
    path = save_filled(tmp_path, 1)
    (tmp_path / "mine").write_text("mine")
    files = json.loads((path / "files.json").read_bytes())
    (path / "files.json").write_text(json.dumps({**files, name: {"bytes": 4, "blake2b": "?"}}))
    said_of(path)


@pytest.mark.parametrize("target", ["/dev/zero", "../elsewhere"])
def test_a_link_in_a_checkpoint_is_not_followed(tmp_path: Path, target: str) -> None:
    path = save_filled(tmp_path, 1)
    (path / "optimizer.pt").rename(tmp_path / "elsewhere")
    (path / "optimizer.pt").symlink_to(target)
    assert "optimizer.pt cannot be read" in said_of(path)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("model.safetensors", b""),
        ("model.safetensors", b"\xff" * 8 + b"{}"),
        (
            "model.safetensors",
            (60).to_bytes(8, "little") + b'{"w":{"dtype":"F32","shape":[999],"data_offsets":[0,4]}}    ',
        ),
        ("optimizer.pt", b""),
        ("optimizer.pt", b"PK\3\4 no zip"),
        ("optimizer.pt", pickle.dumps(print)),
        ("state.json", b""),
        ("state.json", b"[" * 100_000),
        ("state.json", b'{"format": 1, "step": "1"}'),
        ("state.json", b'{"format": 1, "step": 9223372036854775808}'),
        ("state.json", b'{"format": 1, "step": 1, "probe": [1]}'),
        ("state.json", b'{"format": 1, "step": 1, "deep": ' + b"[" * 100 + b"]" * 100 + b"}"),
        ("files.json", b'{"state.json": 3}'),
    ],
)
def test_a_file_that_lies_is_one_line(tmp_path: Path, name: str, data: bytes) -> None:
    path = save_filled(tmp_path, 1)
    (path / name).write_bytes(data)
    if name != "files.json":
        sealed(path)
    assert f"{name}" in said_of(path) or name == "files.json"
    if name == "state.json":
        assert best(tmp_path, "knn_target") is None


def test_what_a_killed_save_left_is_cleared_without_following_links(tmp_path: Path) -> None:
    folder, mine = tmp_path / "checkpoints", tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").touch()
    save_filled(folder, 1)
    (folder / ".step-00000002.saving").symlink_to(mine)
    recover(folder)
    assert names(folder) == ["step-00000001"]
    assert names(mine) == ["thesis.tex"]
