"""Weights that are sharded over ranks, on a disk: torch.distributed.checkpoint, a file a rank and metadata about all.

A module of its own because these libraries take seconds to import, which whole weights need not wait for. The metadata
are a pickle, which `sharded_metadata.py` reads in place of PyTorch; tensors are read with `weights_only`.
"""

import warnings
from concurrent.futures import Future
from pathlib import Path
from typing import Any, final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint import state_dict_loader, state_dict_saver
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata

from hjepa_train.base.distributed import world_size
from hjepa_train.checkpoints.checkpoint_files import METADATA, damaged, on_one_line
from hjepa_train.checkpoints.sharded_metadata import read_metadata


def write(tensors: dict[str, Any], folder: Path, among: dist.ProcessGroup) -> Future[Any]:
    """Begin to write each rank's part of nested tensors, by all ranks together, in the background.

    What is written is a copy made here.  among: the ranks, in a group of their own, so that they may agree on this
    while they speak of other things. `written` waits.
    """
    writing = state_dict_saver.async_save(tensors, checkpoint_id=folder, process_group=among)
    assert isinstance(writing, Future), "a stager of one's own would be called twice"
    return writing


def written(writing: Future[Any]) -> None:
    """Until all ranks have written. OSError on all where one cannot."""
    try:
        writing.result()
    except CheckpointException as error:
        causes = [cause for cause, _ in error.failures.values()]
        raise next((one for one in causes if isinstance(one, OSError)), OSError(str(causes[0]))) from error


def read(tensors: dict[str, Any], folder: Path) -> None:
    """Into the same names, in place, whole or sharded as they are; by all ranks together.

    CheckpointError where the files are not what was written.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)  # as intended
        try:
            state_dict_loader.load(tensors, storage_reader=_Reader(folder), no_dist=world_size() == 1)
        except CheckpointException as error:
            causes = [cause for cause, _ in error.failures.values()]
            raise damaged(folder, f"its tensors cannot be read: {on_one_line(causes[0])}") from error


def shapes(folder: Path, section: str) -> dict[str, Tensor]:
    """The tensors below `section`, whole, without their values. CheckpointError where the metadata are damaged."""
    prefix = f"{section}."
    saved = _Reader(folder).read_metadata().state_dict_metadata
    return {
        name.removeprefix(prefix): torch.empty(about.size, dtype=about.properties.dtype, device="meta")
        for name, about in saved.items()
        if name.startswith(prefix) and isinstance(about, TensorStorageMetadata)
    }


@final
class _Reader(FileSystemReader):
    """PyTorch's, with metadata that are not unpickled by it."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._folder = folder

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        del args, kwargs  # a rank's own metadata: never written here
        try:
            found = read_metadata(self._folder / METADATA)
        except (OSError, ValueError) as error:
            raise damaged(self._folder, f"{METADATA} cannot be read: {on_one_line(error)}") from error
        found.storage_meta = StorageMeta(load_id=self.load_id)
        return found
