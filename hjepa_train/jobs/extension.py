"""A run that is given more epochs: what moves with its length, from the step on at which it continues.

The order of samples, crops and masks does not depend on the length. Learning rate, weight decay and what an objective
lets follow the steps do, and so are functions of the new length from there on. A warm-up that is over stays what it
was; one that is not becomes that of the longer run. What was done is in the checkpoint's state and in each log point
that follows.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, model_validator

from hjepa_shards import Mixture
from hjepa_shards.base.shown_text import significant
from hjepa_shards.config import parse
from hjepa_train.base import schedules
from hjepa_train.checkpoints.checkpoint_files import Checkpoint
from hjepa_train.objectives.base import Objective
from hjepa_train.training.config import RunConfig
from hjepa_train.training.optimizer import rates
from hjepa_train.training.saved_config import completed

Count = Annotated[int, Field(ge=0, lt=2**63)]


class Extension(BaseModel, strict=True, frozen=True):
    """One that was made."""

    at: Count
    """steps done then"""
    before: Count
    """steps of the whole run until then"""
    after: Count
    """and since"""
    warmup: Count
    """steps of its warm-up since"""

    @model_validator(mode="after")
    def _is_longer(self) -> Self:
        if not self.at <= self.before < self.after:
            raise ValueError(f"at <= before < after expected, {self.at}, {self.before}, {self.after} found")
        return self


def warmup_steps(config: RunConfig, mixture: Mixture, num_steps: int, made: Sequence[Extension]) -> int:
    """Steps of the warm-up of a run.  made: its extensions."""
    if made:
        return made[-1].warmup
    return schedules.warmup_steps(
        num_steps,
        config.training.warmup_epochs,
        epoch_samples=mixture.epoch_samples,
        global_batch=config.training.global_batch,
    )


def extensions(saved: Checkpoint | None, config: RunConfig, mixture: Mixture, num_steps: int) -> list[Extension]:
    """Those of a run, the one that its configuration makes now among them; none for a run that begins.

    config: with more epochs than the checkpoint's only where that is wanted.
    """
    if saved is None:
        return []
    made = [Extension.model_validate(one) for one in saved.state.get("extensions", [])]
    was = _began_with(saved)
    if was.training.epochs == config.training.epochs:
        return made
    before = mixture.make_plan(config.run.seed).num_steps(was.training.epochs, config.training.global_batch)
    if before == num_steps:
        return made
    warmup = warmup_steps(was, mixture, before, made)
    if saved.step < warmup:
        warmup = warmup_steps(config, mixture, num_steps, [])
    return [*made, Extension(at=saved.step, before=before, after=num_steps, warmup=warmup)]


def what_moved(saved: Checkpoint, config: RunConfig, mixture: Mixture, objective: Objective, now: Extension) -> str:
    """One sentence: steps, and what the next step has before and after."""
    was = _began_with(saved)
    made = [Extension.model_validate(one) for one in saved.state.get("extensions", [])]
    warmup = warmup_steps(was, mixture, now.before, made)
    then = _at_next_step(was, objective, now.at, now.before, warmup)
    here = _at_next_step(config, objective, now.at, now.after, now.warmup)
    moved = [f"{name} {_shown(then[name])} -> {_shown(value)}" for name, value in here.items()]
    moved.append(
        f"warm-up {warmup:,} -> {now.warmup:,} steps" if now.at < warmup else f"warm-up over, {warmup:,} steps"
    )
    return f"{now.before:,} -> {now.after:,} steps from step {now.at:,} on; there: {', '.join(moved)}"


def _at_next_step(config: RunConfig, objective: Objective, step: int, num_steps: int, warmup: int) -> dict[str, float]:
    """A run that is over has the values of its end."""
    lr, weight_decay = rates(config.training, num_steps=num_steps, warmup_steps=warmup)
    own = objective.followed(step, num_steps)
    return {"learning rate": lr(step), "weight decay": weight_decay(step), **own}


def _began_with(saved: Checkpoint) -> RunConfig:
    return parse(RunConfig, completed(saved.state["config"]), f"{saved.path}/state.json: config")


def _shown(value: float) -> Any:
    return significant(value, 4) if value >= 1e-3 or value == 0 else f"{value:.2e}"
