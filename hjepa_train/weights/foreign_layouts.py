"""The names that published models give their weights, as those of timm, which are also ours.

A layout is recognised by names that only it has. What it leaves out by rule (a decoder, a mask token, a head) is named
by the caller, never passed over: see `Converted.left`.

ijepa    facebookresearch/ijepa: `encoder`, `target_encoder`, `predictor`; no class token
mae      facebookresearch/mae: `model` with a decoder beside the encoder
dino     facebookresearch/dino: `teacher`, `student`, each `backbone.` and `head.`
dinov2   facebookresearch/dinov2: layer scale, mask token, register tokens; blocks in chunks while it trains
simmim   microsoft/SimMIM: `encoder.` (ViT or Swin) and `decoder.`
beit     BEiT and others: q and v biases apart, gamma_1 and gamma_2
swin     microsoft/Swin-Transformer: a stage's downsampling at its end; at the start of the next in timm
timm     huggingface/pytorch-image-models, and what is exported here
dinov3   facebookresearch/dinov3: refused, its positions are rotations
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Literal, final, get_args

import torch
from torch import Tensor

from hjepa_shards.errors import InputError

Layout = Literal["ijepa", "mae", "dino", "dinov2", "dinov3", "simmim", "beit", "swin", "timm"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)

_Named = dict[str, Tensor]
_BUFFERS = ("*relative_position_index", "*attn_mask")
"""Computed from the sizes alone."""
_HEADS = ("head.*", "head_dist.*", "fc.*")
_ALWAYS_LEFT = (*_BUFFERS, *_HEADS, "pre_logits.*")


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Converted:
    """Tensors under timm's names."""

    layout: Layout
    tensors: _Named
    left: tuple[str, ...]
    """Names, as in the file, of what this layout leaves out by rule."""
    left_if_unused: tuple[str, ...] = field(default=_ALWAYS_LEFT)
    """Patterns of what may be left over: a classifier, buffers."""


def recognise(names: Mapping[str, object], beside: tuple[str, ...] = ()) -> Layout:
    """The layout that has these names.  beside: names of the dictionaries that the file has."""
    for layout, is_it in _SIGNS.items():
        if is_it(names, beside):
            return layout
    return "timm"


def convert(tensors: Mapping[str, Tensor], layout: Layout, where: str) -> Converted:
    """Tensors of a layout, by timm's names. InputError for a layout that no backbone here can hold."""
    if layout == "dinov3":
        raise InputError(
            f"{where}: weights with learnt or sin-cos positions expected, DINOv3's found, whose positions are "
            "rotations inside each attention (rope), which no vision transformer here has; take DINOv2's"
        )
    found, left = _without(dict(tensors), _LEFT.get(layout, ()))
    for change in _CHANGES.get(layout, ()):
        found = change(found)
    return Converted(layout=layout, tensors=found, left=left)


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a name is one of these, in which * stands for anything."""
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def _has(pattern: str) -> Callable[[Mapping[str, object], tuple[str, ...]], bool]:
    return lambda names, beside: any(fnmatchcase(name, pattern) for name in names)


def _is_dinov2(names: Mapping[str, object], beside: tuple[str, ...]) -> bool:
    inner = [name.removeprefix("backbone.") for name in names]
    if any(name.startswith("dino_head.") or name == "register_tokens" for name in inner):
        return True
    return "mask_token" in inner and any(name.endswith("ls1.gamma") for name in inner)


_SIGNS: dict[Layout, Callable[[Mapping[str, object], tuple[str, ...]], bool]] = {
    "dinov3": lambda names, beside: any("rope_embed" in name or name.endswith("storage_tokens") for name in names),
    "mae": _has("decoder_pred.*"),
    "dinov2": _is_dinov2,
    "dino": lambda names, beside: _has("backbone.*")(names, beside) and _has("head.*")(names, beside),
    "simmim": lambda names, beside: _has("encoder.*")(names, beside) and _has("decoder.*")(names, beside),
    "ijepa": lambda names, beside: {"encoder", "target_encoder", "predictor"} <= set(beside),
    "swin": _has("layers.0.downsample.*"),
    "beit": lambda names, beside: _has("*.q_bias")(names, beside) or _has("*.gamma_1")(names, beside),
}
"""In the order in which they are tried."""

_LEFT: dict[Layout, tuple[str, ...]] = {
    "mae": ("decoder_*", "mask_token"),
    "dino": ("head.*",),
    "dinov2": ("mask_token", "backbone.mask_token", "dino_head.*", "ibot_head.*"),
    "simmim": ("decoder.*", "encoder.mask_token"),
    "beit": ("mask_token", "lm_head.*"),
}
"""By rule: what trained the encoder and is no part of it."""


def _without(tensors: _Named, patterns: tuple[str, ...]) -> tuple[_Named, tuple[str, ...]]:
    left = tuple(name for name in tensors if matches(name, patterns))
    return {name: value for name, value in tensors.items() if name not in left}, left


def _under(prefix: str) -> Callable[[_Named], _Named]:
    def change(tensors: _Named) -> _Named:
        return {name.removeprefix(prefix): value for name, value in tensors.items()}

    return change


def _renamed(pattern: str, by: str) -> Callable[[_Named], _Named]:
    def change(tensors: _Named) -> _Named:
        return {re.sub(pattern, by, name): value for name, value in tensors.items()}

    return change


def _joined_bias(tensors: _Named) -> _Named:
    """q and v biases -> that of qkv. A bias of k would be the same for all keys, and so changes no attention."""
    found = {name: value for name, value in tensors.items() if not name.endswith((".q_bias", ".v_bias"))}
    for name, value in tensors.items():
        other = tensors.get(f"{name.removesuffix('.q_bias')}.v_bias")
        if name.endswith(".q_bias") and other is not None:
            found[f"{name.removesuffix('.q_bias')}.qkv.bias"] = torch.cat([value, torch.zeros_like(value), other])
    return found


def _downsampled_first(tensors: _Named) -> _Named:
    """In Swin's own files a stage ends with its downsampling; in timm the next one begins with it."""
    if not any(name.startswith("layers.0.downsample.") for name in tensors):
        return tensors
    return {
        re.sub(r"^layers\.(\d+)\.downsample\.", lambda found: f"layers.{int(found[1]) + 1}.downsample.", name): value
        for name, value in tensors.items()
    }


def _bias_of_each_block(tensors: _Named) -> _Named:
    """Where all blocks share one table of relative positions, each has it, by the name that timm gives it."""
    shared = "rel_pos_bias.relative_position_bias_table"
    found = _renamed(r"^(blocks\.\d+\.attn)\.(relative_position_bias_table)$", r"\1.rel_pos.\2")(tensors)
    if shared not in found:
        return found
    table = found.pop(shared)
    blocks = {match[0] for name in found if (match := re.match(r"blocks\.\d+\.attn\.", name))}
    return found | {f"{block}rel_pos.relative_position_bias_table": table for block in blocks}


_BEIT = (_joined_bias, _renamed(r"\.gamma_([12])$", r".ls\1.gamma"), _bias_of_each_block)
_CHANGES: dict[Layout, tuple[Callable[[_Named], _Named], ...]] = {
    "dino": (_under("backbone."),),
    "dinov2": (
        _under("backbone."),
        _renamed(r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),
        _renamed(r"^register_tokens$", "reg_token"),
    ),
    "simmim": (_under("encoder."), *_BEIT, _downsampled_first),
    "beit": _BEIT,
    "swin": (_downsampled_first,),
}
