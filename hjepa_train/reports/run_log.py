"""What a run says while it runs: a line in metrics.jsonl, TensorBoard, pictures.png, and the progress bar.

Sums stay on the device between log points, so that the host waits for the device only there.
"""

import importlib.util
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

import numpy as np
import torch
from rich.progress import Task
from torch import Tensor

from hjepa_shards import Loader
from hjepa_shards.base.progress_bar import Words, bars_of, rate, time_left
from hjepa_shards.config import flatten
from hjepa_shards.errors import InputError
from hjepa_train.base.distributed import all_reduce, world_size
from hjepa_train.base.metrics_file import EXTENDED, METRICS_FILE, STOPPED, append_metrics
from hjepa_train.objectives.base import Batch, Objective
from hjepa_train.reports.image_panels import FILE as PICTURES
from hjepa_train.reports.image_panels import draw, look, save_pictures

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_SAY_EVERY_S = 30
"""Into a file or a pipe, where no bar is drawn, a line in this many seconds."""
_PACE = ("position", "lr", "images_per_s", "data_wait", "mfu", "graphs")


@final
class SourceLosses:
    """Mean loss of each source's images since the last log point."""

    def __init__(self, num_sources: int, device: torch.device) -> None:
        self._sum = torch.zeros(num_sources, device=device)
        self._count = torch.zeros(num_sources, device=device)

    def add(self, loss_B: Tensor, entry_B: Tensor) -> None:
        self._sum.index_add_(0, entry_B, loss_B.float())
        self._count.index_add_(0, entry_B, torch.ones_like(loss_B, dtype=torch.float32))

    def take(self) -> list[float | None]:
        """The means over all ranks, None where a source had no image; starts again from zero."""
        pairs = all_reduce(torch.stack([self._sum, self._count], 1)).tolist()
        means = [total / count if count else None for total, count in pairs]
        self._sum.zero_()
        self._count.zero_()
        return means


@final
class Stopwatch:
    """Images a second of all ranks, and the share of time spent waiting for data, since the last lap."""

    def __init__(self, limit: float | None = None) -> None:
        """limit: images a second of one rank at its device's peak, where that is known; for the model FLOP share."""
        self._limit = limit
        self._began, self._images, self._waited_s = time.perf_counter(), 0, 0.0

    def add(self, num_images: int, waited_s: float) -> None:
        self._images += num_images
        self._waited_s += waited_s

    def lap(self) -> dict[str, float]:
        passed_s = time.perf_counter() - self._began
        row = {"images_per_s": world_size() * self._images / passed_s, "data_wait": self._waited_s / passed_s}
        if self._limit:
            row["mfu"] = self._images / passed_s / self._limit
        self.__init__(self._limit)
        return row


def source_rows(loader: Loader, losses: Sequence[float | None]) -> dict[str, dict[str, Any]]:
    """Per source: images so far, their share beside the target, passes, and the loss since the last line."""
    return {
        name: {"count": had.draws, "share": had.share, "target": had.target, "passes": had.passes, "loss": loss}
        for (name, had), loss in zip(loader.stats().sources.items(), losses, strict=True)
    }


def to_floats(metrics: dict[str, Tensor]) -> dict[str, float]:
    """The scalars among an objective's metrics, brought to the host."""
    return {name: value.item() for name, value in metrics.items() if value.ndim == 0}


