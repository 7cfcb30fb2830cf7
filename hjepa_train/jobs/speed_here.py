"""A few steps of a run before it begins: how fast this machine trains it, for `run --dry-run`.

The run's own loop goes over its own images for a few seconds, as in `bench`, which takes longer and says more. Where a
step would take long, fewer images make a step; where that would not help, or there is nothing to train on, it is said
why nothing was measured. No run folder is made, and PyTorch's generators and threads are left as they were.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from statistics import median

import torch

from hjepa_shards import load_mixture
from hjepa_shards.base.machine_limits import memory
from hjepa_shards.errors import InputError, ShardError
from hjepa_train.base.device import choose_device
from hjepa_train.base.device_peaks import device_name, machine_of
from hjepa_train.base.full_memory import reporting_full_memory
from hjepa_train.base.launcher import num_started
from hjepa_train.base.mixture_facts import facts_of
from hjepa_train.jobs.bench import drive, product_s
from hjepa_train.jobs.dry_run import DryRun, SpeedHere
from hjepa_train.jobs.run import autocast_of, objective_of
from hjepa_train.training.config import RunConfig
from hjepa_train.training.optimizer import build_optimizer
from hjepa_train.training.out_of_memory import smaller_steps

_WARM_UP, _STEPS = 2, 20
_AT_MOST_S = 3.0
"""No step begins later, once one was measured."""
_STEP_S = 0.7
"""A step that would take longer has fewer images."""
_FEWEST = 8
"""Images of a step; fewer would tell little about a step of all."""
_EXPECTED_SHARE = 0.25
"""Of the speed of one matrix product, to guess what a step takes."""
_PRODUCT_SIDE = 1024
_FREE_SHARE = 0.5
"""Of the memory, that a dry run may take."""


def speed_here(dry: DryRun, *, where: str) -> SpeedHere:
    """Images/s of the run that `dry` is about, on this machine; takes some seconds.

    where: as of `dry_run`. What a user could fix is no error here but the reason why nothing was measured.
    """
    config = dry.config
    try:
        device = choose_device(config.training.device)
    except InputError as error:
        return SpeedHere(device=config.training.device, images_per_s=None, how=f"not measured: {error}")
    machine = machine_of(device)
    name = machine.name if machine else device_name(device)
    with _untouched(device):
        reason = _too_much(dry, device)
        if not reason:
            try:
                images_per_s, how = _measured(dry, device, where)
            except (InputError, ShardError) as error:
                reason = str(error)
            else:
                return SpeedHere(device=name, images_per_s=images_per_s, how=f"measured: {how}")
    return SpeedHere(device=name, images_per_s=None, how=f"not measured: {reason}")


def _too_much(dry: DryRun, device: torch.device) -> str:
    """Why this run is not to be measured here; '' where nothing speaks against it."""
    if num_started() > 1:
        return "a run of several ranks logs the images_per_s of all of them"
    if dry.not_built:
        return f"{', '.join(dry.not_built)} {'is' if len(dry.not_built) == 1 else 'are'} not built yet"
    if "://" in dry.config.data.root:
        return "the shards are at a URL; `hjepa-train bench` measures with them"
    there = _memory_of(device)
    if dry.memory.total > _FREE_SHARE * there:
        return f"a step takes about {dry.memory.total / 2**30:,.1f} GiB, and {there / 2**30:,.1f} GiB are here"
    return ""


def _memory_of(device: torch.device) -> int:
    """Bytes."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    found = memory()
    return found.machine if found.limit is None else found.limit


def _measured(dry: DryRun, device: torch.device, where: str) -> tuple[float, str]:
    """Images/s, and of what."""
    autocast = autocast_of(dry.config.training, device)
    speed = 2 * _PRODUCT_SIDE**3 / product_s(device, autocast, _PRODUCT_SIDE)
    image_s = dry.flops_per_image / (_EXPECTED_SHARE * speed)
    rows = dry.config.training.global_batch
    while rows > _FEWEST and rows * image_s > _STEP_S:
        rows = max(_FEWEST, rows // 2)
    if rows * image_s > 2 * _STEP_S:
        raise InputError(
            f"{rows} images alone would take some {rows * image_s:,.0f} s; `hjepa-train bench` measures it"
        )
    config = _with_steps_of(dry.config, rows)
    mixture = load_mixture(config.data, where)
    if config.training.threads:
        torch.set_num_threads(config.training.threads)
    objective = objective_of(config, dry.plan.steps, where, device, facts_of(mixture))
    with reporting_full_memory(partial(smaller_steps, config.training, objective, device)):
        optimizer = build_optimizer(objective, config.training)
        stop = min(_WARM_UP + _STEPS, dry.plan.steps)
        until = time.monotonic() + _AT_MOST_S
        steps = drive(
            config,
            mixture,
            objective,
            optimizer,
            dry.plan.steps,
            device,
            stop,
            waits=False,
            is_enough=lambda done: done > _WARM_UP and time.monotonic() > until,
        )
    counted = [sum(step.values()) for step in steps[_WARM_UP:] or steps[-1:]]
    how = f"{len(counted)} step{'s' * (len(counted) > 1)} of {rows} images"
    return rows / median(counted), how + " without training.compile" * dry.config.training.compile


def _with_steps_of(config: RunConfig, rows: int) -> RunConfig:
    """The same run in smaller steps, and not compiled, which takes minutes."""
    training = config.training
    micro_batch = None if training.micro_batch is None else min(training.micro_batch, rows)
    changes = {"global_batch": rows, "micro_batch": micro_batch, "compile": False}
    return config.model_copy(update={"training": training.model_copy(update=changes)})


@contextmanager
def _untouched(device: torch.device) -> Iterator[None]:
    """PyTorch's generators and threads."""
    threads = torch.get_num_threads()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            torch.set_num_threads(threads)
