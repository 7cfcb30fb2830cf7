"""The objectives a configuration can name."""

from hjepa_shards.config import Strict
from hjepa_train.objectives.base import Batch, Objective, Sketch
from hjepa_train.objectives.contrast.simclr import Simclr, SimclrConfig
from hjepa_train.objectives.joint.hjepa import HJepa, HJepaConfig
from hjepa_train.objectives.masked.mae import Mae, MaeConfig
from hjepa_train.objectives.supervised.supervised import Supervised, SupervisedConfig

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
    "Supervised",
    "SupervisedConfig",
]

OBJECTIVES: dict[str, tuple[type[Strict], type]] = {
    "hjepa": (HJepaConfig, HJepa),
    "mae": (MaeConfig, Mae),
    "simclr": (SimclrConfig, Simclr),
    "supervised": (SupervisedConfig, Supervised),
}
