"""The loop. It knows batches, an objective and an optimizer; no configuration file, no family, no evaluation.

A step is keyed: dropout's generator is seeded from the step's number, masks and augmentation from each image's
position, schedules are functions of the step. So nothing random is saved, and a run that was killed continues bit for
bit (on the CPU, with the same threads).
"""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, final

import torch

from hjepa_shards import Batch as Loaded
from hjepa_shards import Loader
from hjepa_shards.base.keyed_random import derive_key
from hjepa_train.base.distributed import average_gradients, gather, mean_over_ranks, rank, world_size
from hjepa_train.base.metrics_file import STOPPED
from hjepa_train.modules.learning_signals import Alarms
from hjepa_train.objectives.base import Batch, Objective
from hjepa_train.parallel.layout import compiled_graphs
from hjepa_train.reports.run_log import RunLog, SourceLosses, Stopwatch, source_rows, to_floats
from hjepa_train.training.diagnosis import diagnosis
from hjepa_train.training.nonfinite_guard import NonfiniteGuard
from hjepa_train.training.optimizer import clip, set_rates, update


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """How long a run is and what moves with its steps."""

    seed: int
    """Of the run: what a step draws is keyed by it."""
    num_steps: int
    lr: Callable[[int], float]
    weight_decay: Callable[[int], float]
    log_every: int
    save_every: int
    draw_every: int
    """a multiple of `log_every`; 0 is never"""

    def logs(self, step: int) -> bool:
        return step % self.log_every == 0 or step == self.num_steps - 1

    def draws(self, step: int) -> bool:
        return self.draw_every > 0 and (step % self.draw_every == 0 or step == self.num_steps - 1)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Learner:
    """What a step computes with."""

    objective: Objective
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    prepare: Callable[[Loaded], list[Batch]]
    """A loaded batch to micro-batches on the device."""
    autocast: Callable[[], AbstractContextManager[Any]]
    """The precision of matrix products, entered again each time."""
    guard: NonfiniteGuard
    clip_norm: float | None = None
    """the largest norm that a gradient is applied with; None for any"""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Hooks:
    """What looks on while a run trains, saves it and ends it."""

    log: RunLog
    alarms: Alarms
    peak_images_per_s: float | None
    """Of one rank at its device's best; None where that is unknown."""
    probe: Callable[[int], tuple[dict[str, float], bool]]
    """Called at log points with the number of steps done: numbers to log, and whether to save what has them."""
    save: Callable[[int, Loaded], None]
    """Called with the number of steps done and the batch of the last one."""
    stopping: Callable[[], bool]
    """Called after each step; true saves and ends."""


def fit(learner: Learner, loader: Loader, schedule: Schedule, hooks: Hooks, *, start: int, stop: int) -> int:
    """Steps [start, stop) of a run of `schedule.num_steps`. Returns the number of steps done.

    InputError where gradients stay without end (nonfinite_guard.py), TooMuchDamage as the loader raises it.
    """
    objective, optimizer = learner.objective, learner.optimizer
    device = next(objective.parameters()).device
    # torch.manual_seed notes for each accelerator that is not in use who called it: a millisecond
    set_seed = torch.default_generator.manual_seed if device.type == "cpu" else torch.manual_seed
    losses = SourceLosses(len(loader.plan.entries), device)
    stopwatch = Stopwatch(hooks.peak_images_per_s)
    objective.train()
    for step in range(start, stop):
        set_seed(derive_key(schedule.seed, "step", step, rank()) >> 65)
        began = time.perf_counter()
        loaded = next(loader)
        stopwatch.add(len(loaded.images), time.perf_counter() - began)
        micro_batches = learner.prepare(loaded)
        logging = schedule.logs(step)
        with learner.autocast():
            signals = diagnosis(objective, micro_batches, loaded) if logging else {}
            objective.before_step(micro_batches)
        lr = schedule.lr(step)
        set_rates(optimizer, lr=lr, weight_decay=schedule.weight_decay(step))
        optimizer.zero_grad()
        metrics = _forward_backward(learner, micro_batches, losses)
        average_gradients(objective.parameters())
        learner.scaler.unscale_(optimizer)
        gradient_norm, is_finite = learner.guard.judge(step, objective.parameters(), loaded)
        if learner.clip_norm is not None:
            clip(optimizer, gradient_norm, learner.clip_norm)
        update(optimizer, is_finite)
        learner.scaler.update()
        objective.after_step(step, is_finite)
        hooks.log.advance()
        saving = (step + 1) % schedule.save_every == 0 or step + 1 == stop
        if world_size() > 1 and (logging or saving):  # the same on all ranks
            loader.merge_damage(gather(loader.damaged))
        row_of_step = partial(
            _row, step, loaded, metrics, lr, gradient_norm, hooks.alarms.judges(step), loader, losses, stopwatch
        )
        if logging:
            row = row_of_step(signals, hooks.alarms.judge(step, signals))
            probed, is_best = hooks.probe(step + 1)
            hooks.log.write(row | probed)
            if schedule.draws(step):
                hooks.log.show(step, objective, micro_batches[0], learner.autocast)
            stopwatch.lap()  # without the time that looking on took
            saving = saving or is_best
        told_to_stop = hooks.stopping()
        if (told_to_stop or step + 1 == stop) and not logging:
            if world_size() > 1 and not saving:
                loader.merge_damage(gather(loader.damaged))
            hooks.log.write(row_of_step({}, hooks.alarms.on_at(step)) | {STOPPED: True})
        if saving or told_to_stop:
            hooks.save(step + 1, loaded)
        if told_to_stop:
            stop = step + 1
            break
    learner.guard.receive()
    return stop


def _row(
    step: int,
    loaded: Loaded,
    metrics: dict[str, torch.Tensor],
    lr: float,
    gradient_norm: torch.Tensor,
    judged: bool,
    loader: Loader,
    losses: SourceLosses,
    stopwatch: Stopwatch,
    signals: dict[str, float],
    alarms: tuple[str, ...],
) -> dict[str, Any]:
    """A line of metrics.jsonl; by all ranks together."""
    numbers = mean_over_ranks(to_floats(metrics)) | signals
    return {
        **{"step": step, "position": loaded.next_position, **numbers, "lr": lr, **stopwatch.lap()},
        "grad_norm": gradient_norm.item(),
        "sources": source_rows(loader, losses.take()),
        "alarms": alarms,
        "judged": judged,
        "proof": f"{loaded.with_proof_of_all(gather(loaded.proof)).proof:032x}",
        **compiled_graphs(),
    }


def _forward_backward(
    learner: Learner, micro_batches: Sequence[Batch], losses: SourceLosses
) -> dict[str, torch.Tensor]:
    """Gradients of the mean over all micro-batches. Returns the means of the scalar metrics, and "loss"."""
    means: dict[str, torch.Tensor] = {}
    for batch in micro_batches:
        share = len(batch.images_BCHW) / batch.rows
        with learner.autocast():
            loss, metrics = learner.objective(batch)
        learner.scaler.scale(loss * share).backward()
        losses.add(metrics["loss_B"], batch.entry_B)
        for name, value in {"loss": loss.detach(), **metrics}.items():
            if value.ndim == 0:
                means[name] = means.get(name, 0) + value * share
    return means
