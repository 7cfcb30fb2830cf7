"""How fast a configuration trains on this machine: a step by its phases, the images/s of the whole, and its limits.

A run's own loop (trainer.fit) goes over a run's own parts, in two ways that take turns, because other work on a machine
comes and goes. Free: the times between the ends of its steps are a run's, for the host is never more than one step
ahead of the device. And with a clock that waits for the device at the border of each phase: nothing overlaps then, so
on a GPU those steps are a little longer than the free ones. No run folder is made: nothing is probed, drawn, saved
or logged.
"""

import datetime
import math
import re
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any, final

import torch

from hjepa_shards import Batch as Loaded
from hjepa_shards import LoaderSpeed, Mixture, bench_loader, load_mixture, open_loader
from hjepa_shards.base.machine_limits import cores, versions
from hjepa_shards.errors import InputError
from hjepa_train.base.device import choose_device
from hjepa_train.base.device_peaks import MACHINES, device_name, machine_of
from hjepa_train.base.distributed import joined
from hjepa_train.base.full_memory import reporting_full_memory
from hjepa_train.base.launcher import num_started
from hjepa_train.base.mixture_facts import facts_of
from hjepa_train.base.phase_clock import PHASES, PREPARE, WAIT, PhaseClock, mark_borders
from hjepa_train.checkpoints.checkpoint_files import recipe_facts
from hjepa_train.data.micro_batches import page_locked
from hjepa_train.jobs.run import SCALES_TRIED, autocast_of, objective_of, preparation, schedule_of, warmup_of
from hjepa_train.modules.learning_signals import Alarms
from hjepa_train.objectives.base import Batch, Objective
from hjepa_train.reports.run_log import RunLog
from hjepa_train.training.config import RunConfig
from hjepa_train.training.nonfinite_guard import NonfiniteGuard
from hjepa_train.training.optimizer import build_optimizer
from hjepa_train.training.out_of_memory import smaller_steps
from hjepa_train.training.saved_config import resolved
from hjepa_train.training.trainer import Hooks, Learner, fit

WARM_UP = 5
"""Steps at the beginning of each pass that do not count."""
_PASSES = 3
"""Of each way."""
_NEVER = 1 << 62
_LOADER_IMAGES, _LOADER_ROUNDS = 1024, 3
_LARGEST_PRODUCT, _LONG_ENOUGH_S, _PRODUCTS = 8192, 0.05, 5


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Bench:
    """What was measured. Times are seconds, speeds images/s."""

    run: str
    date: str
    """YYYY-MM-DD"""
    hardware: str
    """The device's short name, where it is a known one; else as its maker calls it."""
    batch: int
    """Images of an optimizer step."""
    warm_up: int
    """Steps before those of each pass, not counted."""
    step_s: tuple[float, ...]
    """Of each free step."""
    waited_s: tuple[float, ...]
    """The host for data, in the same steps."""
    phases_s: tuple[Mapping[str, float], ...]
    """Of each of as many other steps: phase -> seconds; on a CPU they add up to a free step."""
    flops_per_image: int
    peak: float
    """FLOP/s of the device at best."""
    peak_from: str
    """Whose number it is."""
    peak_memory: int | None
    """Bytes that tensors took on the device at most; None on a CPU."""
    loader: LoaderSpeed
    """The loader alone, when nothing computes."""
    targets: Mapping[str, tuple[int, int]]
    """Known device -> the project's target for it, from and to."""
    facts: Mapping[str, Any]
    """Hardware and versions."""
    config: Mapping[str, Any]
    """The run's, resolved."""

    @property
    def name(self) -> str:
        """Of its files, without an ending."""
        return f"train_{self.run}_{re.sub(r'[^A-Za-z0-9]+', '-', self.hardware).strip('-').lower()}_{self.date}"

    @property
    def images_per_s(self) -> float:
        """Of the median step."""
        return self.batch / median(self.step_s)

    @property
    def data_wait(self) -> float:
        """Share of the time, as a run logs it."""
        return sum(self.waited_s) / sum(self.step_s)

    @property
    def limit(self) -> float:
        """Images/s if every FLOP of the device went into the model."""
        return self.peak / self.flops_per_image

    @property
    def mfu(self) -> float:
        return self.images_per_s / self.limit

    def phase_s(self, phase: str) -> float:
        """The median."""
        return median(step[phase] for step in self.phases_s)

    def as_json(self) -> dict[str, Any]:
        """All of it, and what follows from it."""
        return asdict(self) | {
            "images_per_s": self.images_per_s,
            "images_per_s_mean": self.batch / fmean(self.step_s),
            "data_wait": self.data_wait,
            "images_per_s_at_peak": self.limit,
            "mfu": self.mfu,
            "phase_medians_s": {phase: self.phase_s(phase) for phase in PHASES},
        }