@final
class RunLog:
    """The outputs of a run. `close` it."""

    def __init__(
        self,
        folder: Path,
        *,
        num_steps: int,
        start: int,
        tensorboard: bool,
        pixels: tuple[Sequence[float], Sequence[float]],
        silent: bool = False,
        log_points: int = 0,
        extensions: Sequence[dict[str, int]] = (),
    ) -> None:
        """pixels: (mean, standard deviation) that images were normalised by.  silent: another rank speaks.

        log_points: lines of metrics.jsonl that are there already; the attribute counts on from them.
        extensions: of the run, which each line says (jobs/extension.py); none for one of the length that it began with.
        """
        self._path, self._silent = folder / METRICS_FILE, silent
        self._extended = {EXTENDED: list(extensions)} if extensions else {}
        self.log_points = log_points
        self._pixels = pixels
        is_missing = importlib.util.find_spec("tensorboard") is None
        self._board_folder = folder / "tensorboard"
        self._thread_hook = threading.excepthook
        self._board = None
        if tensorboard and not is_missing and not silent:
            threading.excepthook = self._say_nothing_of_the_board
            with self._on_board():
                self._board = _board(self._board_folder, start)
        self._num_steps, self._shown = num_steps, list[Words]()
        self._progress = bars_of(self._words, silent=silent)
        self._task = self._progress.add_task("step", total=num_steps, completed=start)
        self._progress.start()
        self._say_next = time.monotonic()
        self._alarms: set[str] = set()
        self._probed = ""
        if tensorboard and is_missing:
            self.say(
                "[yellow]note[/yellow] tensorboard is not installed, so nothing is written for it: "
                "pip install 'hjepa\\[train]'"
            )

    def advance(self) -> None:
        self._progress.advance(self._task)

    def write(self, row: dict[str, Any]) -> None:
        if self._silent:
            return
        append_metrics(self._path, row | self._extended)
        self.log_points += not row.get(STOPPED)
        for name in (key for key in row if key.startswith(("knn_", "own_"))):  # the last encoder's, until the next
            if row.get(name) is not None:
                self._probed = f"{'k-NN' if name.startswith('knn_') else 'right'} {row[name]:.1f}"
        self._shown = _words_of(row, self._probed)
        if not self._progress.console.is_terminal and time.monotonic() > self._say_next:
            self._say_next = time.monotonic() + _SAY_EVERY_S
            self.say(f"step {row['step']}/{self._num_steps}  {'  '.join(words.text for words in self._shown)}")
        self._say_alarms(row["step"], set(row["alarms"]))
        if not self._board:
            return
        with self._on_board():
            for name, value in flatten(row).items():
                if isinstance(value, int | float) and not isinstance(value, bool) and name != "step":
                    self._board.add_scalar(_tag(name), value, row["step"])
            sources = row["sources"].values()
            off = np.array([100 * (had["share"] - had["target"]) for had in sources])
            self._board.add_histogram("sources/share minus target, points", off, row["step"])

    def show(
        self, step: int, objective: Objective, batch: Batch, autocast: Callable[[], AbstractContextManager[Any]]
    ) -> None:
        """Pictures of a few of the batch's images, into the run's folder and TensorBoard; training does not notice."""
        with autocast():
            seen = look(objective, batch)  # by all ranks: they may hold the weights together
        if seen is None or self._silent:
            return
        images, sketch = seen
        panels = draw(images, sketch, mean=self._pixels[0], std=self._pixels[1])
        save_pictures(self._path.with_name(PICTURES), panels, step)
        if not self._board:
            return
        with self._on_board():
            for name, panel in panels.items():
                self._board.add_images(f"pictures/{name}", panel, step)
            for name, tokens_BND in sketch.features.items():
                deviation_D = tokens_BND.flatten(0, 1).std(0)
                if deviation_D.isfinite().all():
                    self._board.add_histogram(f"features/{name}: deviation of each dimension", deviation_D, step)

    def _words(self, task: Task) -> list[Words]:
        """The progress bar's."""
        return [Words(f"{task.completed:,.0f}/{task.total:,.0f}"), *self._shown, Words(time_left(task), 1)]

    def _say_alarms(self, step: int, alarms: set[str]) -> None:
        """When they begin and when they are over: one may be on for thousands of log points."""
        for alarm in sorted(alarms - self._alarms):
            self.say(f"[yellow]alarm[/yellow] at step {step}: {alarm}")
        for alarm in sorted(self._alarms - alarms):
            self.say(f"over at step {step}: {alarm}")
        self._alarms = alarms

    def say(self, text: str) -> None:
        if not self._silent:
            self._progress.console.print(text)

    def close(self) -> None:
        self._progress.stop()
        try:
            if self._board:
                with self._on_board():
                    self._board.close()
        finally:
            threading.excepthook = self._thread_hook

    @contextmanager
    def _on_board(self) -> Iterator[None]:
        """TensorBoard writes in a thread of its own: what goes wrong there is raised by a later call, or the last."""
        try:
            yield
        except OSError as error:
            raise InputError(
                f"{self._board_folder}: cannot be written: {error.strerror or error}; make room or choose another "
                "run.folder, then resume the run"
            ) from error

    def _say_nothing_of_the_board(self, args: threading.ExceptHookArgs) -> None:
        """Its thread also prints a traceback of what `_on_board` reports."""
        if not (isinstance(args.exc_value, OSError) and type(args.thread).__module__.startswith("tensorboard.")):
            self._thread_hook(args)


def has_tensorboard(folder: Path) -> bool:
    """Whether a run writes for TensorBoard, and it is installed to read that."""
    is_missing = importlib.util.find_spec("tensorboard") is None
    return not is_missing and any((folder / "tensorboard").glob("events.out.tfevents.*"))


def _words_of(row: dict[str, Any], probed: str) -> list[Words]:
    """What a row says at a glance; where a terminal is narrow, less of it."""
    shown = [Words(f"loss {row['loss']:.3f}")]
    if "rho_l0" in row:
        shown.append(Words(f"ρ {row['rho_l0']:.2f} gap {row['gap_l0']:.2f}", 3))
    shown.append(Words(f"{rate(row['images_per_s'])}/s, waits {row['data_wait']:.0%}", 2))
    if "mfu" in row:
        shown.append(Words(f"MFU {row['mfu']:.0%}", 5))
    return [*shown, Words(probed, 4)] if probed else shown


def _tag(name: str) -> str:
    """Of a number of a row, in TensorBoard: group/name, the groups those of the report."""
    if "." in name:
        return name.replace(".", "/")
    group = "pace" if name in _PACE else "probes" if name.startswith(("knn_", "ridge_", "own_")) else "learning"
    return f"{group}/{name}"


def _board(folder: Path, start: int) -> "SummaryWriter":
    from torch.utils.tensorboard import SummaryWriter  # only here: seconds

    return SummaryWriter(str(folder), purge_step=start)
