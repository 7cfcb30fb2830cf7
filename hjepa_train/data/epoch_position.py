"""How far training is in the batches of a dataset: known to the process that trains and to the workers of its loaders.

A DataLoader starts its workers from a copy of the dataset and never asks the dataset of its own process again; the
workers fetch ahead. So both write into shared memory: the worker which batch it produced, the process that trains which
batch arrived and, where it says so, which one it trained on. From these the next iteration takes where it begins, in
whatever process that is. An iteration that was left early while batches were fetched ahead begins after the last one
that arrived, and a warning says once that this is a guess; a batch never comes twice.

A batch arrives when it is unpickled: the proof of a worker's batch is a str that reports this. What a wrapper yields
without the proof cannot be seen to arrive; there the last batch produced counts.
"""

import itertools
import sys
import warnings
from collections.abc import Iterator
from multiprocessing.context import get_spawning_popen
from types import FrameType
from typing import Any, NamedTuple, SupportsIndex, final
from weakref import WeakValueDictionary

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import get_worker_info

_START, _LOADED, _PRODUCED, _ARRIVED, _AFTER = range(5)
"""Rows of iteration, position and the two halves of the proof; one of an earlier iteration counts as empty."""
_ITERATION, _IN_WORKER, _AHEAD, _UNSURE, _PINNED, _DROPPED, _ALWAYS_TOLD, _WARNED = range(8)
"""The iteration under way; the one of which something is so; what is so for good."""
_READ_AHEAD = {"lightning", "pytorch_lightning", "accelerate"}
"""Packages that hold a batch ahead of training in the process that trains."""
_BY_NUMBER: "WeakValueDictionary[int, EpochPosition]" = WeakValueDictionary()
_NUMBERS = itertools.count(1)


class Mark(NamedTuple):
    """What was delivered up to here."""

    position: int
    proof: int


