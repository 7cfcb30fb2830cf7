"""What a run that continues must have as it was: its recipe, its number of steps, the images that meet in its loss.

The mixture has rules of its own (hjepa_shards/mixture/resume_state.py). What may be accepted there must not move the
schedules here: learning rate, momentum and warm-up follow the number of steps.
"""

from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from hjepa_shards import DataConfig, Mixture
from hjepa_shards.config import first_problem, flatten, parse
from hjepa_shards.errors import InputError, ResumeMismatch
from hjepa_train.base import schedules
from hjepa_train.base.distributed import world_size
from hjepa_train.base.former_defaults import AS_IT_WAS
from hjepa_train.checkpoints.checkpoint_files import Checkpoint, damaged
from hjepa_train.objectives.base import Objective, adds_up
from hjepa_train.parallel.layout import ScaleConfig
from hjepa_train.training.config import RunConfig, TrainingConfig
from hjepa_train.training.out_of_memory import micro_batch_of
from hjepa_train.training.saved_config import completed, left_to_defaults, resolved

_DECIDES = ("backbone.", "objective.", "training.", "data.image_size", "data.augmentation.", "data.pixel_", "init")
_FREE = {
    f"training.{name}"
    for name in (
        *("device", "threads", "ranks_timeout_s", "save_every_steps", "keep_checkpoints", "keep_best", "micro_batch"),
        *ScaleConfig.model_fields,
    )
}

_EPOCHS, _WARMUP = "training.epochs", "training.warmup_epochs"


class _Source(BaseModel, strict=True):
    samples: Annotated[int, Field(ge=1, lt=2**53)]


class _Sources(BaseModel, strict=True):
    """Of a loader's state, what the length of an epoch depends on."""

    sources: dict[str, _Source] = Field(min_length=1)


def refuse_uneven_ranks(training: TrainingConfig, world: int) -> None:
    """InputError where `world` ranks cannot share the global batch equally."""
    batch = training.global_batch
    if batch % world == 0:
        return
    fewer = max(number for number in range(1, world) if batch % number == 0)
    more = next((number for number in range(world + 1, batch + 1) if batch % number == 0), None)
    raise InputError(
        f"training.global_batch: {batch} images cannot be shared equally by {world} ranks; start {fewer}"
        f"{f' or {more}' if more else ''}, or, for a new run, set a multiple of {world}"
    )


def refuse_parted_rows(training: TrainingConfig, objective: Objective, world: int) -> None:
    """InputError where images that belong together would come into two micro-batches, or on two ranks."""
    together = objective.rows_together
    sizes = {
        "training.global_batch": training.global_batch,
        f"a part of it on each of {world} ranks": training.global_batch // world,
        "training.micro_batch": micro_batch_of(training, world),
    }
    for name, size in sizes.items():
        if size % together:
            raise InputError(
                f"{name}: a multiple of {together} expected, for mixup and CutMix mix neighbours, {size} found; set "
                f"training.global_batch to a multiple of {together * world} and training.micro_batch to one of "
                f"{together}, or turn both off (objective.supervised.mix)"
            )


def as_begun(saved: Checkpoint, config: RunConfig, where: str, *, extend: bool = False) -> dict[str, Any]:
    """Defaults that have changed since the run began, as they were: it continues with them.

    config: as the user wrote it.  where: what to call it in errors.  extend: it may have more epochs, and a
    warm-up that its recipe derives from them. ResumeMismatch naming all that decides the numbers and is not as it was.
    """
    before = flatten(completed(saved.state["config"]))
    now = flatten(resolved(config, where).model_dump(mode="json"))
    differs = {
        key: (before.get(key), now.get(key))
        for key in dict.fromkeys([*before, *now])
        if key.startswith(_DECIDES) and key not in _FREE and before.get(key) != now.get(key)
    }
    left = left_to_defaults(config)
    kept = {key: was for key, (was, _) in differs.items() if key in left and key in before and was == AS_IT_WAS[key]}
    was, here = differs.get(_EPOCHS, (0, 0))
    is_longer = isinstance(was, int) and isinstance(here, int) and here > was
    follows = {_EPOCHS, *({_WARMUP} & left)} if extend and is_longer else set[str]()
    refused = [
        f"{key}: {was} saved, {here} here"
        for key, (was, here) in differs.items()
        if key not in kept and key not in follows
    ]
    if refused:
        advice = "; `--extend` continues to more epochs" if is_longer and not extend else ""
        if extend and _EPOCHS in differs and not is_longer:
            advice = "; `--extend` makes a run longer, never shorter"
        raise ResumeMismatch(
            f"{saved.path}: this run began with other settings: {'; '.join(refused)}; restore those settings, or "
            f"choose another run.name{advice}"
        )
    return kept


