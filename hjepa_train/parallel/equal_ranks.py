"""What must be the same on every rank, compared by all of them: what they were given, and their weights.

A rank with another learning rate, seed or shards would train with the others to the end, on wrong numbers,
and no message between ranks would show it.
"""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from hjepa_shards.config import brief
from hjepa_shards.errors import InputError
from hjepa_train.base.distributed import gather, is_shard, world_size

_MOST_NAMED = 4


def require_same(facts: Mapping[str, Any], advice: str) -> None:
    """The same InputError on every rank, naming each fact in which a rank differs from rank 0. All ranks call it.

    facts: by name, of this rank; anything that pickles and compares.  advice: what to do next.
    """
    every = gather(dict(facts))
    found: list[str] = []
    for name in dict.fromkeys(name for one in every for name in one):
        values = [one.get(name) for one in every]
        others = [number for number, value in enumerate(values) if value != values[0]]
        if others:
            more = f" and {len(others) - 1} more" if len(others) > 1 else ""
            found.append(f"{name}: {brief(values[0])} on rank 0, {brief(values[others[0]])} on rank {others[0]}{more}")
    if found:
        named = "; ".join(found[:_MOST_NAMED]) + f"; and {len(found) - _MOST_NAMED} more" * (len(found) > _MOST_NAMED)
        raise InputError(f"the ranks do not have the same: {named}; {advice}")


@torch.no_grad()
def share_weights(module: nn.Module) -> None:
    """Make rank 0's weights and buffers those of all ranks, in place; before any of them is sharded."""
    if world_size() == 1:
        return
    for _, tensor in _tensors(module):
        whole = tensor.detach().contiguous()
        dist.broadcast(whole, src=0)
        tensor.copy_(whole)


def require_same_weights(module: nn.Module) -> None:
    """InputError on every rank, naming the weights and buffers that differ by a bit. All ranks call it.

    Those that are sharded exist once, in parts: there is nothing to compare.
    """
    if world_size() > 1:
        digests = {name: _digest(tensor) for name, tensor in _tensors(module) if not is_shard(tensor)}
        require_same(digests, "continue from a checkpoint that all ranks read the same, on machines without faults")


def _tensors(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Each once, with its name."""
    yield from module.named_parameters()
    yield from module.named_buffers()


def _digest(tensor: Tensor) -> str:
    data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data
    return hashlib.blake2b(data, digest_size=16).hexdigest()
