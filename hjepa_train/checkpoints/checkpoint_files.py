"""Checkpoints: what a run needs to continue, on disk whole or not at all.

    <run>/checkpoints/step-00000600/
        model.safetensors    an objective's state_dict: its whole memory
        optimizer.pt         torch.load(weights_only=True) reads it, so nothing in it is executed
        *.distcp .metadata   in place of those two where weights are sharded over ranks (background_saver.py)
        state.json           step, config, loader state, recipe, alarms, probe: {"knn_target": 45.2, ...}
        files.json           bytes and blake2b of the others, written last

A checkpoint is written under a temporary name, synced, and renamed, so a kill at any moment leaves the last
good one; older ones go only once the new one is durable. Which one is the best by a probe is written nowhere: it is
the one whose own state says the largest value, so no kill can part a checkpoint from its rank. Tied tensors are
written once under each of their names: a few bytes more, and a file that every reader of safetensors understands.
"""

import hashlib
import json
import os
import pickle
import platform
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from hjepa_shards.base.atomic_files import sync_folder
from hjepa_shards.base.regular_files import read_regular, regular_descriptor
from hjepa_shards.errors import InputError, ResumeMismatch
from hjepa_train.base.distributed import as_laid_out

FORMAT = 1
_MODEL, _OPTIMIZER, _STATE, _FILES = "model.safetensors", "optimizer.pt", "state.json", "files.json"
METADATA = ".metadata"
"""Of torch.distributed.checkpoint: which file holds which part of which tensor."""
_SECTIONS = ("loader", "probe")
_MOST_JSON_BYTES = 1 << 26
_MOST_DEPTH = 32
_NAMED = "step-{:08d}"
_NAME = re.compile(r"step-(\d{8,})")
_LEFTOVER = re.compile(r"\.(step-\d{8,})\.(saving|replaced|removing)")


class CheckpointError(InputError):
    """A checkpoint that cannot be written, or is not the one that was written."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Checkpoint:
    path: Path
    step: int
    model: dict[str, Tensor]
    """An objective's state_dict, on the CPU."""
    optimizer: dict[str, Any]
    """The optimizer's state_dict, on the CPU."""
    state: dict[str, Any]
    """state.json as it was saved."""


def save(
    folder: Path,
    step: int,
    *,
    model: Mapping[str, Tensor],
    optimizer: Mapping[str, Any],
    state: Mapping[str, Any],
    keep: int = 2,
    keep_best: str | None = None,
) -> Path:
    """Write `<folder>/step-<step>` and return it; of the earlier ones keep the newest `keep` - 1.

    keep_best: the name of a probe (`state["probe"]`); the checkpoint with its largest value stays as well.

    A checkpoint of the same step is replaced; later ones belong to a run that was given up and are removed.
    CheckpointError where it cannot be written: nothing of it is left then, the last good one is still there.
    """
    with reporting_disk_errors(folder, step, num_bytes(model) + num_bytes(optimizer)):
        saving = begin(folder, step)
        save_file(_unshared(model), saving / _MODEL)
        write_torch(saving / _OPTIMIZER, optimizer)
        return finish(folder, step, state=state, keep=keep, keep_best=keep_best)


def begin(folder: Path, step: int) -> Path:
    """The folder in which the files of a checkpoint are to be put before `finish`; see `save`."""
    folder.mkdir(parents=True, exist_ok=True)
    recover(folder)
    saving = _saving(folder, step)
    saving.mkdir()
    return saving


def finish(folder: Path, step: int, *, state: Mapping[str, Any], keep: int, keep_best: str | None = None) -> Path:
    """Make what is there the checkpoint of this step; see `save`."""
    if keep < 1:
        raise ValueError(f"keep: at least 1 checkpoint expected, {keep} found")
    path, saving = folder / _NAMED.format(step), _saving(folder, step)
    replaced = folder / f".{path.name}.replaced"
    _write_json(saving / _STATE, {"format": FORMAT, **state, "step": step})
    _write_json(saving / _FILES, {file.name: _identity(file) for file in sorted(saving.iterdir())})
    _sync(saving)
    if path.exists():
        path.rename(replaced)
    saving.rename(path)
    sync_folder(folder)
    shutil.rmtree(replaced, ignore_errors=True)
    kept = [other for other in _standing(folder) if _step(other) <= step][-keep:]
    top = best(folder, keep_best, up_to=step) if keep_best else None
    if top:
        kept.append(top[0])
    for other in _standing(folder):
        if other not in kept:
            _remove(other)
    return path


