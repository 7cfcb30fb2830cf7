"""A run before it starts: everything checked, nothing trained, no image read, no memory taken.

What follows from the configuration is exact (steps, samples of each source, parameters, FLOP an image). Memory is an
estimate (memory_estimate.py). Hours on this machine are measured beside this (speed_here.py); on devices that the
configuration names they are arithmetic on an assumed share of the peak, stated beside them, and not a measurement.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, final

import torch
from torch import nn

from hjepa_shards import Forecast, expected_mixture, forecast
from hjepa_shards.base.progress_bar import rate
from hjepa_shards.base.shown_text import significant
from hjepa_shards.errors import InputError, ShardError
from hjepa_train.base.device import devices_here
from hjepa_train.base.device_peaks import TARGETS_ARE, Machine
from hjepa_train.base.mixture_facts import facts_of
from hjepa_train.checkpoints.checkpoint_files import latest
from hjepa_train.data.labelled_images import held_out_split
from hjepa_train.data.shared_classes import require_shared_classes
from hjepa_train.evaluation.online_probes import require_probe
from hjepa_train.jobs.initial_weights import Began, begin_with
from hjepa_train.jobs.resume_checks import refuse_parted_rows
from hjepa_train.objectives.base import Objective
from hjepa_train.objectives.recipe import Recipe
from hjepa_train.parallel.layout import recompute
from hjepa_train.parallel.memory_estimate import Memory, memory_of_a_step
from hjepa_train.reports.text_table import NOTHING, TextTable
from hjepa_train.training.config import RunConfig, TrainingConfig, build_parts
from hjepa_train.training.recipe_values import RECIPE_KEYS, recipe_of
from hjepa_train.training.saved_config import resolved

ASSUMED_MFU = 0.4
"""Share of the peak that the hours assume; what a run really has is in its metrics.jsonl as `mfu`."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """One piece of the model."""

    name: str
    parameters: int
    trained: bool


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class SpeedHere:
    """What was measured on this machine, or why nothing was."""

    device: str
    """Its short name, where it is a known one; else as its maker calls it."""
    images_per_s: float | None
    """None: not measured."""
    how: str
    """What was measured, or why nothing was."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class DryRun:
    """What a run will be."""

    config: RunConfig
    """With all its keys."""
    recipe: Recipe
    written: frozenset[str]
    """Keys of `training` that the configuration gives a value; the others are the recipe's."""
    plan: Forecast
    not_built: tuple[str, ...]
    """Entries whose sizes are the published ones."""
    parts: tuple[Part, ...]
    flops_per_image: int
    micro_batch: int
    """Images that a rank works on at once."""
    memory: Memory
    """Of one rank."""
    began: Began | None
    """Of weights that are not drawn."""
    notes: tuple[str, ...]
    """What the user should know, a sentence each."""

    @property
    def trained_parameters(self) -> int:
        return sum(part.parameters for part in self.parts if part.trained)


def dry_run(config: RunConfig, *, where: str | None = None, ranks: int = 1) -> DryRun:
    """Check `config` to the last number that `train` would fail on, and say what it comes to.

    where: what to call the configuration in errors, usually its file.  ranks: processes that would train together.
    InputError as from `train`; sources that are not built are fine where their size is known.
    """
    where, written = where or config.run.name, _written(config.training)
    config = resolved(config, where)
    training = config.training
    mixture, not_built = expected_mixture(config.data, where)
    plan = forecast(mixture, epochs=training.epochs, global_batch=training.global_batch, ranks=ranks)
    with torch.device("meta"):
        _, objective = build_parts(config, plan.steps, where, facts_of(mixture))
    refuse_parted_rows(training, objective, ranks)
    (name,) = config.objective
    began = begin_with(config.init, objective, name, where) if config.init else None
    _refuse_nothing_to_probe(config, objective, not_built)
    parts, flops = tuple(_parts(objective)), objective.flops_per_image()
    if training.activation_checkpointing:
        recompute(objective)
    rows = training.global_batch // ranks
    micro_batch = min(training.micro_batch or rows, rows)
    memory = memory_of_a_step(
        objective,
        image_size=config.data.image_size,
        rows=rows,
        micro_batch=micro_batch,
        autocast=partial(torch.autocast, "cpu", torch.bfloat16, enabled=training.precision != "fp32"),
    )
    return DryRun(
        config=config,
        recipe=recipe_of(config, where),
        written=written,
        plan=plan,
        not_built=not_built,
        parts=parts,
        flops_per_image=flops,
        micro_batch=micro_batch,
        memory=memory,
        began=began,
        notes=(*_notes(config, plan, not_built), *(began.notes if began else ())),
    )


