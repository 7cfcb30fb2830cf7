"""The objectives a configuration can name."""

from hjepa_shards import Strict
from hjepa_train.objectives.base import Batch, Objective
from hjepa_train.objectives.hjepa import HJepa, HJepaConfig
from hjepa_train.objectives.mae import Mae, MaeConfig
from hjepa_train.objectives.simclr import Simclr, SimclrConfig

__all__ = ["OBJECTIVES", "Batch", "HJepa", "HJepaConfig", "Mae", "MaeConfig", "Objective", "Simclr", "SimclrConfig"]

OBJECTIVES: dict[str, tuple[type[Strict], type]] = {
    "hjepa": (HJepaConfig, HJepa),
    "mae": (MaeConfig, Mae),
    "simclr": (SimclrConfig, Simclr),
}