def refuse_other_steps(saved: Checkpoint, config: RunConfig, mixture: Mixture) -> None:
    """ResumeMismatch naming whatever would move the number of steps or the warm-up: schedules would jump there."""
    was, sizes = begun_with(saved), _sizes(saved)
    then, now = was.data.epoch_of(tuple(sizes.values())), mixture.epoch_samples
    before, after = (_lengths(config.training, epoch_samples) for epoch_samples in (then, now))
    if before == after:
        return
    here = {entry.name: entry.num_samples for entry in mixture.entries}
    causes = "; ".join(_why_epochs_differ(was.data, config.data, sizes, here))
    raise ResumeMismatch(
        f"{saved.path}: {causes}: this run would have {after[0]:,} steps, {after[1]:,} of them warm-up, and began with "
        f"{before[0]:,} and {before[1]:,}, which learning rate and momentum follow; set `data.epoch_samples: {then}`, "
        "which is what an epoch was, or choose another run.name"
    )


def begun_with(saved: Checkpoint) -> RunConfig:
    """The configuration of a checkpoint, with all keys."""
    return parse(RunConfig, completed(saved.state["config"]), f"{saved.path}/state.json: config")


def lengths_until_now(saved: Checkpoint) -> tuple[int, int]:
    """(steps of the whole run, of its warm-up) by the configuration of its checkpoint."""
    was = begun_with(saved)
    return _lengths(was.training, was.data.epoch_of(tuple(_sizes(saved).values())))


def refuse_other_statistics(saved: Checkpoint, config: RunConfig, objective: Objective) -> None:
    """Where a loss depends on which images are together, as many must stay together. ResumeMismatch otherwise."""
    was = parse(TrainingConfig, saved.state["config"].get("training", {}), f"{saved.path}/state.json: training")
    world, before = world_size(), saved.state["recipe"]["world_size"]
    together, now = micro_batch_of(was, before) * before, micro_batch_of(config.training, world) * world
    if together != now and not adds_up(objective):
        raise ResumeMismatch(
            f"{saved.path}: this run began with other settings: its statistics are those of {together} images "
            f"(micro-batches of all ranks), {now} here; set `training.micro_batch: {together // world}`, or another "
            "number of ranks"
        )


def _sizes(saved: Checkpoint) -> dict[str, int]:
    """Samples of each entry then. CheckpointError where its state does not say."""
    try:
        sources = _Sources.model_validate(saved.state["loader"]).sources
    except ValidationError as error:
        raise damaged(saved.path, f"state.json: loader: {first_problem(error)}") from error
    return {name: source.samples for name, source in sources.items()}


def _lengths(training: TrainingConfig, epoch_samples: int) -> tuple[int, int]:
    """(steps, warm-up steps)."""
    num_steps = -(-training.epochs * epoch_samples // training.global_batch)
    return num_steps, schedules.warmup_steps(
        num_steps, training.warmup_epochs, epoch_samples=epoch_samples, global_batch=training.global_batch
    )


def _why_epochs_differ(
    was: DataConfig, config: DataConfig, sizes: dict[str, int], here: dict[str, int]
) -> Iterator[str]:
    """Each cause with both values.  sizes, here: samples of each entry, saved and today."""
    if was.epoch_samples != config.epoch_samples:
        values = (f"{value:,}" if value else "all samples" for value in (was.epoch_samples, config.epoch_samples))
        yield "data.epoch_samples: {} saved, {} here".format(*values)
    if was.epoch_samples and config.epoch_samples:
        return
    if was.strategy != config.strategy:
        yield f"data.strategy: {was.strategy} saved, {config.strategy} here"
    for name in sorted(sizes.keys() | here.keys()):
        before, after = (f"{found[name]:,} samples" if name in found else "none" for found in (sizes, here))
        if before != after:
            yield f"{name}: {before} saved, {after} here"
