"""Shard tasks, and two ways to run them: in this process, or over a pool of processes.

A task is a shard's name and its slice of the list; everything that tasks share is the job. Where a task runs changes
nothing about the bytes. A worker refuses a job that was planned with another encoder than its own.
"""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, final

from hjepa_shards.building.build_rules import require_rules
from hjepa_shards.building.shard_columns import Slice
from hjepa_shards.building.shard_writer import Members, Report, write_shard
from hjepa_shards.errors import BuildMismatch, InputError
from hjepa_shards.images.encode import EncodeSettings, encoder_identity
from hjepa_shards.sources.base import RawSplit
from hjepa_shards.storage.build_output import Target

_POLL_S = 0.2
_STOP = 2


@final
@dataclass(frozen=True, slots=True)
class Job:
    """What every shard task of a split shares."""

    target: Target
    raw: RawSplit
    members: Members
    settings: EncodeSettings
    encoder: dict[str, Any]
    """The identity that the build was planned with."""
    rules: int

    def require_same_build(self) -> None:
        """BuildMismatch where this process reads or encodes otherwise than the build."""
        require_rules(self.rules, self.target.where)
        found = encoder_identity(self.settings)
        if found != self.encoder:
            raise BuildMismatch(
                f"this worker encodes as {found}, the build as {self.encoder}; give it the same libraries"
            )

    def run(self, task: "Task", report: Report) -> None:
        write_shard(self.target, task.shard_name, self.raw, task.samples, self.members, self.settings, report)


@final
@dataclass(frozen=True, slots=True)
class Task:
    """One shard."""

    shard_name: str
    samples: Slice


Run = Callable[[Job, Iterable[Task], Report], None]
"""A way to run tasks; `Report` receives the numbers of samples and raw bytes as they are done."""


def run_here(job: Job, tasks: Iterable[Task], report: Report) -> None:
    """One task after the other, in this process."""
    for task in tasks:
        job.run(task, report)


def run_in_processes(job: Job, tasks: Iterable[Task], report: Report, workers: int) -> None:
    """Tasks over a pool of processes, each with one more task waiting for it; here, if one process is enough."""
    left = iter(tasks)
    first = list(islice(left, workers))
    if len(first) <= 1:
        return run_here(job, chain(first, left), report)
    left = chain(first, left)
    # everything is imported once more, not once a worker; macOS cannot fork once its frameworks are loaded
    context = multiprocessing.get_context("forkserver" if sys.platform == "linux" else "spawn")
    context.set_forkserver_preload([__name__])
    done = context.Array("q", 3)  # samples, raw bytes, whether to stop
    with ProcessPoolExecutor(len(first), mp_context=context, initializer=_start_worker, initargs=(job, done)) as pool:
        seen = (0, 0)
        try:
            with _interrupts_delayed():
                waiting = {pool.submit(_run_in_worker, task) for task in islice(left, 2 * workers)}
            while waiting:
                ended, waiting = wait(waiting, timeout=_POLL_S, return_when=FIRST_COMPLETED)
                for future in ended:
                    future.result()
                    waiting |= {pool.submit(_run_in_worker, task) for task in islice(left, 1)}
                now = (done[0], done[1])
                report(now[0] - seen[0], now[1] - seen[1])
                seen = now
        except BrokenProcessPool as error:
            raise InputError(
                f"{job.target.where}: a worker process was killed (out of memory?); run the same command again, with "
                "fewer --workers if it was memory"
            ) from error
        except BaseException as error:
            done[_STOP] = isinstance(error, KeyboardInterrupt)
            pool.shutdown(cancel_futures=True)
            raise


@contextlib.contextmanager
def _interrupts_delayed() -> Iterator[None]:
    """Ctrl-C goes to all processes of a terminal. Those that are started here ignore it; this one receives it after.

    Else a half-started worker fills the terminal with what it failed to import.
    """
    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN  # as jobs in the background are
    if ignored or threading.current_thread() is not threading.main_thread():
        yield
        return
    received: list[int] = []
    handler = signal.signal(signal.SIGINT, lambda number, _: received.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)
    if received:
        raise KeyboardInterrupt


_worker_job: Job
_worker_done: Any


def _start_worker(job: Job, done: Any) -> None:
    global _worker_job, _worker_done
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    _worker_job, _worker_done = job, done
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    """A build that was interrupted or killed with -9 takes its workers along, also from a read that never returns."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    while parent.is_alive():
        parent.join(_POLL_S)
        if _worker_done[_STOP]:
            os.kill(os.getpid(), signal.SIGINT)
    os._exit(1)


def _interrupt(*_: object) -> None:
    """Once: what is half-written is cleared away in peace."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt


def _run_in_worker(task: Task) -> None:
    _worker_job.require_same_build()
    counted = [0, 0]
    last = time.monotonic()

    def flush() -> None:
        with _worker_done.get_lock():
            _worker_done[0] += counted[0]
            _worker_done[1] += counted[1]
        counted[:] = 0, 0

    def report(num_samples: int, num_bytes: int) -> None:
        nonlocal last
        counted[0] += num_samples
        counted[1] += num_bytes
        if (now := time.monotonic()) - last > _POLL_S:
            last = now
            flush()

    signal.signal(signal.SIGINT, _interrupt)
    try:
        _worker_job.run(task, report)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    flush()
