"""With which optimizer settings a family was published: what a run uses for keys that its file leaves out."""

from dataclasses import dataclass
from typing import final

from hjepa_train.base.schedules import Shape


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """Values for keys of `training`, and where they come from."""

    name: str
    """what a user calls it"""
    source: str
    """where it was published"""
    lr: float | None = None
    """the peak, for any batch; either this or `lr_per_256`"""
    lr_per_256: float | None = None
    """the peak for 256 images a step; it grows with the batch"""
    schedule: Shape = "cosine"
    min_lr: float = 0.0
    step_at: tuple[float, ...] = ()
    step_factor: float = 0.1
    warmup_epochs: float | None = None
    """of the published length; at most a tenth of a run, and a tenth where it is None"""
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float | tuple[float, float] = 0.05
    """constant, or (start, end)"""
    clip_norm: float | None = None
    layer_decay: float | None = None

    def __post_init__(self) -> None:
        assert (self.lr is None) != (self.lr_per_256 is None), f"{self.name}: lr or lr_per_256"


ADAMW = Recipe(name="AdamW", source="the settings of this trainer's runs on CIFAR-10, docs/results.md", lr=1e-3)
"""Of families that name none."""