@contextmanager
def reporting_disk_errors(folder: Path, step: int, needed: int) -> Iterator[None]:
    """Errors of the disk as CheckpointError, and nothing left of what was begun.  needed: bytes."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        shutil.rmtree(_saving(folder, step), ignore_errors=True)
        raise CheckpointError(_advice(folder / _NAMED.format(step), error, needed)) from error


def recover(folder: Path) -> None:
    """Clear away what a killed save left in `folder`. Only for the one process that writes there."""
    for leftover in sorted(folder.iterdir()) if folder.is_dir() else ():
        match = _LEFTOVER.fullmatch(leftover.name)
        if match and match[2] == "replaced" and not (folder / match[1]).exists():
            leftover.rename(folder / match[1])
        elif match and leftover.is_symlink():  # nothing that a save makes, and what it leads to is not ours
            leftover.unlink()
        elif match:
            shutil.rmtree(leftover)


def latest(folder: Path) -> Path | None:
    """The checkpoint with the largest step in `folder`, or None where there is none."""
    standing = _standing(folder)
    return standing[-1] if standing else None


def best(folder: Path, probe: str, *, up_to: int | None = None) -> tuple[Path, float] | None:
    """The checkpoint in `folder` with the largest value of `probe`, the earliest of equals, and that value.

    up_to: later steps do not count. None where none was probed.
    """
    found: list[tuple[Path, float]] = []
    for path in _standing(folder):
        try:
            value = read_state(path).get("probe", {}).get(probe)
        except CheckpointError:  # damaged, and so not the best
            continue
        if isinstance(value, float) and (up_to is None or _step(path) <= up_to):
            found.append((path, value))
    return max(found, key=lambda one: one[1], default=None)


def choose(folder: Path, which: str, probe: str | None) -> Path:
    """The checkpoint that a command names: `latest`, `best` (by `probe`), a step's name in `folder`, or a path.

    InputError where it is not there, with those that are.
    """
    standing = _standing(folder)
    if not standing and which in ("latest", "best"):
        raise InputError(f"{folder.parent}: no checkpoint yet; let the run reach training.save_every_steps")
    here = ", ".join(path.name for path in standing) or "none"
    if which == "latest":
        return standing[-1]
    if which == "best":
        top = best(folder, probe) if probe else None
        if not top:
            raise InputError(
                f"{folder}: a checkpoint probed for {probe or 'training.keep_best'} expected, none found; set "
                f"training.keep_best (knn_target, say) for the run, or name one of these: {here}"
            )
        return top[0]
    path = next((path for path in (folder / which, Path(which)) if _NAME.fullmatch(path.name) and path.is_dir()), None)
    if path is None:
        raise InputError(
            f"--checkpoint {which}: `latest`, `best` or the folder of a checkpoint expected, none found; here: {here}"
        )
    return path


def load(path: Path) -> Checkpoint:
    """The checkpoint at `path`, every byte checked. CheckpointError if damaged, naming the one before.

    Of a sharded one `model` and `optimizer` are empty: background_saver.py reads them.
    """
    _verify(path)
    state = read_state(path)
    if is_sharded(path):
        return Checkpoint(path=path, step=state["step"], model={}, optimizer={}, state=state)
    try:
        optimizer = torch.load(path / _OPTIMIZER, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise damaged(path, f"{_OPTIMIZER} holds more than tensors and plain values") from error
    except Exception as error:  # of a file that is no zip, or lies about its parts, whatever torch raises
        raise damaged(path, f"{_OPTIMIZER} cannot be read: {on_one_line(error)}") from error
    if not isinstance(optimizer, dict):
        raise damaged(path, f"{_OPTIMIZER} holds no state of an optimizer")
    try:
        model = load_file(path / _MODEL)
    except Exception as error:  # the same of safetensors
        raise damaged(path, f"{_MODEL} cannot be read: {on_one_line(error)}") from error
    return Checkpoint(path=path, step=state["step"], model=model, optimizer=optimizer, state=state)


def is_sharded(path: Path) -> bool:
    """Whether a checkpoint's weights and moments were sharded over ranks."""
    return (path / METADATA).exists()


