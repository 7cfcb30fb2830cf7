"""Rows of sidecars in memory, those of the shards in use: a window's shards are read row by row in random order.

A shard's rows come in one read, where a call of the system for each would cost as much as all else that is done with
them. What is held is bounded. Where the open windows have more rows than that, the shards that came first stay, and
the rows of the others are read as they are needed: nothing is read whole to be dropped before it was used.
"""

import threading
from collections.abc import Sequence
from typing import final

from hjepa_shards.errors import SidecarError
from hjepa_shards.loader.shard_store import preads, with_retries
from hjepa_shards.shards.sidecar import ROW, Row, Sidecar

_MOST_BYTES = 32 << 20
_MOST_OF_A_SHARD = 4 << 20
_IN_USE = 64
"""A shard that was used in one of so many reads before this one is in use."""


@final
class HeldRows:
    """The rows of one split. Safe to use from many threads."""

    def __init__(self, most_bytes: int = _MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._rows: dict[int, bytes] = {}
        self._used: dict[int, int] = {}
        """In which read each was used last."""
        self._num_reads = self._look_again = 0
        self._num_bytes = 0
        self._lock = threading.Lock()

    def read(self, sidecars: dict[int, Sidecar], wanted: Sequence[tuple[int, int]]) -> list[Row | SidecarError]:
        """Rows, by (shard, row), and the error in place of each that is damaged. ShardError where the disk fails.

        sidecars: of all these shards.
        """
        self._num_reads += 1
        for shard, sidecar in sidecars.items():
            self._used[shard] = self._num_reads
            if shard not in self._rows:
                self._hold(shard, sidecar)
        held = {shard: self._rows.get(shard) for shard in sidecars}
        alone = [sidecars[shard].place_of(i) for shard, i in wanted if held[shard] is None]
        others = iter(preads(alone) if preads else [None] * len(alone))
        found: list[Row | SidecarError] = []
        for shard, i in wanted:
            rows, sidecar = held[shard], sidecars[shard]
            packed = next(others) if rows is None else rows[i * ROW.itemsize : (i + 1) * ROW.itemsize]
            try:
                found.append(sidecar.parse(i, packed) if packed is not None else _row(sidecar, i))
            except SidecarError as error:
                found.append(error)
        return found

    def _hold(self, shard: int, sidecar: Sidecar) -> None:
        num_bytes = len(sidecar) * ROW.itemsize
        if num_bytes > _MOST_OF_A_SHARD:
            return
        with self._lock:
            if shard in self._rows or not self._has_room(num_bytes):
                return
            try:
                self._rows[shard] = sidecar.all_rows()
            except OSError:  # tried again, row by row
                return
            self._num_bytes += len(self._rows[shard])

    def _has_room(self, num_bytes: int) -> bool:
        """For so many more; shards that are no longer in use make some."""
        if self._num_bytes + num_bytes > self._most_bytes and self._num_reads >= self._look_again:
            self._look_again = self._num_reads + _IN_USE
            for shard in [shard for shard in self._rows if self._used[shard] + _IN_USE < self._num_reads]:
                self._num_bytes -= len(self._rows.pop(shard))
        return self._num_bytes + num_bytes <= self._most_bytes


def _row(sidecar: Sidecar, i: int) -> Row:
    return with_retries(lambda: sidecar.row(i), lambda: f"{sidecar.path}: reading row {i}")
