"""Sums over ranks, with gradients where a loss needs them. In one process everything here does nothing.

A statistic of the global batch is a sum of per-rank moments: `all_reduce` makes it and sends the gradient of
every rank's loss back to every rank. Each rank then holds the gradient of the *sum* of the ranks' losses, and
`average_gradients` turns it into that of their mean, which is what a single process would have computed on
the joined batch.
"""

from collections.abc import Iterable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

Value = TypeVar("Value")


def rank() -> int:
    """This process's number in [0, world_size())."""
    return dist.get_rank() if _initialised() else 0


def world_size() -> int:
    """The number of processes that train together; 1 outside torchrun."""
    return dist.get_world_size() if _initialised() else 1


def all_reduce(tensor: Tensor) -> Tensor:
    """The sum of every rank's `tensor`; backward sums every rank's gradient."""
    return _Sum.apply(tensor) if world_size() > 1 else tensor  # pyright: ignore[reportReturnType]


def gather(value: Value) -> list[Value]:
    """Every rank's `value`, by rank; anything that pickles."""
    gathered: list[Any] = [value] * world_size()
    if world_size() > 1:
        dist.all_gather_object(gathered, value)
    return gathered


@torch.no_grad()
def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its mean over ranks, one message per dtype. A missing gradient counts as zero."""
    if world_size() == 1:
        return
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for parameter in parameters:
        if parameter.requires_grad:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            by_dtype.setdefault(parameter.dtype, []).append(parameter.grad)
    for gradients in by_dtype.values():
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        flat /= world_size()
        pieces = flat.split([gradient.numel() for gradient in gradients])
        for gradient, piece in zip(gradients, pieces, strict=True):
            gradient.copy_(piece.view_as(gradient))


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total


def _initialised() -> bool:
    return dist.is_available() and dist.is_initialized()