def identity(path: Path) -> str:
    """What distinguishes this checkpoint from any other: the digest of its files' digests."""
    return hashlib.blake2b(json.dumps(_read_json(path, _FILES), sort_keys=True).encode(), digest_size=16).hexdigest()


def read_state(path: Path) -> dict[str, Any]:
    """state.json of the checkpoint at `path`, without reading its weights."""
    state = _read_json(path, _STATE)
    if state.get("format") != FORMAT:
        raise CheckpointError(
            f"{path / _STATE}: format {FORMAT} expected, {state.get('format')!r} found; "
            "resume with the version that wrote it"
        )
    if type(state.get("step")) is not int or not 0 <= state["step"] < 2**53:
        raise damaged(path, f"{_STATE} holds no step")
    wrong = [name for name in _SECTIONS if not isinstance(state.get(name, {}), dict)]
    if wrong:
        raise damaged(path, f"{_STATE}: {wrong[0]} is no object")
    return {key: value for key, value in state.items() if key != "format"}


def plain_facts(state: Mapping[str, Any], section: str) -> dict[str, Any]:
    """What one line can show of a section of a state, by name; a state comes from anybody.

    state: as `read_state` gives it.  section: of it, empty where it is missing.
    """
    found = state.get(section)
    facts = found.items() if isinstance(found, dict) else ()
    return {name: value for name, value in facts if value is None or isinstance(value, str | int | float)}


def restore_model(model: nn.Module, weights: Mapping[str, Tensor], where: Path) -> None:
    """Copy `weights` into the model's existing parameters and buffers, all of them and nothing else.

    where: what to call the weights in errors, usually their checkpoint.
    """
    ours = model.state_dict()
    refuse_other_model(ours, weights, where)
    model.load_state_dict({name: as_laid_out(value, ours[name]) for name, value in weights.items()})


def refuse_other_model(ours: Mapping[str, Tensor], weights: Mapping[str, Tensor], where: Path) -> None:
    """ResumeMismatch where names, shapes or types of the two differ."""
    differences = {
        "missing": [name for name in ours if name not in weights],
        "unexpected": [name for name in weights if name not in ours],
        "of another shape": [
            f"{name} ({_form(weights[name])} saved, {_form(value)} here)"
            for name, value in ours.items()
            if name in weights and _form(weights[name]) != _form(value)
        ],
    }
    found = [f"{len(names)} {kind}: {_first_few(names)}" for kind, names in differences.items() if names]
    if found:
        raise ResumeMismatch(
            f"{where}: weights of this model expected, found {'; '.join(found)}; use the config saved with the run"
        )


def recipe_facts(*, device: torch.device, world_size: int, eager: bool) -> dict[str, Any]:
    """What bits depend on besides config, data and seed."""
    return {
        "world_size": world_size,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "cpu": _cpu_model(),
        "eager": eager,
        "torch": torch.__version__,
        "hjepa": version("hjepa"),
    }


def compare_recipe(saved: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """Each difference as a line to print. A difference drops the promise of equal bits, and nothing else."""
    names = dict.fromkeys([*saved, *ours])
    return [
        f"{name}: {saved.get(name, 'nothing')} saved, {ours.get(name, 'nothing')} here"
        for name in names
        if saved.get(name) != ours.get(name)
    ]


def _saving(folder: Path, step: int) -> Path:
    return folder / f".{_NAMED.format(step)}.saving"


def _unshared(model: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors on the CPU, each with memory of its own, as safetensors asks."""
    seen: set[int] = set()
    tensors: dict[str, Tensor] = {}
    for name, value in model.items():
        tensor = value.detach().to("cpu").contiguous()
        memory = tensor.untyped_storage().data_ptr()
        tensors[name] = tensor.clone() if memory in seen else tensor
        seen.add(memory)
    return tensors


def write_torch(path: Path, content: Mapping[str, Any]) -> None:
    """What `torch.load(weights_only=True)` reads. OSError where the disk is full."""
    try:
        with path.open("wb") as file:
            torch.save(dict(content), file)
    except RuntimeError as error:  # torch replaces the disk's own error by one of its zip writer
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _identity(path: Path, expected: Any = None) -> dict[str, Any]:
    """Of a regular file. OSError for anything else, links too: what they lead to is not this checkpoint's.

    expected: what is not as large is not read.
    """
    with os.fdopen(regular_descriptor(path, os.O_RDONLY | os.O_NOFOLLOW), "rb") as file:
        num_bytes = os.fstat(file.fileno()).st_size
        if isinstance(expected, dict) and expected.get("bytes") != num_bytes:
            return {"bytes": num_bytes}
        return {"bytes": num_bytes, "blake2b": hashlib.file_digest(file, "blake2b").hexdigest()}


def _sync(folder: Path) -> None:
    for file in folder.iterdir():
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
    sync_folder(folder)


def _standing(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, by step."""
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)] if folder.is_dir() else []
    return sorted(found, key=_step)


