"""A run that begins with weights from elsewhere, and a backbone for weights without a run.

Every encoder of an objective begins with the same ones: a momentum target is a copy. `parts: all` takes the whole of a
run with the same objective, for a second phase at another resolution or on another mixture: what counts steps, and what
follows from the resolution, is the new run's.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from hjepa_shards.config import parse
from hjepa_shards.errors import InputError
from hjepa_train.backbones.base import Backbone
from hjepa_train.backbones.registry import BACKBONES, build_backbone
from hjepa_train.backbones.vit import SIZES
from hjepa_train.jobs.weight_sources import Found, find
from hjepa_train.modules.frozen_network import digest_of
from hjepa_train.objectives.base import Objective
from hjepa_train.weights.fitting import Fitted, fit, prefix_counts, put
from hjepa_train.weights.foreign_layouts import Converted
from hjepa_train.weights.init_config import InitConfig
from hjepa_train.weights.position_tables import as_fixed, split_prefix

_SIZED = ("img_size", "num_classes", "in_chans")
"""Arguments of timm's that follow from the images."""
_MEAN = ("simmim", "beit")
"""Layouts with a class token whose authors average the patches."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Began:
    """With what a run began."""

    facts: dict[str, Any]
    """For checkpoint and report: source, digest, layout, number of tensors."""
    notes: tuple[str, ...]


def begin_with(init: InitConfig, objective: Objective, name: str, where: str) -> Began:
    """Put weights into an objective that has its initial ones. On the meta device they are checked alone.

    name: of the objective, as in its configuration.  where: what to call the configuration in errors.
    InputError where they are not there, cannot be read, or do not fit.
    """
    try:
        found = find(init)
        if init.parts == "all":
            return _begin_all(found, init, objective, name)
        networks = [module for module in objective.modules() if isinstance(module, Backbone)]
        fitted = fit(networks[0], found.weights, leave=init.leave, where=found.source)
    except InputError as error:
        raise InputError(f"{where}: init: {error}") from error
    for backbone in networks:  # the encoder and its momentum copies
        put(backbone, fitted.tensors)
    return _began(found, fitted)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Built:
    """A backbone with weights from elsewhere."""

    backbone: Backbone
    config: dict[str, Any]
    """As a run's configuration has it: {name: its keys}."""
    fitted: Fitted


def build_with(found: Found, image_size: int, leave: Sequence[str] = ()) -> Built:
    """A backbone for images of this size, in pixels, with these weights: the one that their source or shapes say.

    leave: as in `init`. InputError where neither says it, or they do not fit.
    """
    name, content = _backbone_of(found)
    if name not in BACKBONES:
        raise InputError(f"{found.source}: backbone: one of {', '.join(BACKBONES)} expected, {name[:80]!r} found")
    config = parse(BACKBONES[name][0], content, f"{found.source}: backbone.{name}")
    with torch.device("meta"):  # a source may say any size: memory is taken for one that its weights have
        empty = build_backbone(name, config, image_size, seed=0)
    fit(empty, found.weights, leave=leave, where=found.source)
    backbone = build_backbone(name, config, image_size, seed=0)
    fitted = fit(backbone, found.weights, leave=leave, where=found.source)
    put(backbone, fitted.tensors)
    return Built(backbone=backbone, config={name: config.model_dump(mode="json")}, fitted=fitted)


def image_size_of(found: Found) -> int:
    """Side in pixels of the images that weights are of, as their source or their table of positions says it."""
    size, tensors = found.about.get("image_size"), found.weights.tensors
    if isinstance(size, int) and 0 < size < 2**16:
        return size
    table, patches = tensors.get("pos_embed"), tensors.get("patch_embed.proj.weight")
    split = split_prefix(table, prefix_counts(tensors)) if table is not None else None
    if split is None or patches is None:
        raise InputError(f"{found.source}: the size of its images is not in it; say it with --image-size")
    return math.isqrt(len(split[1])) * patches.shape[-1]


def _began(found: Found, fitted: Fitted) -> Began:
    facts = {
        "source": found.source,
        "digest": fitted.digest,
        "layout": found.weights.layout,
        "tensors": len(fitted.tensors),
    }
    return Began(facts=facts, notes=fitted.notes)


