"""Progress bars for commands: nothing is shown before the first step is done."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from hjepa_shards.base.shown_text import size
from hjepa_shards.base.terminal import console, visible


class Advance(Protocol):
    """What moves a progress bar."""

    def __call__(self, done: int, total: int, num_bytes: int = 0, /) -> None:
        """done, total: of the bar's unit; num_bytes: read so far for what was done since the first call."""


@contextmanager
def progress_bar(unit: str) -> Iterator[Callable[[str], Advance]]:
    """A factory of progress callbacks: `start("cifar10 train")` gives one that takes (done, total)."""
    columns: list[ProgressColumn] = [
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn() if unit == "images" else TaskProgressColumn(),
        _Speed(unit),
        TimeRemainingColumn(),
    ]
    with Progress(*columns, console=console) as progress:

        def start(description: str) -> Advance:
            tasks: list[TaskID] = []
            begun = 0

            def update(done: int, total: int, num_bytes: int = 0, /) -> None:
                nonlocal begun
                if not tasks:  # only now: an error before the first step needs no empty bar above it
                    tasks.append(progress.add_task(visible(description)))
                    begun = done
                each = num_bytes / max(1, done - begun)
                progress.update(tasks[0], completed=done, total=total, bytes_each=each)

            return update

        yield start


class _Speed(ProgressColumn):
    def __init__(self, unit: str) -> None:
        super().__init__()
        self.unit = unit

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if speed is None:
            return Text(f"- {self.unit}/s")
        if self.unit == "bytes":
            return Text(f"{size(speed)}/s")
        each = task.fields["bytes_each"]
        return Text(f"{speed:,.0f} {self.unit}/s" + f", {size(speed * each)}/s" * (each > 0))