def bench(
    config: RunConfig, *, where: str | None = None, steps: int = 30, say: Callable[[str], None] = lambda what: None
) -> Bench:
    """Measure a configuration in this process.

    where: what to call the configuration in errors, usually its file.  steps: in each way, over its three passes;
    rounded up.
    InputError as from `train`, under torchrun, and where the run has fewer steps than a pass.
    """
    where = where or config.run.name
    config = resolved(config, where)
    training, seed = config.training, config.run.seed
    if num_started() > 1:
        raise InputError(
            "bench: one process expected, torchrun's ranks found; a run logs images_per_s of all its ranks"
        )
    mixture = load_mixture(config.data, where)
    num_steps = mixture.make_plan(seed).num_steps(training.epochs, training.global_batch)
    stop = WARM_UP + math.ceil(steps / _PASSES)
    if stop > num_steps:
        most = max(0, num_steps - WARM_UP) * _PASSES
        raise InputError(
            f"--steps {steps}: at most {most} expected, for {where} has {num_steps:,}, {WARM_UP} of them warm up, and "
            f"{_PASSES} passes are made; ask for fewer, or set a larger training.epochs"
        )
    with joined(choose_device(training.device), training.ranks_timeout_s) as device:
        if training.threads:
            torch.set_num_threads(training.threads)
        say("building")
        objective = objective_of(config, num_steps, where, device, facts_of(mixture))
        timed = partial(drive, config, mixture, objective, build_optimizer(objective, training), num_steps, device)
        step_s, waited_s, phases_s = list[float](), list[float](), list[dict[str, float]]()
        with reporting_full_memory(partial(smaller_steps, training, objective, device)):
            for number in range(1, _PASSES + 1):
                say(f"steps as a run has them, pass {number} of {_PASSES}")
                free = timed(stop, waits=False)
                say(f"steps by phases, pass {number} of {_PASSES}")
                phases_s += timed(stop, waits=True)[WARM_UP:]
                step_s += [sum(step.values()) for step in free[WARM_UP:]]
                waited_s += [step[WAIT] for step in free[WARM_UP:]]
        peak_memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
        machine = machine_of(device)
        if machine:
            peak, peak_from = machine.peak(training.precision), f"known of {machine.name} in {training.precision}"
        else:
            say("the device at its best")
            peak, peak_from = _measured_peak(device, autocast_of(training, device))
        facts = recipe_facts(device=device, world_size=1, eager=not training.compile)
        say("the loader alone")
        loader = bench_loader(mixture, batch=training.global_batch, images=_LOADER_IMAGES, rounds=_LOADER_ROUNDS)
    return Bench(
        run=config.run.name,
        date=datetime.date.today().isoformat(),
        hardware=machine.name if machine else device_name(device),
        batch=training.global_batch,
        warm_up=WARM_UP,
        step_s=tuple(step_s),
        waited_s=tuple(waited_s),
        phases_s=tuple(phases_s),
        flops_per_image=objective.flops_per_image(),
        peak=peak,
        peak_from=peak_from,
        peak_memory=peak_memory,
        loader=loader,
        targets={machine.name: machine.target for machine in MACHINES if machine.target},
        facts=facts | {"precision": training.precision, "usable cores": cores().usable, **versions()},
        config=config.model_dump(mode="json"),
    )


