"""What ends a probe and nothing else: a memory that is full, a matrix that cannot be inverted."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from hjepa_shards.errors import InputError
from hjepa_train.base.full_memory import reporting_full_memory

_SINGULAR = (torch.linalg.LinAlgError, np.linalg.LinAlgError)  # pyright: ignore[reportPrivateImportUsage] it is public
"""What PyTorch raises, and NumPy and SciPy."""


@contextmanager
def probe_failures(what: str, smaller: str) -> Iterator[None]:
    """InputError in place of both.  what: is probed, and how.  smaller: what to set lower where memory is full."""
    try:
        with reporting_full_memory(f"{what}: the memory of this machine or of its device is full; {smaller}"):
            yield
    except _SINGULAR as error:
        raise InputError(
            f"{what}: features whose product can be inverted expected, a singular matrix found "
            f"({str(error).partition(chr(10))[0]}); they may have collapsed: see the run's signals"
        ) from error