def _begin_all(found: Found, init: InitConfig, objective: Objective, name: str) -> Began:
    saved = found.saved
    if saved is None or list(saved.config.objective) != [name]:
        there = ", ".join(saved.config.objective) if saved else "no run"
        raise InputError(
            f"init.parts: all: a run with the objective {name} expected, {there} found in {found.source}; say `parts: "
            "backbone`"
        )
    theirs, ours = saved.objective.state_dict(), objective.state_dict()
    parameters = {name for name, _ in objective.named_parameters()}
    tensors: dict[str, Tensor] = {}
    inside: set[str] = set()
    notes: dict[str, None] = {}
    for prefix, module in objective.named_modules():
        if isinstance(module, Backbone):
            own = {key.removeprefix(f"{prefix}."): one for key, one in theirs.items() if key.startswith(f"{prefix}.")}
            fitted = fit(module, Converted(layout="timm", tensors=own, left=()), leave=init.leave, where=found.source)
            tensors |= {f"{prefix}.{key}": one for key, one in fitted.tensors.items()}
            inside |= {key for key in (*ours, *theirs) if key.startswith(f"{prefix}.")}
            notes |= dict.fromkeys(fitted.notes)
    rest = {
        key: one
        for key, one in theirs.items()
        if key not in inside
        and (key in parameters or key not in ours or (one.is_floating_point() and one.shape == ours[key].shape))
    }
    outer = _Rest({key: one for key, one in ours.items() if key not in inside and (key in parameters or key in rest)})
    fitted = fit(outer, Converted(layout="timm", tensors=rest, left=()), leave=(), where=found.source)
    tensors |= fitted.tensors
    put(objective, tensors)
    used = {key: theirs[key] for key in tensors}
    whole = Fitted(tensors=tensors, digest=digest_of(used), notes=tuple(notes))
    return _began(found, whole)


@final
class _Rest(torch.nn.Module):
    """What an objective has besides its backbones: names and shapes."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self._tensors = dict(tensors)

    def state_dict(self, *args: Any, **named: Any) -> dict[str, Tensor]:
        return self._tensors

    def named_parameters(self, *args: Any, **named: Any) -> Any:
        return iter(self._tensors.items())


def _backbone_of(found: Found) -> tuple[str, dict[str, Any]]:
    """(its name, its configuration), as the source says it, else as names and shapes do."""
    said, architecture = found.about.get("backbone"), found.about.get("architecture")
    if isinstance(said, dict) and len(said) == 1 and isinstance(next(iter(said.values())), dict):
        return next(iter(said.items()))
    if isinstance(architecture, str):
        arguments = found.about.get("arguments", {})
        return "timm", {"name": architecture, "arguments": {k: v for k, v in arguments.items() if k not in _SIZED}}
    tensors = found.weights.tensors
    patches, table = tensors.get("patch_embed.proj.weight"), tensors.get("pos_embed")
    numbers = {int(match[1]) for name in tensors if (match := re.match(r"blocks\.(\d{1,3})\.attn\.qkv\.weight$", name))}
    if patches is None or patches.dim() != 4 or not numbers:
        raise InputError(
            f"{found.source}: weights of a vision transformer, or an export that says its backbone, expected, neither "
            "found; export it with hjepa-train, or begin a run with it (`init`), whose configuration says the backbone"
        )
    width, depth, has_class = patches.shape[0], max(numbers) + 1, "cls_token" in tensors
    heads = {size[:2]: size[2] for size in SIZES.values()}.get((width, depth), width // 64)
    if not heads:
        raise InputError(
            f"{found.source}: the number of attention heads is not in weights, and {width} wide it is no published "
            "size; begin a run with them (`init`), whose configuration says it"
        )
    split = split_prefix(table, prefix_counts(tensors)) if table is not None else None
    fixed = as_fixed(split[1]) if split else None
    return "vit", {
        **{"width": width, "depth": depth, "heads": heads, "patch": patches.shape[2]},
        "class_tokens": int(has_class),
        "distillation_token": "dist_token" in tensors,
        "registers": tensors["reg_token"].shape[1] if "reg_token" in tensors else 0,
        "positions": "none" if table is None else "sincos" if fixed else "learnt",
        "position_grid": fixed.extent if fixed else None,
        "relative_bias": any(".rel_pos." in name for name in tensors),
        "pool": "class" if has_class and found.weights.layout not in _MEAN else "mean",
        "layer_scale": 1e-5 if "blocks.0.ls1.gamma" in tensors else None,
    }
