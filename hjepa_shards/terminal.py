"""What the commands have in common: errors as one line with exit code 2, progress bars, sizes for people."""

import os
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
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

from hjepa_shards.errors import InputError, ShardError

_INTERRUPTED = (130, 138, 143)
"""What typer makes of Ctrl-C, and what a run leaves with that was asked to stop by SIGUSR1 or SIGTERM."""

console = Console(width=None if sys.stdout.isatty() else 140)


def run_app(app: Callable[[], object], *, interrupted: str) -> None:
    """Run a command; what its user can mend is one line on stderr and exit code 2 (HJEPA_TRACEBACK=1 shows more).

    interrupted: how to go on after Ctrl-C.
    """
    try:
        app()
    except (InputError, ShardError) as error:
        if os.environ.get("HJEPA_TRACEBACK"):
            raise
        say_error(f"error: {error}")
        raise SystemExit(2) from error
    except PermissionError as error:  # pathlib asks whether a place is a folder, and raises where it may not look
        say_error(f"error: {error.filename}: {error.strerror}; change its permissions, or choose another")
        raise SystemExit(2) from error
    except SystemExit as left:
        if left.code in _INTERRUPTED:
            say_error(f"interrupted; {interrupted}")
        raise


def say_error(text: str) -> None:
    """On one line; wrapped between words where a terminal is narrower. By rank, where torchrun started several."""
    if os.environ.get("WORLD_SIZE", "1") != "1" and "RANK" in os.environ:
        text = f"rank {os.environ['RANK']}: {text}"
    if sys.stderr.isatty():
        text = textwrap.fill(text, shutil.get_terminal_size().columns, break_long_words=False, break_on_hyphens=False)
    print(text, file=sys.stderr)


class Advance(Protocol):
    """What moves a progress bar."""

    def __call__(self, done: int, total: int, num_bytes: int = 0, /) -> None:
        """done, total: of the bar's unit; num_bytes: read so far for what was done since the first call."""


@contextmanager
def progress_bar(unit: str) -> Iterator[Callable[[str], Advance]]:
    """A factory of progress callbacks: `start("cifar10 train")` gives one that takes (done, total)."""
    columns: list[ProgressColumn] = [
        TextColumn("{task.description}"),
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
                    tasks.append(progress.add_task(description))
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


def size(num_bytes: float) -> str:
    """Bytes for people: 1.5 MB, in powers of 1,000 as disks and networks are sold."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}" if unit != "B" else f"{num_bytes:.0f} B"
        num_bytes /= 1000
    return f"{num_bytes:,.1f} TB"
