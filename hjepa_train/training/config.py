"""A run's configuration: one file that says everything, checked to the last key, and the parts that it names."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from hjepa_shards import DataConfig
from hjepa_shards.config import LocalPath, Strict, load_yaml, overridden, parse
from hjepa_shards.errors import InputError
from hjepa_train.backbones.base import Backbone
from hjepa_train.backbones.registry import BACKBONES, build_backbone
from hjepa_train.base.mixture_facts import NO_FACTS, Facts
from hjepa_train.data.labelled_images import EvaluationConfig
from hjepa_train.objectives.base import Objective
from hjepa_train.objectives.registry import OBJECTIVES
from hjepa_train.parallel.layout import ScaleConfig
from hjepa_train.training.optimizer import OptimConfig
from hjepa_train.training.parameter_groups import freeze
from hjepa_train.weights.init_config import InitConfig

CONFIG_FILE = "config.yaml"
"""In a run's folder."""


class RunSection(Strict):
    """What the run is called, and the one number that all its draws are keyed by."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$")
    """Of the run's folder."""
    seed: int = Field(default=0, ge=0, lt=2**63)
    """Of the order of samples, crops, masks and weights."""
    folder: LocalPath = Path("runs")
    """Where run folders are; ~ and $VARIABLES are expanded."""


class TrainingConfig(OptimConfig, ScaleConfig):
    """How long, how large, how fast; AdamW's settings and those of layout.py are among these keys."""

    epochs: int = Field(ge=1, le=2**48)
    """Of data.epoch_samples positions each."""
    global_batch: int = Field(ge=2, le=2**24)
    """Images of an optimizer step, over all ranks and micro-batches."""
    micro_batch: int | None = Field(default=None, ge=2, le=2**24)
    """Images a rank works on at once; by default its whole part of the global batch."""
    warmup_epochs: float | None = Field(default=None, ge=0, le=2**48)
    """Of the learning rate, from 0 to its peak; null for a tenth of the run."""
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Of matrix products; fp16 with a loss that is scaled."""
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    """Auto: CUDA, else MPS, else the CPU."""
    threads: int = Field(default=0, ge=0, le=4096)
    """Threads of a CPU run's arithmetic; 0 is one a core. Equal bits need equal threads."""
    ranks_timeout_s: int = Field(default=600, ge=1, le=10**7)
    """How long the ranks of a run wait for one that is lost."""
    save_every_steps: int = Field(default=500, ge=1, le=2**48)
    """Steps between two checkpoints."""
    keep_checkpoints: int = Field(default=2, ge=1, le=2**31)
    """The newest ones."""
    keep_best: str | None = None
    """And the one with the largest value of a probe during the run: knn_target, say; null for none."""


class LoggingConfig(Strict):
    """What is written while a run trains."""

    tensorboard: bool = True
    """Also write numbers and pictures for TensorBoard."""
    every_steps: int = Field(default=20, ge=1, le=2**48)
    """Steps between two log points, at which signals are computed and a line is written."""
    images_every: int = Field(default=10, ge=0, le=2**48)
    """Log points from one picture of masks and features to the next; the run's last has one too; 0 is never."""


class RunConfig(Strict):
    """One file describes a run."""

    run: RunSection
    data: DataConfig
    backbone: dict[str, dict[str, Any]]
    """Exactly one, by its name: {vit: {size: small, patch: 16}}."""
    objective: dict[str, dict[str, Any]]
    """Exactly one, by its name: {hjepa: {levels: 3}}."""
    init: InitConfig | None = None
    """Weights to begin with; by default they are drawn by run.seed."""
    training: TrainingConfig
    evaluation: EvaluationConfig = EvaluationConfig()
    logging: LoggingConfig = LoggingConfig()

    @field_validator("backbone", "objective")
    @classmethod
    def _exactly_one(cls, value: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
        if len(value) != 1:
            raise ValueError(f"exactly one name expected, found {', '.join(value) or 'none'}")
        return value


def load_run_config(path: Path, changes: Sequence[str] = ()) -> RunConfig:
    """The run that the YAML file at `path` describes, checked to the last key. InputError naming every wrong one.

    changes: `training.lr=1e-4`, in place of what is there.
    """
    config = parse(RunConfig, overridden(load_yaml(path), changes, str(path)), str(path))
    room(config.backbone, BACKBONES, f"{path}: backbone")
    room(config.objective, OBJECTIVES, f"{path}: objective")
    return config


def build_parts(config: RunConfig, num_steps: int, where: str, facts: Facts = NO_FACTS) -> tuple[Backbone, Objective]:
    """Backbone and objective of a run with their initial weights, a function of the configuration and the facts alone.

    where: what to call the configuration in errors.  facts: of its mixture.
    """
    backbone_name, backbone_config, _ = room(config.backbone, BACKBONES, f"{where}: backbone")
    name, objective_config, objective = room(config.objective, OBJECTIVES, f"{where}: objective")
    if config.data.augmentation.views != objective.num_views:
        raise InputError(
            f"{where}: data.augmentation.views: {objective.num_views} expected, for {name} takes this many crops of an "
            f"image, {config.data.augmentation.views} found"
        )
    size, seed = config.data.image_size, config.run.seed
    try:
        backbone = build_backbone(backbone_name, backbone_config, size, seed=seed)
        built = objective(backbone, objective_config, image_size=size, num_steps=num_steps, seed=seed, facts=facts)
        freeze(built, config.training.frozen)
        return backbone, built
    except InputError as error:
        raise InputError(f"{where}: {error}") from error


def room(
    chosen: dict[str, dict[str, Any]], rooms: dict[str, tuple[type[Strict], Any]], where: str
) -> tuple[str, Strict, Any]:
    """(name, its parsed configuration, what builds it) of a section that names one of `rooms`.

    where: what to call the section in errors. InputError for a name or a key that is not known.
    """
    ((name, content),) = chosen.items()
    if name not in rooms:
        raise InputError(f"{where}: unknown name `{name}`; known: {', '.join(rooms)}")
    model, builder = rooms[name]
    return name, parse(model, content or {}, f"{where}.{name}"), builder
