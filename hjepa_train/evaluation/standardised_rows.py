"""Features as most probes see them: standardised by the bank, a bounded number of rows at a time.

The features of a large bank fill much of a device: a standardised copy of them, or one in double precision, would need
as much again. So probes go over small parts of them, each standardised when it is used. Up to `MOST_HELD` numbers are
one part, which is standardised once and kept.

Legend: N rows, D dimensions.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import final

import torch
from torch import Tensor

MOST_HELD = 2**25
"""Numbers, 134 MB in single precision: a bank of 10,000 rows of up to 3,355 dimensions."""
_IN_A_PART = 2**19
"""Of more, 2 MB: 1.2 times as fast as 8 MB, for a linear fit of 180,000 rows of 192 dimensions."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class StandardisedRows:
    """Rows that are standardised when they are taken: an index gives [n, D], as with a tensor."""

    features_ND: Tensor
    mean_D: Tensor
    scale_D: Tensor
    index_N: Tensor | None = None
    """The rows of `features_ND` that these are; None: all of them."""

    def __len__(self) -> int:
        return len(self.features_ND if self.index_N is None else self.index_N)

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        if self.index_N is None and isinstance(rows, slice):
            return (self.features_ND[rows] - self.mean_D).mul_(self.scale_D)
        taken = self.features_ND[rows if self.index_N is None else self.index_N[rows]]  # a copy
        return taken.sub_(self.mean_D).mul_(self.scale_D)

    @property
    def dims(self) -> int:
        return self.features_ND.shape[1]

    def only(self, index: Tensor) -> "Rows":
        """The rows at these indices of all; as a tensor where they are one part."""
        return replace(self, index_N=index).held()

    def held(self) -> "Rows":
        """All of them as a tensor where they are one part."""
        return self[:] if len(self) * self.dims <= MOST_HELD else self


Rows = Tensor | StandardisedRows
"""What a fit takes: `len`, and rows [n, D] by a slice or by indices."""


def standardise(bank_ND: Tensor, test_MD: Tensor) -> tuple[StandardisedRows, StandardisedRows]:
    """Mean 0 and deviation 1 over the bank; a dimension that is constant there says nothing and becomes 0."""
    deviation_D, mean_D = torch.std_mean(bank_ND, dim=0, correction=0)
    says_nothing_D = deviation_D <= 1e-6 * mean_D.abs()  # rounding makes it differ a little from 0
    scale_D = deviation_D.reciprocal().masked_fill(says_nothing_D, 0)
    bank, test = (
        StandardisedRows(features_ND=features, mean_D=mean_D, scale_D=scale_D) for features in (bank_ND, test_MD)
    )
    return bank, test


def dims_of(rows: Rows) -> int:
    """D."""
    return rows.dims if isinstance(rows, StandardisedRows) else rows.shape[1]


def parts(num_rows: int, numbers_a_row: int) -> Iterator[slice]:
    """Slices of rows, one after another: all of them where that is up to `MOST_HELD` numbers, else small parts.

    numbers_a_row: the most that is held of a row: dimensions, classes, or similarities to others.
    """
    is_one = num_rows * numbers_a_row <= MOST_HELD
    most = max(1, num_rows if is_one else _IN_A_PART // numbers_a_row)
    return (slice(start, min(start + most, num_rows)) for start in range(0, num_rows, most))
