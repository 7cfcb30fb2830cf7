"""A run that is given more epochs: what moves with its length, from the step on at which it continues.

The order of samples, crops and masks does not depend on the length. Learning rate, weight decay and what an objective
lets follow the steps do, and so are functions of the new length from there on. A warm-up that is over stays what it
was; one that is not becomes that of the longer run. What was done is in the checkpoint's state and in each log point
that follows.
"""

from typing import Annotated, Any, Self

from pydantic import BaseModel, Field, model_validator

from hjepa_shards.base.shown_text import significant
from hjepa_train.checkpoints.checkpoint_files import Checkpoint, damaged
from hjepa_train.jobs.resume_checks import begun_with, lengths_until_now
from hjepa_train.objectives.base import Objective
from hjepa_train.training.config import RunConfig
from hjepa_train.training.optimizer import rates

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


def extensions(saved: Checkpoint | None, num_steps: int, warmup: int) -> list[Extension]:
    """Those of a run, the one that its configuration makes now among them; none for a run that begins.

    num_steps, warmup: by the configuration, which has more epochs than the checkpoint's only where that is wanted.
    CheckpointError for a length that is not the last extension's.
    """
    if saved is None:
        return []
    made, before, until_now = _as_saved(saved)
    if before == num_steps:
        return made
    still_warming = saved.step < until_now
    return [
        *made,
        Extension(at=saved.step, before=before, after=num_steps, warmup=warmup if still_warming else until_now),
    ]


def what_moved(saved: Checkpoint, config: RunConfig, objective: Objective, now: Extension) -> str:
    """One sentence: steps, and what the next step has before and after."""
    _, _, warmup = _as_saved(saved)
    then = _at_next_step(begun_with(saved), objective, now.at, now.before, warmup)
    here = _at_next_step(config, objective, now.at, now.after, now.warmup)
    moved = [f"{name} {_shown(then[name])} -> {_shown(value)}" for name, value in here.items()]
    moved.append(
        f"warm-up {warmup:,} -> {now.warmup:,} steps" if now.at < warmup else f"warm-up over, {warmup:,} steps"
    )
    return f"{now.before:,} -> {now.after:,} steps from step {now.at:,} on; there: {', '.join(moved)}"


def _as_saved(saved: Checkpoint) -> tuple[list[Extension], int, int]:
    """(extensions, steps of the whole run, of its warm-up) that a checkpoint has."""
    made = [Extension.model_validate(one) for one in saved.state.get("extensions", [])]
    num_steps, warmup = lengths_until_now(saved)
    if (made and made[-1].after != num_steps) or saved.step > num_steps:
        raise damaged(saved.path, f"state.json: extensions to {num_steps} steps expected, {made} found")
    return made, num_steps, made[-1].warmup if made else warmup


def _at_next_step(config: RunConfig, objective: Objective, step: int, num_steps: int, warmup: int) -> dict[str, float]:
    """A run that is over has the values of its end."""
    lr, weight_decay = rates(config.training, num_steps=num_steps, warmup_steps=warmup)
    own = objective.followed(step, num_steps)
    return {"learning rate": lr(step), "weight decay": weight_decay(step), **own}


def _shown(value: float) -> Any:
    return significant(value, 4) if value >= 1e-3 or value == 0 else f"{value:.2e}"
