"""Named weights put into a backbone: all of it, and nothing left over that is not named.

Positions are converted first (position_tables.py). What is missing, left over, or of another shape is an error that
names the first five, unless the user says that it may be (`init.leave`), or it is a part that the layout leaves out by
rule; that is said too.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from hjepa_shards.errors import InputError
from hjepa_train.backbones.base import Backbone
from hjepa_train.modules.frozen_network import digest_of
from hjepa_train.modules.relative_bias import resampled
from hjepa_train.weights.foreign_layouts import Converted, matches
from hjepa_train.weights.position_tables import (
    as_fixed,
    fixed_table,
    halves_exchanged,
    split_prefix,
)

_PREFIXES = ("cls_token", "dist_token", "reg_token")
"""Tokens before the patches, in the order in which they have rows in a position table."""
_PATCHES = "patch_embed.proj.weight"
_NAMED = 5


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Fitted:
    """What is to be copied into a backbone."""

    tensors: dict[str, Tensor]
    """By the backbone's names, in its shapes."""
    digest: str
    """Of the tensors that were used, as they were found."""
    notes: tuple[str, ...]
    """What was converted or left out, a sentence each."""


def fit(backbone: nn.Module, found: Converted, *, leave: Sequence[str], where: str) -> Fitted:
    """Weights as a backbone takes them; of the backbone only names and shapes are looked at.

    leave: names, in which * stands for anything, that may be missing, left over or of another shape.
    where: what to call the weights in errors. InputError where they do not fit.
    """
    ours, parameters = backbone.state_dict(), {name for name, _ in backbone.named_parameters()}
    patterns = tuple(leave)
    useless = [one for one in patterns if not any(matches(name, (one,)) for name in (*ours, *found.tensors))]
    if useless:
        raise InputError(f"{where}: init.leave: {useless[0]}: a name on one of both sides expected; leave it out")
    tensors, notes = {name: one for name, one in found.tensors.items() if not matches(name, patterns)}, list[str]()
    _refuse_other_patches(ours.get(_PATCHES), tensors.get(_PATCHES), where)
    digest = digest_of({name: tensor for name, tensor in tensors.items() if name in ours})
    if "pos_embed" in tensors and "pos_embed" in ours:
        tensors, notes = _with_positions(backbone, tensors, prefix_counts(found.tensors), where)
    tensors, more = _with_relative_positions(tensors, ours)
    notes += more
    computed = {
        name
        for name in ours
        if name not in parameters
        and (not ours[name].is_floating_point() or (name == "pos_embed" and name not in tensors))
    }
    wanted = [name for name in ours if name not in computed and not matches(name, patterns)]
    neutral = _neutral(backbone)
    over = [name for name in tensors if name not in ours and not _is_neutral(tensors[name], neutral.get(name))]
    wrong = {
        "missing": [name for name in wanted if name not in tensors],
        "left over": [name for name in over if not matches(name, found.left_if_unused)],
        "of another shape": [name for name in wanted if name in tensors and tensors[name].shape != ours[name].shape],
    }
    if any(wrong.values()):
        raise InputError(_message(where, wrong, ours, tensors, found))
    kept = {name: tensors[name] for name in wanted}
    bad = [name for name, tensor in kept.items() if not bool(tensor.isfinite().all())]
    if bad:
        raise InputError(f"{where}: finite numbers expected, others found in {_first(bad)}; choose other weights")
    if by_rule := [*found.left, *over]:
        notes.append(f"no part of the backbone, left out: {_first(by_rule)}")
    if left := [name for name in dict.fromkeys((*ours, *found.tensors)) if matches(name, patterns)]:
        notes.append(f"left as they are, by init.leave: {_first(left)}")
    return Fitted(tensors=kept, digest=digest, notes=tuple(notes))


