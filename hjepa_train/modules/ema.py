"""Momentum copies of a network: they follow it, and are never trained themselves."""

import torch
from torch import Tensor, nn

from hjepa_train.base.distributed import is_shard


@torch.no_grad()
def follow(copy: nn.Module, leader: nn.Module, share: float, wanted: Tensor) -> None:
    """Move every parameter of `copy` by this share of the way to the leader's; its buffers become the leader's.

    wanted: a bool on the device; where it is false no parameter moves. Shards stay where they are (FSDP2).
    """
    ours, theirs = ([_local(parameter) for parameter in net.parameters()] for net in (copy, leader))
    if wanted.device.type == "cuda":
        lerp_together(ours, theirs, wanted * share)
    else:
        for our, their in zip(ours, theirs, strict=True):
            our.lerp_(their, wanted.to(our.dtype) * share)
    for our, their in zip(copy.buffers(), leader.buffers(), strict=True):
        our.copy_(their)


def lerp_together(ours: list[Tensor], theirs: list[Tensor], share: Tensor) -> None:
    """A few kernels for all tensors, not one for each: what counts on a GPU. On a CPU it takes six times as long."""
    # the foreach functions have no public names; torch's own optimizers call them by these
    way = torch._foreach_sub(theirs, ours)  # pyright: ignore[reportPrivateImportUsage]
    torch._foreach_mul_(way, share)  # pyright: ignore[reportPrivateImportUsage]
    torch._foreach_add_(ours, way)  # pyright: ignore[reportPrivateImportUsage]


def _local(parameter: nn.Parameter) -> Tensor:
    return parameter.to_local() if is_shard(parameter) else parameter.detach()
