"""Tensors by name, out of a file of weights: safetensors, or PyTorch's format, whatever was saved around them.

A training script saves its model as one of several dictionaries (`model`, `teacher` and `student`, `state_dict`); which
of them is taken is said, and `key` chooses another.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from hjepa_shards.base.regular_files import open_regular
from hjepa_shards.errors import InputError
from hjepa_train.weights import torch_files
from hjepa_train.weights.torch_files import Inert, StoredTensor

_TORCH = (".pt", ".pth", ".bin", ".ckpt", ".tar")
_PREFERRED = (
    *("target_encoder", "teacher", "state_dict_ema", "model_ema", "ema", "target"),
    *("model", "state_dict", "weights", "encoder", "backbone", "student", "module", "net"),
)
"""Of dictionaries that a file may have: a slow average before what it follows."""
_WRAPPERS = ("_orig_mod.", "module.")
"""What compilation and data parallelism put before each name."""
_DEEPEST = 4
_TYPES = frozenset(
    (
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
        *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
    )
)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class NamedTensors:
    """What was found in a file."""

    tensors: dict[str, Tensor]
    """On the CPU, as they were saved."""
    path: tuple[str, ...]
    """The dictionaries on the way to them."""
    beside: tuple[str, ...]
    """Names of what else the file has at its top."""
    about: dict[str, Any]
    """Texts, numbers and lists of them at its top, or its metadata."""


def read_weights(path: Path, key: str | None = None) -> NamedTensors:
    """The tensors in the file `path`.

    key: of the dictionary, `a.b` where it is inside another, or what the names that are wanted begin with.
    InputError where it cannot be read, holds no tensors, or several dictionaries of them and none that is known.
    """
    opened = _safetensors if path.suffix == ".safetensors" else torch_files.opened
    if path.suffix not in (".safetensors", *_TORCH):
        raise InputError(
            f"{path}: a file of weights (.safetensors, {', '.join(_TORCH)}) or a folder expected, "
            f"{path.suffix or 'no ending'} found"
        )
    with opened(path) as content:
        about = {}
        if isinstance(content, tuple):
            content, about = content
        if isinstance(content, Inert):
            if not content.entries:
                raise InputError(
                    f"{path}: tensors by name expected, a pickled {content.name[:80]!r} found; save its state_dict()"
                )
            content = content.entries
        if not isinstance(content, dict):
            raise InputError(f"{path}: tensors by name expected, a {type(content).__name__} found")
        at, chosen = _chosen(content, key, path)
        tensors = {name: tensor.read() for name, tensor in _unwrapped(chosen).items()}
    odd = [name for name, tensor in tensors.items() if tensor.dtype not in _TYPES]
    if odd:
        raise InputError(
            f"{path}: floating point of 16 to 64 bits, or integers, expected, {tensors[odd[0]].dtype} found in "
            f"{odd[0][:80]!r}; save the weights in float32"
        )
    plain = {name: value for name, value in content.items() if isinstance(value, str | int | float | list | dict)}
    return NamedTensors(
        tensors=tensors,
        path=at,
        beside=tuple(name for name in content if isinstance(name, str)),
        about=about or {name: value for name, value in plain.items() if _is_plain(value, 4)},
    )


@contextlib.contextmanager
def _safetensors(path: Path) -> Iterator[tuple[dict[str, StoredTensor], dict[str, str]]]:
    try:
        open_regular(path).close()
        with safe_open(path, "pt") as file:
            content: dict[str, StoredTensor] = {}
            for name in file.keys():  # noqa: SIM118  (no mapping)
                shape = tuple(file.get_slice(name).get_shape())
                content[name] = StoredTensor(shape, lambda name=name: file.get_tensor(name))
            yield content, dict(file.metadata() or {})
    except (OSError, SafetensorError) as error:
        said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InputError(f"{path}: a file of safetensors cannot be read: {' '.join(said.split())[:200]}") from error


def _chosen(content: dict[str, Any], key: str | None, where: Path) -> tuple[tuple[str, ...], dict[str, StoredTensor]]:
    found = dict(_dictionaries(content))
    if key is not None:
        at = tuple(key.rstrip(".").split("."))
        if at in found:
            return at, found[at]
        for path, tensors in found.items():
            if path == at[: len(path)]:
                begin = ".".join(at[len(path) :]) + "."
                inner = {name.removeprefix(begin): one for name, one in tensors.items() if name.startswith(begin)}
                if inner:
                    return at, inner
        raise InputError(
            f"{where}: init.key: {key}: a dictionary of tensors expected, none found; here: {_list(found)}"
        )
    if not found:
        raise InputError(f"{where}: tensors by name expected, none found in it")
    if len(found) == 1:
        return next(iter(found.items()))
    inner = {at: tensors for at, tensors in found.items() if at}
    for name in _PREFERRED:
        matching = [at for at in inner if at[-1] == name or at[0] == name]
        if len(matching) == 1 or (matching and matching[0] == (name,)):
            return matching[0], inner[matching[0]]
    if () in found:
        return (), found[()]
    raise InputError(
        f"{where}: one dictionary of tensors expected, {len(found)} found ({_list(found)}); choose one with init.key"
    )


def _dictionaries(
    content: Mapping[str, Any], at: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], dict[str, StoredTensor]]]:
    """Each dictionary that has tensors with a shape, and where it is."""
    tensors = {name: value for name, value in content.items() if isinstance(value, StoredTensor)}
    if any(math.prod(tensor.shape) > 1 for tensor in tensors.values()):
        yield at, tensors
    for name, value in content.items():
        inner = value.entries if isinstance(value, Inert) else value
        if isinstance(inner, dict) and len(at) < _DEEPEST:
            yield from _dictionaries(inner, (*at, name))


def _unwrapped(tensors: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    while prefix := next((one for one in _WRAPPERS if all(name.startswith(one) for name in tensors)), None):
        tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
    return tensors


def _is_plain(value: Any, depth: int) -> bool:
    if isinstance(value, list | dict):
        inner = list(value.values()) if isinstance(value, dict) else value
        return depth > 0 and len(inner) <= 1000 and all(_is_plain(one, depth - 1) for one in inner)
    return value is None or isinstance(value, str | int | float)


def _list(found: Mapping[tuple[str, ...], Any]) -> str:
    names = [".".join(at) or "the top" for at in found]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
