"""A run that begins with weights from elsewhere, and a backbone for weights without a run.

Every encoder of an objective begins with the same ones: a momentum target is a copy. `parts: all` takes the whole of a
run with the same objective, for a second phase at another resolution or on another mixture: what counts steps, and what
follows from the resolution, is the new run's.
"""

import re
from collections.abc import Mapping
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
from hjepa_train.objectives.base import Objective
from hjepa_train.weights.fitting import Fitted, digest_of, fit, put
from hjepa_train.weights.foreign_layouts import Converted
from hjepa_train.weights.init_config import InitConfig


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


def build_with(init: InitConfig, image_size: int) -> tuple[Backbone, Found, Fitted]:
    """A backbone for images of this size, in pixels, with these weights: the one that their source or shapes say."""
    found = find(init)
    name, content = _backbone_of(found, image_size)
    where = f"{found.source}: backbone.{name}"
    backbone = build_backbone(name, parse(BACKBONES[name][0], content, where), image_size, seed=0)
    fitted = fit(backbone, found.weights, leave=init.leave, where=found.source)
    put(backbone, fitted.tensors)
    return backbone, found, fitted


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


def _backbone_of(found: Found, image_size: int) -> tuple[str, dict[str, Any]]:
    """(its name, its configuration), as the source says it or as the shapes do."""
    said = found.about.get("backbone")
    if isinstance(said, dict) and len(said) == 1 and isinstance(next(iter(said.values())), dict):
        return next(iter(said.items()))
    tensors = found.weights.tensors
    patches = tensors.get("patch_embed.proj.weight")
    numbers = {int(match[1]) for name in tensors if (match := re.match(r"blocks\.(\d{1,3})\.attn\.", name))}
    if patches is None or patches.dim() != 4 or not numbers:
        raise InputError(
            f"{found.source}: weights of a vision transformer, or an export that says its backbone, expected, neither "
            "found"
        )
    width, depth = patches.shape[0], max(numbers) + 1
    heads = {size[:2]: size[2] for size in SIZES.values()}.get((width, depth), width // 64)
    return "vit", {"width": width, "depth": depth, "heads": found.about.get("heads", heads), "patch": patches.shape[2]}
