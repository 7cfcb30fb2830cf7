"""Signals that ask a run to save and stop: Ctrl-C, a scheduler's SIGTERM, and SIGUSR1 ahead of its time limit.

The step under way ends and is saved, then the process leaves with 128 + the signal's number, as shells have it: 130 for
Ctrl-C, 143 for SIGTERM, 138 for SIGUSR1. A second signal ends it at once.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@contextmanager
def interrupts() -> Iterator[Callable[[], int]]:
    """The number of the signal that came, 0 as long as none did. Outside the main thread none is received."""
    came: list[int] = []
    before = {}

    def ask(number: int, frame: FrameType | None) -> None:
        del frame
        came.append(number)
        restore()

    def restore() -> None:
        for number, handler in before.items():
            signal.signal(number, handler)

    if threading.current_thread() is threading.main_thread():
        for number in SIGNALS:
            if signal.getsignal(number) != signal.SIG_IGN:  # as jobs in the background ignore Ctrl-C
                before[number] = signal.signal(number, ask)
    try:
        yield lambda: came[0] if came else 0
    finally:
        restore()


def leave(number: int) -> None:
    """End as the signal that came asks for."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise SystemExit(128 + number)
