"""Random integers as a pure function of (key, counter), on any device.

SplitMix64's finaliser in wrapping int64, so a CPU, a GPU and any split of a batch draw the same numbers for
the same sample position: no generator, no state, nothing to save. Floats are made from the integers by exact
arithmetic.
"""

import torch
from torch import Tensor

BITS = 31


def draw_integers(key: int, counter_B: Tensor, count: int) -> Tensor:
    """[B, count] int64, uniform in [0, 2^31).

    key: 128 bits from `derive_key`; it names the purpose.  counter_B: int64, usually sample positions.
    """
    state_B = mixed(mixed(counter_B ^ _signed(key)) ^ _signed(key >> 64))
    column_C = mixed(torch.arange(count, device=counter_B.device) * 2 + 1)
    return _shift_right(mixed(state_B[:, None] ^ column_C), 64 - BITS)


def below(integers: Tensor, bound: int | Tensor) -> Tensor:
    """Integers of `draw_integers`, scaled to [0, bound); bound < 2^32."""
    return (integers * bound) >> BITS


def mixed(z: Tensor) -> Tensor:
    """int64 of any shape to the same: each to its own word, all bits of which depend on all of its bits."""
    z = z + _signed(0x9E3779B97F4A7C15)
    z = (z ^ _shift_right(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shift_right(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _shift_right(z, 31)


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """The logical shift; torch's own keeps the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _signed(word: int) -> int:
    """The low 64 bits of `word` as the int64 with the same bits."""
    word &= (1 << 64) - 1
    return word - (1 << 64) if word >= 1 << 63 else word
