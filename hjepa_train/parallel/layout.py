"""How a model is laid over devices and memory: blocks recomputed, compiled, copied to all ranks or sharded over them.

None of it changes what is computed, but for rounding. All of it works on the blocks that encoders, predictors and
decoders are made of: those that a backbone names, and layers.Block elsewhere. An objective knows nothing about it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import nn

from hjepa_shards.config import Strict
from hjepa_train.backbones.base import Backbone
from hjepa_train.base.distributed import is_shard, world_size
from hjepa_train.modules.layers import Block, ComputedAgain

_FORWARDS = ("before_step", "survey", "observe", "sketch")
"""Methods of an objective, besides `forward`, that run its networks."""
_GRAPHS_A_BLOCK = 64
"""A block is compiled once for each of its uses: context, target and predictor, with gradients and without."""


class ScaleConfig(Strict):
    """What makes large models fit and fast."""

    parallel: Literal["ddp", "fsdp"] = "ddp"
    """over several ranks: each a copy of everything, or weights, gradients and moments sharded (FSDP2)"""
    compile: bool = False
    """torch.compile of every block: minutes at the start, then faster steps on a GPU"""
    activation_checkpointing: bool = False
    """keep only the input of each block for the backward pass: a quarter more arithmetic, much less memory"""


def lay_out(objective: nn.Module, config: ScaleConfig) -> None:
    """Make `objective`, already on its device, run as configured, in place. Names in its state_dict() stay."""
    blocks = blocks_of(objective)
    for block in blocks:
        if config.compile:
            torch._dynamo.config.recompile_limit = _GRAPHS_A_BLOCK  # pyright: ignore[reportPrivateUsage] the public name of it
            block.forward = torch.compile(block.forward, fullgraph=True, dynamic=False)
    if config.activation_checkpointing:
        recompute(objective)
    if config.parallel == "fsdp" and world_size() > 1:
        from torch.distributed.device_mesh import init_device_mesh  # only here: seconds
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

        device = next(objective.parameters()).device
        mesh = init_device_mesh(device.type, (world_size(),))  # by default that of the machine's accelerator
        for block in blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(objective, mesh=mesh)
        for name in _FORWARDS:
            register_fsdp_forward_method(objective, name)


def blocks_of(objective: nn.Module) -> list[nn.Module]:
    """All that its networks are made of. AssertionError for a backbone that names none."""
    named: list[nn.Module] = []
    for part in objective.modules():
        if isinstance(part, Backbone):
            blocks = part.block_list()
            assert blocks, f"{type(part).__name__}.block_list: at least one block expected, none found"
            named += blocks
    inner = {id(module) for block in named for module in block.modules()}
    return named + [part for part in objective.modules() if isinstance(part, Block) and id(part) not in inner]


def recompute(objective: nn.Module) -> None:
    """Have blocks keep their inputs alone for the backward pass. At most once for an objective."""
    for block in blocks_of(objective):
        block.forward = ComputedAgain(block.forward)


@contextmanager
def gathered(objective: nn.Module) -> Iterator[None]:
    """Inside, each rank holds all weights, and may run any part of the model by itself. All ranks enter it together."""
    if not any(map(is_shard, objective.parameters())):
        yield
        return
    from torch.distributed.fsdp import FSDPModule  # only here: seconds

    shards = [part for part in objective.modules() if isinstance(part, FSDPModule)]
    for part in shards:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in shards:
            part.reshard()
            part.set_reshard_after_forward(part is not objective, recurse=False)


@contextmanager
def uncompiled() -> Iterator[None]:
    """For what runs now and then: nothing is compiled for it."""
    with torch.compiler.set_stance("force_eager"):
        yield


@contextmanager
def looking_on(objective: nn.Module) -> Iterator[None]:
    """For what only looks at a model in training: evaluation mode, no gradient; every part is left in its own mode."""
    training = [part for part in objective.modules() if part.training]
    with torch.no_grad(), uncompiled():
        objective.eval()
        try:
            yield
        finally:
            for part in training:
                part.training = True


def compiled_graphs() -> dict[str, int]:
    """{"graphs": how many this process has compiled}, nothing where it compiles none.

    Where the number grows after the third step, shapes are not static.
    """
    number = torch._dynamo.utils.counters["stats"]["unique_graphs"]  # pyright: ignore[reportPrivateUsage] nothing public counts
    return {"graphs": number} if number else {}
