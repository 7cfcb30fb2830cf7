"""A batch as it is delivered."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from hjepa_shards.mixture.sample_order import add_proofs


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """One rank's part of a global batch, n images.

    The arrays live in the loader's ring of buffers and are valid until the next batch is requested.
    """

    images: NDArray[np.uint8]
    """[n, R, R, 3], RGB; [n, views, R, R, 3] where more than one view is requested"""
    labels: NDArray[np.int64]
    entries: NDArray[np.int64]
    """Index into the mixture's entries, which are sorted by name."""
    samples: NDArray[np.int64]
    """Delivered sample of its entry, in manifest order."""
    positions: NDArray[np.int64]
    valid: NDArray[np.bool_]
    """False where a row only fills the batch up (evaluation)."""
    position: int
    """First position of the global batch."""
    next_position: int
    proof: int
    """This rank's share of the order proof up to next_position; the ranks' shares add up."""

    def with_proof_of_all(self, proofs: Iterable[int]) -> "Batch":
        """The same batch with the order proof of all ranks.  proofs: each rank's `proof` of this step."""
        return replace(self, proof=add_proofs(*proofs))