def drive(
    config: RunConfig,
    mixture: Mixture,
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    num_steps: int,
    device: torch.device,
    stop: int,
    *,
    waits: bool,
    is_enough: Callable[[int], bool] = lambda num_steps: False,
) -> list[dict[str, float]]:
    """The times of steps [0, stop) of a run of `num_steps`, with a loader of their own.

    waits: as PhaseClock's.  is_enough: asked after each step with the number of steps done; true ends it.
    """
    training, seed = config.training, config.run.seed
    scaler = torch.amp.GradScaler(device.type, enabled=training.precision == "fp16")
    prepare, clock = preparation(config, device), PhaseClock(device, waits=waits)

    def prepared(loaded: Loaded) -> list[Batch]:
        clock.mark(WAIT)
        micro_batches = prepare(loaded)
        clock.mark(PREPARE)
        return micro_batches

    with (
        tempfile.TemporaryDirectory() as folder,
        open_loader(
            mixture,
            seed=seed,
            global_batch=training.global_batch,
            allocate=page_locked(device),
            stops_alone=True,
        ) as loader,
    ):
        log = RunLog(
            Path(folder),
            num_steps=num_steps,
            start=0,
            tensorboard=False,
            pixels=(config.data.pixel_mean, config.data.pixel_std),
            silent=True,
        )
        names = [entry.name for entry in loader.plan.entries]
        schedule = schedule_of(config, num_steps, warmup_of(config, mixture, num_steps))
        borders = mark_borders(objective, scaler, clock) if waits else []
        try:
            fit(
                Learner(
                    objective=objective,
                    optimizer=optimizer,
                    scaler=scaler,
                    prepare=prepared,
                    autocast=autocast_of(training, device),
                    guard=NonfiniteGuard(
                        Path(folder) / "skipped.jsonl",
                        names,
                        log.say,
                        allowed=SCALES_TRIED if scaler.is_enabled() else 1,
                    ),
                    clip_norm=training.clip_norm,
                ),
                loader,
                replace(schedule, num_steps=_NEVER, log_every=_NEVER, save_every=_NEVER, draw_every=0),
                Hooks(
                    log=log,
                    alarms=Alarms(warmup_steps=num_steps),
                    peak_images_per_s=None,
                    probe=lambda step: ({}, False),
                    save=lambda step, loaded: None,
                    stopping=lambda: clock.end_step() or is_enough(len(clock.steps)),
                ),
                start=0,
                stop=stop,
            )
        finally:
            for border in borders:
                border.remove()
            log.close()
    return clock.steps


def _measured_peak(device: torch.device, autocast: Callable[[], Any]) -> tuple[float, str]:
    """(FLOP/s of the best of a few square matrix products, in words what was multiplied)."""
    side = 256
    while side < _LARGEST_PRODUCT and product_s(device, autocast, side) < _LONG_ENOUGH_S:
        side *= 2
    took_s = min(product_s(device, autocast, side) for _ in range(_PRODUCTS))
    return 2 * side**3 / took_s, f"measured: the best of {_PRODUCTS} products of matrices of {side} by {side}"


def product_s(device: torch.device, autocast: Callable[[], Any], side: int) -> float:
    """The time of one product of square matrices, after a first one."""
    clock = PhaseClock(device, waits=True)
    with autocast():
        halves = torch.is_autocast_enabled(device.type)
        dtype = torch.get_autocast_dtype(device.type) if halves else torch.float32  # casts are not to be timed
        left, right = torch.randn(2, side, side, device=device, dtype=dtype)
        torch.mm(left, right)  # its first call chooses a kernel
        clock.end_step()
        torch.mm(left, right)
        clock.end_step()
    return sum(clock.steps[1].values())
