"""The optimizer settings of a run: what its file says, and for keys that it leaves out, the recipe of its family."""

from typing import Any

from hjepa_shards.errors import InputError
from hjepa_train.objectives.base import Objective
from hjepa_train.objectives.recipe import Recipe
from hjepa_train.objectives.registry import OBJECTIVES
from hjepa_train.training.config import RunConfig, TrainingConfig, room

RECIPE_KEYS = (
    *("lr", "schedule", "min_lr", "step_at", "step_factor", "warmup_epochs", "betas", "eps"),
    *("weight_decay", "clip_norm", "layer_decay"),
)
"""Of `training`."""
_WARMUP_PARTS = 10
"""A warm-up is at most one of so many parts of a run: published ones are for published lengths."""


def recipe_of(config: RunConfig, where: str) -> Recipe:
    """That of a run's objective.  where: what to call the configuration in errors. InputError for a name unknown."""
    _, _, objective = room(config.objective, OBJECTIVES, f"{where}: objective")
    assert issubclass(objective, Objective)
    (backbone,) = config.backbone
    return objective.recipes_by_backbone.get(backbone, objective.recipe)


def with_recipe(training: TrainingConfig, recipe: Recipe, where: str) -> TrainingConfig:
    """With `lr` and all other keys of the optimizer: once filled in, it stays what it is.

    where: what to call the configuration in errors. InputError for keys that contradict each other.
    """
    given = training.model_fields_set
    values: dict[str, Any] = {key: getattr(recipe, key) for key in RECIPE_KEYS if key not in given}
    if training.lr is not None:
        values.pop("lr", None)
    elif training.lr_per_256 is not None or recipe.lr_per_256 is not None:
        per_256 = training.lr_per_256 or recipe.lr_per_256
        assert per_256 is not None
        values["lr"] = per_256 * training.global_batch / 256
    else:
        values["lr"] = recipe.lr
    if values.get("warmup_epochs") is not None:
        values["warmup_epochs"] = min(values["warmup_epochs"], training.epochs / _WARMUP_PARTS)
    schedule = values.get("schedule", training.schedule)
    if schedule == "constant" and "min_lr" in values:
        values["min_lr"] = 0.0
    if schedule != "step" and "step_at" in values:
        values["step_at"] = ()
    filled = training.model_copy(update={**values, "lr_per_256": None})
    _refuse_contradictions(filled, where)
    return filled


def _refuse_contradictions(training: TrainingConfig, where: str) -> None:
    assert training.lr is not None
    if training.schedule == "constant" and training.min_lr > 0:
        raise InputError(
            f"{where}: training.min_lr: 0 expected with `schedule: constant`, which stays at the peak, "
            f"{training.min_lr:g} found; leave it out, or choose another schedule"
        )
    if training.min_lr > training.lr:
        raise InputError(
            f"{where}: training.min_lr: at most the peak {training.lr:g} expected, {training.min_lr:g} found; set a "
            "smaller one"
        )
    if (training.schedule == "step") != bool(training.step_at):
        found = list(training.step_at) if training.step_at else "none"
        expected = "a share of the run or more" if training.schedule == "step" else "none"
        raise InputError(
            f"{where}: training.step_at: {expected} expected with `schedule: {training.schedule}`, {found} found; it "
            "is for `schedule: step`, such as [0.875]"
        )
    if list(training.step_at) != sorted(set(training.step_at)):
        raise InputError(f"{where}: training.step_at: rising shares expected, {list(training.step_at)} found")