def _step(path: Path) -> int:
    match = _NAME.fullmatch(path.name)
    assert match, path
    return int(match[1])


def _remove(path: Path) -> None:
    """Never half a checkpoint under a checkpoint's name."""
    removing = path.with_name(f".{path.name}.removing")
    path.rename(removing)
    shutil.rmtree(removing)


def _verify(path: Path) -> None:
    if not path.is_dir():
        standing = [other.name for other in _standing(path.parent)]
        raise CheckpointError(f"{path}: no such checkpoint; here: {', '.join(standing) or 'none'}")
    expected = _read_json(path, _FILES)
    kind = {METADATA} if is_sharded(path) else {_MODEL, _OPTIMIZER}
    for name in sorted({*expected, *kind, _STATE}):
        if name in ("", ".", "..") or "/" in name or "\0" in name:
            raise damaged(path, f"{_FILES}: names of files in this folder expected, {name[:80]!r} found")
        try:
            found = _identity(path / name, expected.get(name))
        except OSError as error:
            raise damaged(path, f"{name} cannot be read: {on_one_line(error)}") from error
        if found != expected.get(name):
            raise damaged(path, f"{name} is not the one that was written ({found['bytes']} bytes found)")


def _read_json(path: Path, name: str) -> dict[str, Any]:
    try:
        content = json.loads(read_regular(path / name, _MOST_JSON_BYTES))
    except RecursionError as error:
        raise damaged(path, f"{name} is nested too deeply") from error
    except (OSError, ValueError) as error:
        raise damaged(path, f"{name} cannot be read: {on_one_line(error)}") from error
    if not isinstance(content, dict):
        raise damaged(path, f"{name} holds no object")
    if not _is_shallow(content, _MOST_DEPTH):
        raise damaged(path, f"{name} is nested too deeply")
    return content


def _is_shallow(content: Any, depth: int) -> bool:
    """Whether it is nested at most so deep."""
    if not isinstance(content, dict | list):
        return True
    inner = content.values() if isinstance(content, dict) else content
    return depth > 0 and all(_is_shallow(one, depth - 1) for one in inner)


def on_one_line(error: BaseException) -> str:
    """What an error of some library says.  error: any."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(said.split())[:200] or type(error).__name__


def damaged(path: Path, what: str) -> CheckpointError:
    """The error for a checkpoint whose files are not what was written.  what: is wrong, and where."""
    named = _NAME.fullmatch(path.name)
    before = [other for other in _standing(path.parent) if named and _step(other) < _step(path)]
    advice = f"resume from the one before, {before[-1]}" if before else "there is none before it; start the run again"
    return CheckpointError(f"{path}: damaged: {what}; {advice}")


def _advice(path: Path, error: Exception, needed: int) -> str:
    folder = next(parent for parent in path.parents if parent.exists())
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    before = latest(path.parent) if path.parent.is_dir() else None
    return (
        f"{path}: cannot be written: {reason} ({needed / 2**20:.1f} MiB needed, "
        f"{shutil.disk_usage(folder).free / 2**20:.1f} MiB free in {folder}); make room, then resume "
        + (f"from {before}" if before else "or start again: there is no checkpoint yet")
    )


def num_bytes(content: Any) -> int:
    """Bytes of all tensors inside."""
    if isinstance(content, Tensor):
        return content.numel() * content.element_size()
    inner: Iterable[Any] = ()
    if isinstance(content, Mapping):
        inner = content.values()
    elif isinstance(content, list | tuple):
        inner = content
    return sum(num_bytes(value) for value in inner)


def _form(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')}{list(tensor.shape)}"


def _first_few(names: list[str], limit: int = 3) -> str:
    return ", ".join(names[:limit]) + (f" and {len(names) - limit} more" if len(names) > limit else "")


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
