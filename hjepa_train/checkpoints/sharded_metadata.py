"""`.metadata` of a sharded checkpoint, read without running anything in it.

PyTorch writes it as a pickle, and a pickle can name any function to be called. This reader knows the classes of which
such metadata consist and no other name, so what it makes is plain data; then it checks that each part of a tensor lies
within a file of the checkpoint's own folder.
"""

import dataclasses
import functools
import io
import pickle
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, final

import torch
from torch.distributed.checkpoint import filesystem, metadata
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata, TensorStorageMetadata

from hjepa_shards.base.regular_files import read_regular

MOST_BYTES = 1 << 28
_MOST_NUMBER = 2**62
_Unpickler: Any = pickle._Unpickler  # pyright: ignore[reportAttributeAccessIssue]
"""The one in Python: of the one in C no more than the choice of classes can be replaced."""


@functools.cache
def _known() -> dict[tuple[str, str], Any]:
    """(module, name) as they are in the file -> what they stand for."""
    classes: list[Any] = [
        metadata.Metadata,
        metadata.TensorStorageMetadata,
        metadata.BytesStorageMetadata,
        metadata.ChunkStorageMetadata,
        metadata.TensorProperties,
        metadata.MetadataIndex,
        metadata.StorageMeta,
        metadata._MEM_FORMAT_ENCODING,
        filesystem._StorageInfo,
        torch.Size,
    ]
    known = {(one.__module__, one.__qualname__): one for one in classes}
    known |= {(module, "PosixPath"): PurePosixPath for module in ("pathlib", "pathlib._local")}
    for name in dir(torch):
        value = getattr(torch, name)
        if isinstance(value, torch.dtype | torch.layout):
            known["torch", name] = value
    # a torch.layout is pickled as a call of this function, which looks a name up among the layouts
    known["torch.serialization", "_get_layout"] = _layout
    return known


@functools.cache
def _filled() -> frozenset[type]:
    """The classes whose instances get their fields after they are made."""
    return frozenset(one for one in _known().values() if dataclasses.is_dataclass(one) and isinstance(one, type))


def _layout(name: str) -> torch.layout:
    found = getattr(torch, name.removeprefix("torch."), None) if isinstance(name, str) else None
    if not isinstance(found, torch.layout):
        raise pickle.UnpicklingError(f"a layout expected, {_shown(name)} found")
    return found


@final
class _Reader(_Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        try:
            return _known()[module_name, global_name]
        except KeyError:
            raise pickle.UnpicklingError(
                f"the classes of such metadata alone expected, {f'{module_name}.{global_name}'[:80]!r} found; nothing "
                "was run"
            ) from None

    def load_build(self) -> None:
        """A state is given to an instance of these classes alone: given to a class it would change what it does."""
        instance, state = self.stack[-2:]
        if type(instance) not in _filled() or not isinstance(
            state, tuple if type(instance) is metadata.TensorProperties else dict
        ):
            raise pickle.UnpicklingError("the fields of such metadata expected, others found; nothing was run")
        super().load_build()

    dispatch: ClassVar[dict[int, Any]] = {**_Unpickler.dispatch, pickle.BUILD[0]: load_build}


def read_metadata(path: Path) -> Metadata:
    """The metadata in the file `path`. ValueError where they are not what PyTorch writes, OSError where unreadable."""
    data = read_regular(path, MOST_BYTES)
    try:
        found = _Reader(io.BytesIO(data)).load()
        _check(found, path.parent)
    except ValueError:
        raise
    except Exception as error:  # a pickle that does not fit raises whatever its parts do
        raise ValueError(str(error) or type(error).__name__) from error
    return found


def _check(found: Any, folder: Path) -> None:
    """ValueError where a tensor has no size, or one of its parts is not within a file of this folder."""
    if not (isinstance(found, Metadata) and isinstance(found.state_dict_metadata, dict)):
        raise ValueError("metadata of a checkpoint expected, something else found")
    if not isinstance(found.storage_data, dict):
        raise ValueError("where its tensors are expected, nothing found")
    found.planner_data = None  # of use to other loaders only
    for name, about in found.state_dict_metadata.items():
        if isinstance(about, BytesStorageMetadata):
            # PyTorch would unpickle what is there, whatever it is
            raise ValueError(f"tensors alone expected, {_shown(name)} is none")
        if not isinstance(name, str) or not isinstance(about, TensorStorageMetadata):
            raise ValueError("a name and a tensor expected, something else found")
        if not isinstance(about.properties.dtype, torch.dtype) or not _is_size(about.size):
            raise ValueError(f"{name[:80]}: a type and a shape expected")
        if not all(_is_size(one.offsets) and _is_size(one.sizes) for one in about.chunks):
            raise ValueError(f"{name[:80]}: parts with a place and a shape expected")
    sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.is_file() and not path.is_symlink()}
    for part in found.storage_data.values():
        _check_part(part, sizes)


def _check_part(part: Any, sizes: Mapping[str, int]) -> None:
    if not isinstance(part, filesystem._StorageInfo):
        raise ValueError("the place of a part expected, something else found")
    if not isinstance(part.relative_path, str) or part.relative_path not in sizes:
        raise ValueError(f"a file of this folder expected, {_shown(part.relative_path)} found")
    if not (_is_number(part.offset) and _is_number(part.length)):
        raise ValueError(f"{part.relative_path}: a part's place and length expected")
    if part.offset + part.length > sizes[part.relative_path]:
        raise ValueError(f"{part.relative_path}: a part beyond its end found")
    if getattr(part, "transform_descriptors", None):
        raise ValueError(f"{part.relative_path}: parts as they are expected, transformed ones found")


def _shown(value: Any) -> str:
    """For a message; what is no text may be as deep or large as it likes."""
    return repr(value[:80]) if isinstance(value, str) else type(value).__name__


def _is_size(value: Any) -> bool:
    return isinstance(value, torch.Size) and all(map(_is_number, value))


def _is_number(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MOST_NUMBER