@final
class EpochPosition:
    """One for a dataset and all copies of it in workers."""

    def __init__(self, mark: Mark) -> None:
        """mark: where the first iteration begins."""
        self.__setstate__((torch.zeros(_AFTER + 1 + 2, 4, dtype=torch.int64), 0))
        self._flags[_ITERATION] = 1
        self.load(mark)

    # ---- iterations

    def where(self, epoch: int | None) -> tuple[Mark, bool]:
        """Where the next iteration begins, and whether that is known.  epoch: positions of a whole one, if it ends."""
        for row in (_LOADED, _AFTER):
            if mark := self._read(row):
                return mark, True
        start, produced, arrived = self._read(_START), self._read(_PRODUCED), self._read(_ARRIVED)
        assert start
        if self._flags[_ALWAYS_TOLD]:
            return start, True
        if not self._is_of_now(_IN_WORKER):
            last, known = produced or start, not self._is_of_now(_AHEAD)
        else:
            last, known = arrived or (produced if self._flags[_DROPPED] else None) or start, False
        return last, known or last == start or (epoch is not None and last.position >= start.position + epoch)

    def begin(self, epoch: int | None) -> tuple[int, Mark]:
        """The number of a new iteration in this process, and where it begins."""
        mark, known = self.where(epoch)
        iteration = int(self._flags[_ITERATION]) + 1
        self._flags[_ITERATION] = iteration
        self._write(_START, iteration, mark)
        if get_worker_info() is not None:
            self._flags[_IN_WORKER] = iteration
        elif _callers() & _READ_AHEAD:
            self._flags[_AHEAD] = iteration
        if not known:
            self._flags[_UNSURE] = iteration
        return iteration, mark

    def produced(self, iteration: int, mark: Mark) -> None:
        """The iteration is about to yield the batch that ends at `mark`."""
        self._write(_PRODUCED, iteration, mark)
        if get_worker_info() is None or self._flags[_DROPPED]:  # else the process that trains warns, on arrival
            self._warn_if_unsure()

    def proof_of(self, iteration: int, mark: Mark) -> str:
        """The mark's proof in hex; in a worker one that reports when its batch arrives."""
        text = f"{mark.proof:032x}"
        return text if get_worker_info() is None else _Proof(text, self, self._number, iteration, mark)

    def warn(self, mark: Mark) -> None:
        """Once: `mark` is a guess."""
        if self._flags[_WARNED]:
            return
        self._flags[_WARNED] = 1
        warnings.warn(
            f"MixtureDataset: an epoch was left while batches were fetched ahead, and which of them were trained on is "
            f"not known here; the data continues after position {mark.position:,}, the last that arrived: none comes "
            "twice, some may be skipped. Call dataset.after(batch) with each batch after its step; in Lightning, "
            "Trainer(callbacks=[lightning_callback(dataset)])",
            stacklevel=3,
        )

    # ---- what the process that trains says

    def load(self, mark: Mark) -> bool:
        """The next iteration begins at `mark`. False, and nothing changes, where another one was pinned."""
        if self._is_of_now(_PINNED):
            return False
        self._write(_LOADED, int(self._flags[_ITERATION]), mark)
        return True

    def pin(self) -> None:
        """What is loaded after this and before the next iteration begins does not count."""
        self._flags[_PINNED] = self._flags[_ITERATION]

    def always_told(self) -> None:
        """From now on `after` is called with each batch that is trained on: where it was not, none was."""
        self._flags[_ALWAYS_TOLD] = 1

    def after(self, mark: Mark) -> tuple[int, int]:
        """Training is after `mark`, if that is between the two positions returned: where the iteration under way began,
        and what it produced."""
        start, produced = self._read(_START), self._read(_PRODUCED)
        first = start.position if start else 0
        last = produced.position if produced else first
        if first <= mark.position <= last:
            self._write(_AFTER, int(self._flags[_ITERATION]), mark)
        return first, last

    # ---- shared memory

    def arrived(self, iteration: int, mark: Mark) -> None:
        """The process that trains took the batch that ends at `mark` out of a worker's queue."""
        self._write(_ARRIVED, iteration, mark)
        self._flags[_DROPPED] = 0
        self._warn_if_unsure()

    def dropped(self) -> None:
        """A worker's batch is sent without its proof: it cannot be seen to arrive."""
        self._flags[_DROPPED] = 1

    def _warn_if_unsure(self) -> None:
        if self._is_of_now(_UNSURE) and (start := self._read(_START)):
            self._flags[_UNSURE] = 0
            self.warn(start)

    def _is_of_now(self, flag: int) -> bool:
        return bool(self._flags[flag] == self._flags[_ITERATION])

    def _read(self, row: int) -> Mark | None:
        iteration, position, high, low = self._rows[row].tolist()
        return Mark(position, high << 64 | low) if iteration == self._flags[_ITERATION] else None

    def _write(self, row: int, iteration: int, mark: Mark) -> None:
        if iteration == self._flags[_ITERATION]:  # not a worker of an iteration that was left
            self._rows[row] = iteration, mark.position, mark.proof >> 64, mark.proof % 2**64

    def __getstate__(self) -> tuple[torch.Tensor, int]:
        """A process that is being started shares the memory; any other copy has its own."""
        return self._memory, self._number if get_spawning_popen() is not None else 0

    def __setstate__(self, state: tuple[torch.Tensor, int]) -> None:
        memory, number = state
        self._memory = memory.share_memory_()
        self._number = number or next(_NUMBERS)
        _BY_NUMBER[self._number] = self
        table: NDArray[np.uint64] = self._memory.numpy().view(np.uint64)
        self._rows, self._flags = table[: _AFTER + 1], table[_AFTER + 1 :].reshape(-1)


class _Proof(str):
    """Hex of a proof in a worker. Unpickled it is a plain str, and the process that does it knows of the batch."""

    __slots__ = ("_arrival", "_position")
    _arrival: tuple[int, int, int]
    _position: EpochPosition | None

    def __new__(cls, text: str, position: EpochPosition, number: int, iteration: int, mark: Mark) -> "_Proof":
        made = super().__new__(cls, text)
        made._position = position
        made._arrival = (number, iteration, mark.position)
        return made

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        self._position = None  # sent
        return _arrived, (str(self), *self._arrival)

    def __del__(self) -> None:
        if self._position is not None:
            self._position.dropped()


def _arrived(text: str, number: int, iteration: int, position: int) -> str:
    known = _BY_NUMBER.get(number)
    if known and get_worker_info() is None and not _is_thrown_away():
        known.arrived(iteration, Mark(position, int(text, 16)))
    return text


def _is_thrown_away() -> bool:
    """Whether a loader with persistent workers empties their queue, for a new epoch."""
    return any(frame.f_code.co_name == "_reset" and _package(frame) in ("torch", "torchdata") for frame in _frames())


def _callers() -> set[str]:
    return {_package(frame) for frame in _frames()}


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def _frames() -> Iterator[FrameType]:
    frame = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back
