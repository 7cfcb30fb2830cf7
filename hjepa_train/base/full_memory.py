"""A memory that is full: how PyTorch, NumPy and Python say it, as one error that a user can act on."""

import contextlib
import re
from collections.abc import Callable, Iterator

import torch

from hjepa_shards.errors import InputError

_FULL = re.compile("MPS backend out of memory|can't allocate memory")
"""What PyTorch says on MPS and on a CPU, where it has no type of error for it."""


def is_full_memory(error: Exception) -> bool:
    """Whether PyTorch, NumPy or Python say with it that a memory is full."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or bool(_FULL.search(str(error)))


@contextlib.contextmanager
def reporting_full_memory(advice: Callable[[], str] | str) -> Iterator[None]:
    """InputError where the device's memory is full.  advice: whose it is, with what, and what to do next."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_full_memory(error):
            raise
        raise InputError(advice if isinstance(advice, str) else advice()) from error
