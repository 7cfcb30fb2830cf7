"""Weights by what a user calls them: a run, a file, a folder of timm's, a published model.

What comes from a server is fetched by the libraries of those who publish there (timm, huggingface_hub). Files of
hf-hub are read here as any file is; those of timm by timm, which does not execute them either.
"""

import importlib.util
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import torch

from hjepa_shards.base.regular_files import read_regular
from hjepa_shards.errors import InputError
from hjepa_train.checkpoints.checkpoint_files import on_one_line
from hjepa_train.jobs.saved_objective import SavedObjective, load_objective
from hjepa_train.training.config import CONFIG_FILE
from hjepa_train.weights.foreign_layouts import Converted, convert, recognise
from hjepa_train.weights.init_config import InitConfig
from hjepa_train.weights.weight_files import read_weights

_MOST_JSON_BYTES = 1 << 24
_SAID = ("image_size", "mean", "std", "backbone")
"""What our exports say of themselves."""
_FILES = ("model.safetensors", "pytorch_model.bin", "model.pt")
"""Of weights, in a folder of timm's or of an export, the first that is there."""
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and deviation of the pixels with which the published layouts were trained."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """Weights, and what is known about them."""

    weights: Converted
    source: str
    """For people: the file or checkpoint, and which part of it."""
    about: Mapping[str, Any]
    """What the source says of itself: image_size, mean, std, backbone; any may be missing."""
    saved: SavedObjective | None = None
    """Of a run."""


def find(init: InitConfig) -> Found:
    """The weights that a user names. InputError where they are not there or cannot be read."""
    kind, colon, name = init.weights.partition(":")
    if colon and kind in _OF_TIMM:
        return _OF_TIMM[kind](name, init)
    folder, path = _as_run(Path(init.weights)), Path(init.weights)
    if folder is not None:
        return _of_run(*folder, init)
    if init.encoder is not None or init.checkpoint != "latest":
        raise InputError(f"{path}: init.encoder and init.checkpoint choose in a run's folder, and this is none")
    if path.is_dir():
        inside = next((path / name for name in _FILES if (path / name).is_file()), None)
        if inside is None:
            raise InputError(
                f"{path}: a run's or a checkpoint's folder, or one with {', '.join(_FILES)} expected, neither found"
            )
        return _of_file(inside, init, _about_folder(path))
    return _of_file(path, init, {})


def _as_run(path: Path) -> tuple[Path, str | None] | None:
    """(a run's folder, one of its checkpoints where the path says it)"""
    if (path / CONFIG_FILE).is_file():
        return path, None
    if (path / "state.json").is_file() and path.parent.name == "checkpoints":
        return path.parent.parent, path.name
    return None


def _of_run(folder: Path, checkpoint: str | None, init: InitConfig) -> Found:
    if init.key is not None or init.layout is not None:
        raise InputError(
            f"{folder}: init.key and init.layout are of files, and this is a run; choose with init.encoder"
        )
    if checkpoint and init.checkpoint != "latest":
        raise InputError(f"{folder}: init.checkpoint: {init.checkpoint}, and init.weights names {checkpoint}: say one")
    saved = load_objective(folder, checkpoint or init.checkpoint)
    name, encoder = saved.encoder(init.encoder, "init.encoder:")
    data = saved.config.data
    return Found(
        weights=Converted(layout="timm", tensors=dict(encoder.state_dict()), left=()),
        source=f"{saved.checkpoint}" + (f", {name}" if init.parts == "backbone" else ""),
        about={
            "image_size": data.image_size,
            "mean": list(data.pixel_mean),
            "std": list(data.pixel_std),
            "backbone": saved.config.backbone,
        },
        saved=saved,
    )


def _of_file(path: Path, init: InitConfig, about: Mapping[str, Any], called: str = "") -> Found:
    named = read_weights(path, init.key)
    layout = init.layout or recognise(named.tensors, named.beside)
    where = (called or str(path)) + (f", {'.'.join(named.path)}" if named.path else "")
    weights = convert(named.tensors, layout, where)
    known = _pixels({key: _unquoted(named.about[key]) for key in _SAID if key in named.about})
    if layout not in ("timm", "dinov3"):
        about = {"mean": list(IMAGENET[0]), "std": list(IMAGENET[1]), **about}
    return Found(weights=weights, source=where, about={**known, **about})


def _unquoted(value: Any) -> Any:
    """A value of safetensors' metadata, which our exports write as JSON."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except (ValueError, RecursionError):
        return value


def _about_folder(folder: Path) -> dict[str, Any]:
    """What timm's config.json says, empty where there is none. InputError where it cannot be read."""
    path = folder / "config.json"
    if not path.exists():
        return {}
    try:
        content = json.loads(read_regular(path, _MOST_JSON_BYTES))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: timm's description of a model expected: {on_one_line(error)}") from error
    return _about_timm(content if isinstance(content, dict) else {})


def _about_timm(content: Mapping[str, Any]) -> dict[str, Any]:
    about, arguments = (content.get(name) for name in ("pretrained_cfg", "model_args"))
    about, arguments = (one if isinstance(one, dict) else {} for one in (about, arguments))
    size = about.get("input_size")
    known = {
        "image_size": size[-1] if isinstance(size, list | tuple) and size else None,
        "mean": about.get("mean"),
        "std": about.get("std"),
        "architecture": content.get("architecture"),
        "arguments": arguments,
    }
    return _pixels({key: value for key, value in known.items() if value is not None})


def _pixels(about: dict[str, Any]) -> dict[str, Any]:
    """Without a mean or deviation that is none of three colours."""

    def is_one(value: Any) -> bool:
        return (
            isinstance(value, list | tuple) and len(value) == 3 and all(isinstance(one, int | float) for one in value)
        )

    return {key: value for key, value in about.items() if key not in ("mean", "std") or is_one(value)}


def _local_dir(name: str, init: InitConfig) -> Found:
    folder = Path(name).expanduser()
    inside = next((folder / one for one in _FILES if (folder / one).is_file()), None)
    if inside is None:
        raise InputError(f"local-dir:{name}: a folder with {' or '.join(_FILES)} expected, none found")
    return _of_file(inside, init, _about_folder(folder), f"local-dir:{name}")


def _hub(name: str, init: InitConfig) -> Found:
    if importlib.util.find_spec("huggingface_hub") is None:
        raise InputError(f"hf-hub:{name}: huggingface_hub is not installed; run `pip install huggingface_hub`")
    from huggingface_hub import hf_hub_download

    repository, _, revision = name.partition("@")
    found: dict[str, Path] = {}
    reason: Exception | None = None
    for wanted in ("config.json", *_FILES[:2]):
        if any(one in found for one in _FILES):
            break
        try:
            found[wanted] = Path(hf_hub_download(repository, wanted, revision=revision or None))
        except Exception as error:  # whatever this library raises for what it cannot reach or does not find
            reason = error
    weights = next((found[one] for one in _FILES if one in found), None)
    if weights is None:
        raise InputError(
            f"hf-hub:{name}: {' or '.join(_FILES[:2])} expected there, none found: {on_one_line(reason or OSError())}; "
            "download it elsewhere and say local-dir:FOLDER"
        ) from reason
    about = _about_folder(found["config.json"].parent) if "config.json" in found else {}
    return _of_file(weights, init, about, f"hf-hub:{name}")


def _timm(name: str, init: InitConfig) -> Found:
    if importlib.util.find_spec("timm") is None:
        raise InputError(f"timm:{name}: timm is not installed; run `pip install timm`")
    import timm  # seconds

    try:
        with torch.random.fork_rng(devices=[]):
            model = timm.create_model(name, pretrained=True, num_classes=0)
    except Exception as error:  # whatever timm, or what it downloads with, raises
        raise InputError(
            f"timm:{name}: a model with published weights expected: {on_one_line(error)}; `timm.list_pretrained()` "
            "names those that there are; without a network, name a downloaded file"
        ) from error
    about = _about_timm({"pretrained_cfg": model.pretrained_cfg, "architecture": name})
    weights = Converted(layout="timm", tensors=dict(model.state_dict()), left=())
    return Found(weights=weights, source=f"timm:{name}", about=about)


_OF_TIMM = {"timm": _timm, "local-dir": _local_dir, "hf-hub": _hub}
