"""Memory that no gradient moves: running moments, rings of keys, centres.

A forward pass offers what it found, and nothing moves; `commit` after the optimizer step takes all that was offered in
the step's micro-batches, or drops it where the step was not finite. A block that is computed again in the backward
pass offers nothing the second time.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

_computed_again = [False]


class OfferedMemory(nn.Module, ABC):
    """A module that remembers. What it remembers is in its buffers, so in its state_dict()."""

    @abstractmethod
    def commit(self, is_finite: Tensor) -> None:
        """Take what was offered since the last call.  is_finite: on the device; where it is false, drop it."""


def commit_all(network: nn.Module, is_finite: Tensor) -> None:
    """Every memory of a network takes what it was offered."""
    for part in network.modules():
        if isinstance(part, OfferedMemory):
            part.commit(is_finite)


@contextmanager
def computing_again() -> Iterator[None]:
    """Inside, nothing is offered."""
    before, _computed_again[0] = _computed_again[0], True
    try:
        yield
    finally:
        _computed_again[0] = before


def is_offered() -> bool:
    """Whether what a forward pass finds now is to be remembered."""
    return not _computed_again[0]
