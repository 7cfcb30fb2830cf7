"""Progress bars for commands: one line each, never wider than the terminal, nothing before the first step is done.

A bar that has no room for everything drops what matters least. What is not known yet (a speed, the time left) is left
out rather than shown as dashes or zeros; a bar that is full says how long it took.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol, final

from rich.console import Console, ConsoleOptions, RenderResult
from rich.progress import Progress, ProgressColumn, Task, TaskID
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hjepa_shards.base.shown_text import significant, size
from hjepa_shards.base.terminal import console, visible

_LEAST_BAR, _MOST_BAR = 6, 40
_LEAST_NAME = 16
"""Columns that a bar's name keeps; a longer one loses its middle."""
_TELLING_S = 0.2
"""Seconds; a speed over less time would be chance."""


@dataclass(frozen=True, slots=True)
class Words:
    """Some words of a bar's line."""

    text: str
    rank: int = 0
    """Where there is no room for all, the words with the highest rank go first; those of rank 0 stay."""


class Advance(Protocol):
    """What moves a progress bar."""

    def __call__(self, done: int, total: int, num_bytes: int = 0, /) -> None:
        """done, total: of the bar's unit; num_bytes: read so far for what was done since the first call."""


@contextmanager
def progress_bar(unit: str) -> Iterator[Callable[[str], Advance]]:
    """A factory of progress callbacks: `start("cifar10 train")` gives one that takes (done, total)."""
    progress = bars_of(lambda task: task.fields["pace"].words(task))

    def start(description: str) -> Advance:
        pace: _Pace | None = None

        def update(done: int, total: int, num_bytes: int = 0, /) -> None:
            nonlocal pace
            if pace is None:  # only now: an error before the first step needs no empty bar above it
                progress.start()
                pace = _Pace(unit, done)
                pace.task = progress.add_task(visible(description), total=total, completed=done, pace=pace)
            pace.num_bytes = num_bytes
            progress.update(pace.task, completed=done, total=total)

        return update

    try:
        yield start
    finally:
        if progress.tasks:
            progress.stop()


def bars_of(words: Callable[[Task], Sequence[Words]], *, silent: bool = False) -> Progress:
    """Bars whose lines are a task's description, the bar itself, and what `words` says of the task."""
    return Progress(_Line(words), console=console, disable=silent)


def time_left(task: Task) -> str:
    """The time that a task will take, or took where it is finished; '' where that is not known."""
    if task.finished:
        took_s = task.finished_time or 0.0
        if took_s < _TELLING_S:
            return ""
        return f"in {took_s:.1f} s" if took_s < 10 else f"in {clock(took_s)}"
    left_s = task.time_remaining
    return "" if left_s is None else f"{clock(left_s)} left"


def clock(seconds: float) -> str:
    """Hours, minutes and seconds as h:mm:ss."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours:,}:{minute:02}:{second:02}"


@final
class _Pace:
    """How fast a bar moves."""

    def __init__(self, unit: str, begun: int) -> None:
        self.unit, self.begun = unit, begun
        self.num_bytes = 0
        self.task = TaskID(0)
        self._since = time.monotonic()

    def words(self, task: Task) -> list[Words]:
        done, total = int(task.completed), int(task.total or 0)
        counts = f"{task.percentage:.0f}%" if self.unit == "bytes" else f"{done:,}/{total:,}"
        return [Words(counts), *self._speed(task), Words(time_left(task), 1)]

    def _speed(self, task: Task) -> Iterator[Words]:
        """What it does in a second: of late, and over all of its time once it is finished."""
        took_s = task.finished_time if task.finished else time.monotonic() - self._since
        moved = task.completed - self.begun
        if not took_s or took_s < _TELLING_S or moved <= 0:
            return
        speed = (None if task.finished else task.speed) or moved / took_s
        if self.unit == "bytes":
            yield Words(f"{size(speed)}/s", 2)
            return
        yield Words(f"{rate(speed)} {self.unit}/s", 2)
        if self.num_bytes:
            yield Words(f"{size(speed * self.num_bytes / moved)}/s", 3)


def rate(per_s: float) -> str:
    """Whole where it is large."""
    return f"{per_s:,.0f}" if per_s >= 10 else significant(per_s, 2)


@final
class _Line(ProgressColumn):
    """All of a bar in one column, which has the width of the terminal to itself."""

    def __init__(self, words: Callable[[Task], Sequence[Words]]) -> None:
        super().__init__()
        self._words = words

    def render(self, task: Task) -> "_Fitted":
        return _Fitted(task, [words for words in self._words(task) if words.text])


@dataclass(frozen=True, slots=True)
class _Fitted:
    """A bar's line, as wide as the terminal allows."""

    task: Task
    words: Sequence[Words]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        name, shown, bar = fit(self.task.description, self.words, options.max_width)
        line = Table.grid(padding=(0, 1), pad_edge=False)
        cells = [Text(name, no_wrap=True)] * bool(name)
        cells += [ProgressBar(total=self.task.total, completed=self.task.completed, width=bar)] * bool(bar)
        line.add_row(*cells, Text(" ".join(shown), no_wrap=True))
        yield line


def fit(name: str, words: Sequence[Words], width: int) -> tuple[str, list[str], int]:
    """What of a bar's name and words has room in `width` columns, and how many columns are left for the bar."""
    kept = list(words)
    least = min(len(name), _LEAST_NAME) + 1 + _LEAST_BAR + 1 if name else _LEAST_BAR + 1

    def taken() -> int:
        return sum(len(one.text) + 1 for one in kept) - 1

    while least + taken() > width and (droppable := [one.rank for one in kept if one.rank]):
        worst = max(droppable)
        kept = [one for one in kept if one.rank != worst]
    room = width - taken() - _LEAST_BAR - 2
    if len(name) > room:
        name = shortened(name, max(1, room))
    bar = width - taken() - len(name) - 2 * bool(name) - (not name)
    return name, [one.text for one in kept], min(_MOST_BAR, bar) if bar >= _LEAST_BAR else 0


def shortened(text: str, width: int) -> str:
    """Without its middle, where it is wider."""
    if len(text) <= width:
        return text
    tail = (width - 1) * 2 // 3
    return f"{text[: width - 1 - tail]}…{text[len(text) - tail :]}"
