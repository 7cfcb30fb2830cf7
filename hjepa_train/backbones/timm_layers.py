"""Networks of timm made fit for a run: built from a keyed seed, their random layers keyed, their memory ours.

timm is imported here, when such a backbone is built, for it takes ten seconds of a processor.
"""

import importlib.util
from collections.abc import Callable
from types import MethodType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hjepa_shards.errors import InputError
from hjepa_train.modules.batch_norm import BatchNorm, replace_batch_norm
from hjepa_train.modules.keyed_drops import Dropout, DropPath

Net = TypeVar("Net", bound=nn.Module)


def require_timm(family: str) -> None:
    """InputError where timm is not installed.  family: whose networks are timm's."""
    if importlib.util.find_spec("timm") is None:
        raise InputError(f"backbone.{family}: timm expected, not installed; run `pip install 'hjepa[backbones]'`")


def build_keyed(build: Callable[[], Net], generator: torch.Generator, family: str) -> Net:
    """What `build` makes, with weights by the generator's seed, and layers of ours where timm's draw or remember.

    InputError for a network with others that do.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(generator.initial_seed())
        network = build()
    from timm.layers.drop import DropPath as TheirDropPath
    from timm.layers.norm_act import BatchNormAct2d

    parts: list[Any] = list(network.modules())
    for part in parts:
        if hasattr(part, "attention_bias_cache"):
            part.get_attention_biases = MethodType(_biases_now, part)
        for name, child in list(part.named_children()):
            if isinstance(child, TheirDropPath):
                setattr(part, name, DropPath(child.drop_prob, 0))
            elif type(child) is nn.Dropout and child.p > 0:
                setattr(part, name, Dropout(child.p, 0))
            elif type(child) is BatchNormAct2d and child.affine and child.track_running_stats:
                setattr(part, name, _with_activation(child))
    replace_batch_norm(network)
    for name, part in network.named_modules():
        is_random = isinstance(part, nn.modules.dropout._DropoutNd) and part.p > 0  # pyright: ignore[reportPrivateUsage]
        remembers = getattr(part, "running_var", None) is not None and not isinstance(part, BatchNorm)
        if is_random or remembers:
            raise InputError(
                f"backbone.{family}: a network whose layers draw nothing and remember nothing by themselves expected, "
                f"{name} ({type(part).__name__}) found; choose another"
            )
    return network


def repeated(network: nn.Module) -> list[nn.Module]:
    """What a network is made of: the innermost sequences of parts of one kind, part by part."""
    inside = [block for child in network.children() for block in repeated(child)]
    if inside or not isinstance(network, nn.Sequential | nn.ModuleList):
        return inside
    kinds = {type(child) for child in network.children()}
    if len(kinds) == 1 and all(any(child.children()) and learns(child) for child in network.children()):
        return list(network.children())
    return []


def learns(part: nn.Module) -> bool:
    """Whether it has parameters."""
    return next(part.parameters(), None) is not None


def _biases_now(attention: Any, device: torch.device) -> Tensor:
    """In place of a method that keeps them in evaluation mode, when they may have moved since."""
    del device
    return attention.attention_biases[:, attention.attention_bias_idxs]


def _with_activation(theirs: Any) -> BatchNorm:
    """Of timm's BatchNormAct2d: ours, and after it what theirs has after it, by its names."""
    ours = BatchNorm(theirs.num_features, eps=theirs.eps, momentum=theirs.momentum or 0.1)
    ours.load_state_dict({name: value for name, value in theirs.state_dict().items() if "." not in name})
    ours.add_module("drop", theirs.drop)
    ours.add_module("act", theirs.act)
    ours.register_forward_hook(_activated)
    return ours


def _activated(norm: nn.Module, inputs: object, out: Tensor) -> Tensor:
    del inputs
    return norm.get_submodule("act")(norm.get_submodule("drop")(out))