def as_tables(dry: DryRun) -> list[TextTable]:
    """The tables that the command prints: run, optimizer, model, memory, sources."""
    return [_run(dry), _optimizer(dry), _model(dry), _memory(dry), _sources(dry)]


def hours_table(dry: DryRun, here: SpeedHere, machines: Sequence[Machine]) -> TextTable:
    """How long the run takes: here, as it was measured, and on known devices, as their peaks would let it.

    machines: those that the configuration is for.
    """
    if here.images_per_s is None:
        rows = [(f"this machine ({here.device})", NOTHING, NOTHING, here.how)]
    else:
        speed = rate(here.images_per_s)
        rows = [(f"this machine ({here.device})", speed, _hours_at(dry, here.images_per_s), here.how)]
    for machine in machines:
        peak = machine.peak(dry.config.training.precision)
        assumed = ASSUMED_MFU * peak / dry.flops_per_image
        how = f"assumed: {ASSUMED_MFU:.0%} of {significant(peak / 1e12, 4)} TFLOP/s ({dry.config.training.precision})"
        rows.append((machine.name, rate(assumed), _hours_at(dry, assumed), how))
        if machine.target:
            low, high = machine.target
            hours = " to ".join(dict.fromkeys(_hours_at(dry, speed) for speed in (high, low)))
            rows.append((machine.name, f"{low:,} to {high:,}", hours, "the project's target"))
    notes = ["Assumed: data always there; narrow models reach far less."] if machines else []
    notes += [TARGETS_ARE] if any(machine.target for machine in machines) else []
    return TextTable(
        title="Hours on one device",
        columns=("device", "images/s", "hours", "how it is known"),
        rows=tuple(rows),
        note=" ".join(notes),
    )


def _written(training: TrainingConfig) -> frozenset[str]:
    """Keys that have a value; a learning rate of null is none."""
    no_rate = {key for key in ("lr", "lr_per_256") if getattr(training, key) is None}
    return frozenset(training.model_fields_set - no_rate)


def _parts(objective: nn.Module) -> Iterator[Part]:
    """Children with parameters, and what the objective holds itself; trained and not trained apart."""
    held = [(name, list(child.parameters())) for name, child in objective.named_children()]
    held.append(("tokens", list(objective.parameters(recurse=False))))
    for name, parameters in held:
        for trained in (True, False):
            count = sum(parameter.numel() for parameter in parameters if parameter.requires_grad == trained)
            if count:
                yield Part(name=name, parameters=count, trained=trained)
    assert sum(len(parameters) for _, parameters in held) == len(list(objective.parameters()))


def _notes(config: RunConfig, plan: Forecast, not_built: tuple[str, ...]) -> Iterator[str]:
    if not_built:
        yield f"not built yet, so of their published size: {', '.join(not_built)}"
    yield from plan.warnings
    yield from _about_probes(config)
    training = config.training
    if training.warmup_epochs is not None and training.warmup_epochs >= training.epochs:
        yield (
            f"training.warmup_epochs: {training.warmup_epochs:g} epochs of warm-up in a run of {training.epochs:,}: "
            "the learning rate does not reach its peak before the run ends"
        )
    if config.logging.tensorboard and find_spec("tensorboard") is None:
        yield "logging.tensorboard: is not installed here: pip install 'hjepa[train]', or set it to false"
    if config.training.device not in ("auto", *devices_here()):
        yield f"training.device: {config.training.device}: none is on this machine, the run would not begin here"
    folder = config.run.folder / config.run.name
    nearest = next(there for there in (folder.absolute(), *folder.absolute().parents) if os.path.exists(there))
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        yield f"run.folder: {nearest} is no folder that can be written: the run would not begin here"
    newest = latest(folder / "checkpoints")
    if newest:
        yield f"{folder} holds checkpoints up to {newest.name}: `--resume auto` continues, another run.name begins"


def _refuse_nothing_to_probe(config: RunConfig, objective: Objective, not_built: tuple[str, ...]) -> None:
    """As `train` does, as far as it can be told without an image: labels are only seen when they are read."""
    settings, keep_best = config.evaluation, config.training.keep_best
    require_probe(keep_best, objective, is_probed=settings.during_every_epochs != 0)
    if (keep_best or settings.during_every_epochs) and not not_built:
        source = settings.source or config.data.sources[0].name
        require_shared_classes(config.data, source, held_out_split(config.data, source, settings.split))


def _about_probes(config: RunConfig) -> Iterator[str]:
    """Where a probe was requested and there is nothing to probe on."""
    settings = config.evaluation
    if settings.source or settings.during_every_epochs or config.training.keep_best:
        try:
            source = settings.source or config.data.sources[0].name
            require_shared_classes(config.data, source, held_out_split(config.data, source, settings.split))
        except (InputError, ShardError) as error:
            yield f"nothing to probe on: {error}"


