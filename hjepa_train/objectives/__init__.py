"""The objectives a configuration can name."""

from hjepa_shards import Strict
from hjepa_train.objectives.base import Batch, Objective, Sketch
from hjepa_train.objectives.hjepa import HJepa, HJepaConfig
from hjepa_train.objectives.mae import Mae, MaeConfig
from hjepa_train.objectives.simclr import Simclr, SimclrConfig

__all__ = [
    "OBJECTIVES",
    "Batch",
    "HJepa",
    "HJepaConfig",
    "Mae",
    "MaeConfig",
    "Objective",
    "Simclr",
    "SimclrConfig",
    "Sketch",
]

OBJECTIVES: dict[str, tuple[type[Strict], type]] = {
    "hjepa": (HJepaConfig, HJepa),
    "mae": (MaeConfig, Mae),
    "simclr": (SimclrConfig, Simclr),
}
