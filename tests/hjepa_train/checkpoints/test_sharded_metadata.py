"""Metadata of a sharded checkpoint from anybody: nothing in them is run, and no part lies outside its folder."""

import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata

from hjepa_train.checkpoints import checkpoint_files, sharded_files
from hjepa_train.checkpoints.checkpoint_files import CheckpointError
from hjepa_train.checkpoints.sharded_metadata import read_metadata

TENSORS = {"model": {"w": torch.arange(12.0).reshape(3, 4), "half": torch.ones(2).bfloat16()}}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    folder = tmp_path / "step-00000001"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(TENSORS, checkpoint_id=folder)
    return folder


class Call:
    """Pickled, it calls a function when it is read."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return self.call


def test_what_pytorch_wrote_is_read_as_pytorch_reads_it(saved: Path) -> None:
    found = read_metadata(saved / ".metadata")
    expected = filesystem.FileSystemReader(saved).read_metadata()
    assert found.state_dict_metadata == expected.state_dict_metadata
    assert found.storage_data == expected.storage_data
    into = {"model": {name: torch.zeros_like(value) for name, value in TENSORS["model"].items()}}
    sharded_files.read(into, saved)
    assert all(torch.equal(into["model"][name], value) for name, value in TENSORS["model"].items())
    assert sharded_files.shapes(saved, "model")["w"].shape == (3, 4)


def attacks(folder: Path, mark: Path) -> dict[str, Any]:
    """What may be in the place of the metadata there."""
    honest = filesystem.FileSystemReader(folder).read_metadata()
    honest.storage_meta = None

    def but(**changes: Any) -> Metadata:
        return Metadata(**{**vars(honest), **changes})

    def moved(path: str, offset: int = 0) -> Metadata:
        return but(storage_data={key: filesystem._StorageInfo(path, offset, 8) for key in honest.storage_data})

    return {
        "a call": Call(os.system, f"touch {mark}"),
        "a call inside": but(planner_data=Call(os.mkdir, str(mark))),
        "eval": but(version=Call(eval, f"open({str(mark)!r}, 'w')")),
        "torch's own functions": but(planner_data=Call(torch.load, str(mark))),
        "bytes to be unpickled": but(state_dict_metadata={"model.w": BytesStorageMetadata()}),
        "a file outside": moved("../../mine"),
        "an absolute file": moved("/dev/zero"),
        "beyond the file": moved(next(path.name for path in folder.glob("*.distcp")), 10**12),
        "another object": {"no": "metadata"},
    }


KINDS = ("a call", "a call inside", "eval", "torch's own functions", "bytes to be unpickled", "a file outside")
KINDS += ("an absolute file", "beyond the file", "another object")


@pytest.mark.parametrize("kind", KINDS)
def test_no_metadata_run_or_lead_anywhere(saved: Path, tmp_path: Path, kind: str) -> None:
    mark = tmp_path / "mark"
    (saved / ".metadata").write_bytes(pickle.dumps(attacks(saved, mark)[kind]))
    for use in (lambda: sharded_files.shapes(saved, "model"), lambda: sharded_files.read({"model": {}}, saved)):
        with pytest.raises(CheckpointError, match=r"step-00000001: damaged: ") as refused:
            use()
        assert "\n" not in str(refused.value)
    assert not mark.exists()


def test_no_class_is_changed_by_what_is_read(saved: Path) -> None:
    """A state that is given to a class in place of an instance sets the attributes of the class."""
    name = b"ctorch.distributed.checkpoint.metadata\nMetadata\n"
    (saved / ".metadata").write_bytes(b"\x80\x02" + name + b"N}X\x05\x00\x00\x00wrong" + b"K\x01s\x86b.")
    with pytest.raises(ValueError, match="the fields of such metadata"):
        read_metadata(saved / ".metadata")
    assert not hasattr(metadata.Metadata, "wrong")


@pytest.mark.parametrize("data", [b"", b"\x80\x04", b"garbage", b"(" * 100_000, b"\x80\x04\x8e" + b"\xff" * 8])
def test_what_is_no_pickle_is_one_line(saved: Path, data: bytes) -> None:
    (saved / ".metadata").write_bytes(data)
    with pytest.raises(CheckpointError, match=r"damaged: \.metadata cannot be read"):
        sharded_files.shapes(saved, "model")


def test_a_link_in_a_checkpoint_is_none_of_its_files(saved: Path, tmp_path: Path) -> None:
    part = next(saved.glob("*.distcp"))
    part.rename(tmp_path / "elsewhere")
    part.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match="a file of this folder expected"):
        sharded_files.shapes(saved, "model")
    assert checkpoint_files.is_sharded(saved)