def _run(dry: DryRun) -> TextTable:
    training, plan = dry.config.training, dry.plan
    (backbone,), (objective,) = dry.config.backbone, dry.config.objective
    facts = {
        "objective, backbone": f"{objective}, {backbone}",
        **({"begins with": f"{dry.began.facts['source']} ({dry.began.facts['digest']})"} if dry.began else {}),
        "images": f"{dry.config.data.image_size} px, {plan.samples:,} in {plan.epochs:,} "
        f"epoch{'s' * (plan.epochs != 1)} of {plan.epoch_samples:,} ({dry.config.data.strategy})",
        "optimizer steps": f"{plan.steps:,} of {plan.global_batch:,} images",
        "on each rank": f"{plan.global_batch // plan.ranks:,} images, {dry.micro_batch:,} at once, "
        f"{training.precision}; {plan.ranks} rank{'s' * (plan.ranks > 1)}",
        "GFLOP an image": f"{significant(dry.flops_per_image / 1e9, 4)} (forward, backward, targets)",
        "PFLOP in the run": significant(dry.flops_per_image * plan.samples / 1e15, 4),
        "memory of a rank": f"about {_size(dry.memory.total)}",
    }
    return TextTable(title=f"{dry.config.run.name}: what will run", columns=("", "value"), rows=tuple(facts.items()))


def _optimizer(dry: DryRun) -> TextTable:
    """Each value as it will be, and who says so."""
    training, recipe = dry.config.training, dry.recipe
    rows = []
    for key in (*RECIPE_KEYS, "frozen"):
        value = getattr(training, key)
        if key in ("step_at", "step_factor") and training.schedule != "step":
            continue
        come_from = "the file" if key in dry.written else "the recipe" if key in RECIPE_KEYS else NOTHING
        if key == "lr" and training.lr is not None:
            per_256 = training.lr * 256 / training.global_batch
            by_256 = "lr_per_256" in dry.written or ("lr" not in dry.written and recipe.lr_per_256 is not None)
            come_from = "the file" if "lr_per_256" in dry.written else come_from
            come_from += f": {significant(per_256, 4)} for 256 images" * by_256
        if key == "warmup_epochs" and key not in dry.written and recipe.warmup_epochs not in (None, value):
            come_from += f": {recipe.warmup_epochs:g}, at most a tenth of the run"
        rows.append((key, _as_written(key, value), come_from))
    return TextTable(
        title=f"Optimizer: AdamW, {recipe.name} recipe",
        columns=("training.", "value", "from"),
        rows=tuple(rows),
        note=f"Recipe: {recipe.source}.",
    )


def _as_written(key: str, value: Any) -> str:
    if value is None:
        return "a tenth of the run" if key == "warmup_epochs" else "none"
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    return str(value) if isinstance(value, str) else f"{value:g}"


def _model(dry: DryRun) -> TextTable:
    rows = [(part.name, f"{part.parameters:,}", "yes" if part.trained else "no") for part in dry.parts]
    rows.append(("all that is trained", f"{dry.trained_parameters:,}", "yes"))
    return TextTable(title="Model", columns=("part", "parameters", "trained"), rows=tuple(rows))


def _memory(dry: DryRun) -> TextTable:
    memory = dry.memory
    rows = {
        "weights that are trained, float32": memory.weights,
        "target network and buffers": memory.target,
        "gradients": memory.gradients,
        "AdamW's moments": memory.optimizer,
        f"activations of {dry.micro_batch:,} images": memory.activations,
        "images of a step": memory.images,
        "together": memory.total,
    }
    return TextTable(
        title="Memory of a rank",
        columns=("for", "bytes"),
        rows=tuple((name, _size(num_bytes)) for name, num_bytes in rows.items()),
        note="An estimate; workspaces and fragmentation come on top. Activations go with training.micro_batch.",
    )


def _sources(dry: DryRun) -> TextTable:
    rows = [
        (
            entry.name,
            f"{entry.samples:,}{' *' * (entry.name in dry.not_built)}",
            f"{entry.share:.2%}",
            f"{entry.epoch_draws:,.0f}",
            f"{entry.draws:,}",
            f"{entry.passes:,.2f}",
            f"{entry.never_seen:,}",
        )
        for entry in dry.plan.entries
    ]
    columns = ("source", "images", "share", "an epoch", "in the run", "passes", "never seen")
    note = "* as published; not built yet" if dry.not_built else ""
    return TextTable(title="Sources", columns=columns, rows=tuple(rows), note=note)


def _hours_at(dry: DryRun, images_per_s: float) -> str:
    hours = dry.plan.samples / images_per_s / 3600
    return f"{hours:,.1f}" if hours >= 0.1 else "below 0.1"


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:,.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:,.1f} MiB"
