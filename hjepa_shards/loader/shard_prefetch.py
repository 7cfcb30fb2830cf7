"""Whole shards of the open windows and the next, brought nearer ahead of their use and at its rate.

Those far away come into the cache, those in a folder into the kernel's memory. A window's shards are all used from its
beginning on, so those of the open windows are wanted now, in order of first use; until they are here single samples are
read where they are. Those of the next window are spread evenly over the open one.
"""

import contextlib
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import final

from hjepa_shards.errors import InputError, ShardError
from hjepa_shards.loader.shard_store import Store
from hjepa_shards.mixture.permutation import Wanted
from hjepa_shards.mixture.sample_order import Plan

_THREADS = 4


@final
class Prefetcher:
    """Downloads for one rank. Its threads end with `close`."""

    def __init__(self, plan: Plan, stores: Sequence[Store], *, rank: int, world: int) -> None:
        self._plan, self._next = plan, 0
        self._lanes = lanes_of(rank, world, plan.order.lanes)
        self._entries = [_Entry(number, store) for number, store in enumerate(stores) if store.fetches]
        self._pool = ThreadPoolExecutor(_THREADS, thread_name_prefix="hjepa-fetch") if self._entries else None

    def advance(self, position: int) -> None:
        """The samples from `position` on are needed next."""
        if self._pool is None or position < self._next:
            return
        draws_left = []
        draws = self._plan.counts(position)
        for entry in self._entries:
            draw = draws[entry.number]
            if draw >= entry.valid_until:
                wanted, entry.valid_until = self._plan.wanted_shards(entry.number, draw, self._lanes)
                entry.replan(wanted)
            while entry.wanted and entry.wanted[-1].due <= draw:
                entry.running.append(self._pool.submit(_fetch, entry.store, entry.wanted.pop().shard, entry.closing))
            entry.running = [future for future in entry.running if not future.done()]
            draws_left.append(min([entry.valid_until, *(one.due for one in entry.wanted[-1:])]) - draw)
        self._next = position + max(1, min(draws_left))  # nothing can become due earlier

    def use(self, plan: Plan) -> None:
        """The order has changed: weights were set."""
        self._plan, self._next = plan, 0
        for entry in self._entries:
            entry.valid_until = -1

    def close(self) -> None:
        """Downloads that are under way are given up."""
        for entry in self._entries:
            entry.closing.set()
        if self._pool:
            self._pool.shutdown(cancel_futures=True)


@dataclass(kw_only=False, slots=True)
class _Entry:
    number: int
    store: Store
    wanted: list[Wanted] = field(default_factory=list)
    """The next one last."""
    valid_until: int = -1
    """From this draw on another window is open."""
    running: list[Future[None]] = field(default_factory=list)
    closing: threading.Event = field(default_factory=threading.Event)

    def replan(self, wanted: Sequence[Wanted]) -> None:
        self.store.keep({one.shard for one in wanted})
        self.wanted = sorted(wanted, key=lambda one: one.due, reverse=True)
        for future in self.running:
            future.cancel()


def lanes_of(rank: int, world: int, lanes: int) -> range:
    """The lanes that a rank mostly reads: its own where they divide the ranks or ranks divide them, else all."""
    if world % lanes == 0:
        lane = rank // (world // lanes)
        return range(lane, lane + 1)
    if lanes % world == 0:
        return range(rank * lanes // world, (rank + 1) * lanes // world)
    return range(lanes)


def _fetch(store: Store, shard: int, closing: threading.Event) -> None:
    """What goes wrong here is reported where the shard's samples are read."""
    with contextlib.suppress(InputError, ShardError):
        store.fetch(shard, stopped=closing.is_set)