@torch.no_grad()
def put(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Copy these into a module's parameters and buffers of the same names and shapes; a meta tensor stays as it is."""
    ours = module.state_dict()
    for name, tensor in tensors.items():
        if not ours[name].is_meta:
            ours[name].copy_(tensor)


def _refuse_other_patches(ours: Tensor | None, theirs: Tensor | None, where: str) -> None:
    """Of an embedding of patches: its channels and the side of a patch."""
    if ours is None or theirs is None or ours.dim() != 4 or theirs.dim() != 4:
        return
    if theirs.shape[1] != ours.shape[1]:
        raise InputError(
            f"{where}: {_PATCHES}: weights for images of {ours.shape[1]} channels expected, for {theirs.shape[1]} "
            "found; choose weights that were trained on colour images"
        )
    if theirs.shape[2:] != ours.shape[2:]:
        raise InputError(
            f"{where}: {_PATCHES}: patches of {ours.shape[2]} pixels expected, of {theirs.shape[2]} found; set the "
            f"backbone's patch to {theirs.shape[2]}"
        )


def _with_positions(
    backbone: nn.Module, tensors: dict[str, Tensor], counts: tuple[int, ...], where: str
) -> tuple[dict[str, Tensor], list[str]]:
    """With `pos_embed` as the backbone has it, or without it where the backbone's own says the same.

    counts: how many rows of prefix tokens the table may have.
    """
    ours = backbone.state_dict()
    theirs, here = split_prefix(tensors["pos_embed"], counts), split_prefix(ours["pos_embed"], prefix_counts(ours))
    if theirs is None or here is None or theirs[1].shape[1] != here[1].shape[1]:
        return tensors, []  # of another shape, and named as that
    (prefix, table), num_here, side = theirs, len(here[0]), math.isqrt(len(here[1]))
    kind, before, notes = as_fixed(table), math.isqrt(len(table)), list[str]()
    if len(prefix) > num_here:
        tensors, prefix = _into_tokens(tensors, prefix, num_here), prefix[:num_here]
    if "pos_embed" in dict(backbone.named_parameters()):
        if before != side:
            notes.append(f"positions of {before} x {before} cells as {side} x {side}")
        grid = fixed_table(side, table.shape[1], kind) if kind and before != side else resampled(table, side)
        rows = [prefix.float(), torch.zeros(num_here - len(prefix), table.shape[1]), grid.float()]
        return tensors | {"pos_embed": torch.cat(rows).view(ours["pos_embed"].shape)}, notes
    if kind is None:
        raise InputError(
            f"{where}: pos_embed: a fixed table of positions expected, as this backbone has one, a learnt one found; "
            "set backbone.vit.positions: learnt"
        )
    extent = getattr(backbone, "extent", None) or side
    if extent != kind.extent:
        raise InputError(
            f"{where}: pos_embed: positions in units of a grid of {extent} x {extent} cells expected, of "
            f"{kind.extent} x {kind.extent} found; set backbone.vit.position_grid: {kind.extent}"
        )
    if before != side:
        notes.append(f"positions of {before} x {before} cells as {side} x {side}, between them")
    tensors = _into_tokens(tensors, prefix, 0)
    if kind.column_first:
        tensors = halves_exchanged(tensors)
        notes.append("its positions have the column first, ours the row: the halves of all channels are exchanged")
    return {name: tensor for name, tensor in tensors.items() if name != "pos_embed"}, notes


def _with_relative_positions(
    tensors: dict[str, Tensor], ours: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """With tables of relative positions as large as the backbone's: [(2 G - 1)^2 + rows of prefix tokens, heads]."""
    found, notes = dict(tensors), dict[str, None]()
    for name in tensors:
        if not name.endswith("relative_position_bias_table") or name not in ours:
            continue
        theirs, here = tensors[name], ours[name]
        if theirs.dim() != 2 or theirs.shape == here.shape or theirs.shape[1:] != here.shape[1:]:
            continue
        split, wanted = split_prefix(theirs, (0, 3)), split_prefix(here, (0, 3))
        if split is None or wanted is None or len(split[0]) != len(wanted[0]):
            continue
        rows, side = len(split[0]), math.isqrt(len(wanted[1]))
        # rows of prefix tokens are the last ones of such a table
        cells, prefix = theirs[: len(theirs) - rows], theirs[len(theirs) - rows :]
        notes[f"relative positions of {math.isqrt(len(cells))} x {math.isqrt(len(cells))} as {side} x {side}"] = None
        found[name] = torch.cat([resampled(cells, side), prefix])
    return found, list(notes)


def _neutral(backbone: nn.Module) -> Mapping[str, Tensor]:
    """What timm's network has besides, where it changes nothing."""
    try:
        return backbone.as_timm().more if isinstance(backbone, Backbone) else {}
    except InputError:
        return {}


def _is_neutral(tensor: Tensor, neutral: Tensor | None) -> bool:
    if neutral is None or tensor.shape != neutral.shape:
        return False
    return neutral.is_meta or bool((tensor == neutral).all())


def prefix_counts(tensors: Mapping[str, Tensor]) -> tuple[int, ...]:
    """How many rows before the patches a position table may have: none, or those of its tokens."""
    counts = [0]
    for name in _PREFIXES:
        if name in tensors:
            counts.append(counts[-1] + math.prod(tensors[name].shape[:-1]))
    return tuple(reversed(counts))


def _into_tokens(tensors: dict[str, Tensor], prefix: Tensor, first: int) -> dict[str, Tensor]:
    """Rows of a position table added to the tokens that they are of.  first: those before stay in the table."""
    found, at = dict(tensors), 0
    for name in _PREFIXES:
        if name in tensors and at < len(prefix):
            count = math.prod(tensors[name].shape[:-1])
            if at >= first:
                rows = prefix[at : at + count]
                found[name] = tensors[name] + rows.view(tensors[name].shape).to(tensors[name].dtype)
            at += count
    return found


def _message(
    where: str,
    wrong: Mapping[str, list[str]],
    ours: Mapping[str, Tensor],
    tensors: Mapping[str, Tensor],
    found: Converted,
) -> str:
    shown = dict(wrong)
    shown["of another shape"] = [
        f"{name} ({list(tensors[name].shape)} found, {list(ours[name].shape)} here)"
        for name in wrong["of another shape"]
    ]
    said = "; ".join(f"{len(names)} {kind}: {_first(names)}" for kind, names in shown.items() if names)
    if len(wrong["missing"]) == len([name for name in ours if name not in tensors]) and not set(ours) & set(tensors):
        advice = "choose the backbone that they are of, or what they are inside with init.key or init.layout"
    elif "cls_token" in wrong["left over"]:
        advice = "set backbone.vit.class_tokens: 1, or init.leave: [cls_token] to do without it"
    else:
        advice = "choose the backbone that they are of, or name what may differ in init.leave"
    return f"{where}: weights of this backbone expected (layout {found.layout}), found {said}; {advice}"


def _first(names: Iterable[str]) -> str:
    names = list(names)
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(name[:120] for name in names[:_NAMED]) + more
