"""Layers that drop something at random: residual branches (stochastic depth, arXiv 1603.09382) and single numbers.

What an image loses is a function of (seed, layer, view, position), so it is the same in any batch, on any rank, and
when a block is computed again in the backward pass. PyTorch's own layers draw from a generator of the whole process:
every split of a step would draw something else, and recomputation a gradient of another network.

An objective passes what one `encode` drops along with it; where it passes nothing, as in evaluation and for momentum
targets, nothing is dropped.

Axes: B images, L layers, ... a branch's further axes.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from hjepa_train.base.keyed_integers import BITS, draw_integers, mixed

_ONE = 2**BITS


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Drops:
    """What one pass of some images through a network drops."""

    factors_LB: Tensor
    """float, of each layer's branch: 0 where it is dropped, 1 / (1 - rate) where it stays"""
    words_LB: Tensor
    """int64, what each layer's single numbers are drawn by"""


_now: list[Drops | None] = [None]
"""Of the network that is running; one thread computes."""


def draw_drops(limits_L: Tensor, key: int, positions_B: Tensor) -> Drops:
    """For a network's layers.  limits_L: by `limits_of`, on the device of the positions.

    key: of the network and the view, from `derive_key`.  positions_B: of the images.
    """
    integers_LB = draw_integers(key, positions_B, len(limits_L)).T.contiguous()
    kept_LB = integers_LB >= limits_L[:, None]
    return Drops(factors_LB=kept_LB / (1 - limits_L / _ONE)[:, None], words_LB=mixed(integers_LB))


def limits_of(rates_L: Sequence[float]) -> Tensor:
    """[L] int64: drawn integers below are dropped.  rates_L: shares of the images whose branch is dropped."""
    return torch.tensor([round(rate * _ONE) for rate in rates_L], dtype=torch.int64)


def joined(parts: Sequence[Drops | None]) -> Drops | None:
    """Of batches that pass together, one after another; None where nothing is dropped of them."""
    drops = [part for part in parts if part is not None]
    if not drops:
        return None
    return Drops(
        factors_LB=torch.cat([part.factors_LB for part in drops], 1),
        words_LB=torch.cat([part.words_LB for part in drops], 1),
    )


@contextmanager
def dropping(drops: Drops | None) -> Iterator[None]:
    """Inside, the layers below drop this; nothing for None."""
    before, _now[0] = _now[0], drops
    try:
        yield
    finally:
        _now[0] = before


def current() -> Drops | None:
    """What the layers below drop now: to be handed to `dropping` where a block is computed again."""
    return _now[0]


@final
class DropPath(nn.Module):
    """A residual branch that whole images lose."""

    def __init__(self, rate: float, layer: int) -> None:
        """layer: its number among all layers of the network that drop."""
        super().__init__()
        self.rate = rate
        self.register_buffer("layer_1", torch.tensor([layer]), persistent=False)

    layer_1: Tensor
    """a tensor, so that blocks which differ in it alone are compiled once"""

    def forward(self, branch: Tensor) -> Tensor:
        """[B, ...] to the same shape."""
        drops = _now[0]
        if drops is None or not self.training:
            return branch
        factor_B = drops.factors_LB.index_select(0, self.layer_1)[0].to(branch.dtype)
        return branch * factor_B.view(-1, *[1] * (branch.ndim - 1))


@final
class Dropout(nn.Module):
    """Single numbers of a tensor, each with the same probability. A few operations an element, one kernel compiled."""

    def __init__(self, rate: float, layer: int) -> None:
        """layer: as of `DropPath`."""
        super().__init__()
        self.rate = rate
        self.register_buffer("layer_1", torch.tensor([layer]), persistent=False)

    layer_1: Tensor
    """a tensor, so that blocks which differ in it alone are compiled once"""

    def forward(self, numbers: Tensor) -> Tensor:
        """[B, ...] to the same shape."""
        drops = _now[0]
        if drops is None or self.rate == 0 or not self.training:
            return numbers
        element = torch.arange(numbers[0].numel(), device=numbers.device).view(1, *numbers.shape[1:])
        words = mixed(element ^ drops.words_LB.index_select(0, self.layer_1).view(-1, *[1] * (numbers.ndim - 1)))
        kept = (words & (_ONE - 1)) >= round(self.rate * _ONE)
        return numbers * kept.to(numbers.dtype) / (1 - self.rate)


def rising(rate: float, depth: int) -> list[float]:
    """Of each block: linearly from 0 in the first to `rate` in the last."""
    return [rate * block / max(1, depth - 1) for block in range(depth)]


def number_layers(network: nn.Module) -> list[float]:
    """Number the layers that drop in the order of the network. Returns the rate of each."""
    layers = [part for part in network.modules() if isinstance(part, DropPath | Dropout)]
    for number, part in enumerate(layers):
        part.layer_1.fill_(number)
    return [part.rate for part in layers]
