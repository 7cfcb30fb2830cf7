"""A batch as it is delivered."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from hjepa_shards.base.notebook_html import SHOWN_IMAGES, Figure, pictures
from hjepa_shards.base.shown_text import listed
from hjepa_shards.images.thumbnail import thumbnail
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

    def __repr__(self) -> str:
        entries, counts = np.unique(self.entries, return_counts=True)
        drawn = [f"{entry}: {count}" for entry, count in zip(entries.tolist(), counts.tolist(), strict=True)]
        padded = "" if self.valid.all() else f", {int(self.valid.sum())} valid"
        return f"<{self._title()}, {int((self.labels >= 0).sum())} labelled{padded}, entries {{{listed(drawn)}}}>"

    def _repr_html_(self) -> str:
        """Its first images, each view of them; the pointer over one says where it is from."""
        views = self.images[:, None] if self.images.ndim == 4 else self.images
        rows = range(min(len(views), max(1, SHOWN_IMAGES // views.shape[1])))
        figures = [
            Figure(
                image=thumbnail(Image.fromarray(view)),
                line=f"label {self.labels[row]}" if self.labels[row] >= 0 else "no label",
                title=f"position {self.positions[row]}: sample {self.samples[row]} of entry {self.entries[row]}",
            )
            for row in rows
            for view in views[row]
        ]
        more = len(views) - len(rows)
        return pictures(self._title(), figures, [f"and {more:,} more"] if more else [])

    def _title(self) -> str:
        shape = list(self.images.shape)
        return f"Batch of positions {self.position:,} to {self.next_position - 1:,}: images {self.images.dtype} {shape}"
