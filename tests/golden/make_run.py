"""Writes run_v1/: `python tests/golden/make_run.py`, by the tree of 2026-11-30 (63a621c) and by no later one.

A run as that tree left it after three of its eight steps, the losses with which it went on there, and the defaults of
all keys: what was saved must be resumed with the same numbers, whatever keys and defaults have come since.
"""

import contextlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from hjepa_shards.building.build import BuildOptions, build
from hjepa_train import load_run_config, train
from hjepa_train.backbones.registry import BACKBONES
from hjepa_train.base.metrics_file import read_metrics
from hjepa_train.objectives.registry import OBJECTIVES
from hjepa_train.training.config import RunConfig

FOLDER = Path(__file__).resolve().parent / "run_v1"
STEPS, STOPPED_AFTER = 8, 3
CONFIG: dict[str, Any] = {
    "run": {"name": "run_v1", "seed": 5},
    "data": {
        "sources": [{"name": "digits", "weight": 0.75}, {"name": "photos", "weight": 0.25}],
        "epoch_samples": 16 * STEPS,
        "image_size": 16,
        "augmentation": {"color_jitter": 0},
    },
    "backbone": {"vit": {"width": 8, "depth": 1, "heads": 2, "patch": 2}},
    "objective": {"hjepa": {"levels": 2, "momentum": 0.4, "predictor": {"width": 8, "depth": 1, "heads": 2}}},
    "training": {"device": "cpu", "epochs": 1, "global_batch": 16, "threads": 1},
    "evaluation": {"during_every_epochs": 0},
    "logging": {"every_steps": 1, "images_every": 0, "tensorboard": False},
}
"""Short: what it does not say was the default then."""


def written(folder: Path, name: str = "run_v1", shards: str = "shards") -> Path:
    """The configuration in a file of `folder`, which is to be the working directory; runs are in runs/."""
    content = CONFIG | {"run": CONFIG["run"] | {"name": name}, "data": CONFIG["data"] | {"root": shards}}
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path


def numbers(run: Path) -> list[tuple[int, float, float, str]]:
    """Of every step: loss, norm of the gradient, order proof."""
    return [(row["step"], row["loss"], row["grad_norm"], row["proof"]) for row in read_metrics(run / "metrics.jsonl")]


def defaults() -> dict[str, Any]:
    """Dotted key -> its default, of every key that decides numbers and has one."""
    found = defaults_of(RunConfig, "")
    for section, rooms in (("backbone", BACKBONES), ("objective", OBJECTIVES)):
        for name, (model, _) in rooms.items():
            found |= defaults_of(model, f"{section}.{name}.")
    return {key: value for key, value in found.items() if not key.startswith(("run.", "evaluation.", "logging."))}


def defaults_of(model: type[BaseModel], prefix: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            found |= defaults_of(field.annotation, f"{prefix}{name}.")
        elif not field.is_required():
            found[prefix + name] = field.default
    return json.loads(json.dumps(found, default=str))


def main() -> None:
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        folder, shards = Path(), Path("shards")
        build("digits", raw=None, out=shards, splits=("train",), options=BuildOptions(samples_per_shard=48, limit=200))
        build("photos", raw=None, out=shards, splits=("train",), options=BuildOptions(samples_per_shard=40, limit=100))
        run = train(load_run_config(written(folder)), stop_after=STOPPED_AFTER)
        shutil.rmtree(FOLDER, ignore_errors=True)
        shutil.copytree(run / "checkpoints", FOLDER / "checkpoints")
        shutil.copy(run / "metrics.jsonl", FOLDER)
        whole = train(load_run_config(written(folder, "whole")))
        for file, content in (("whole.json", numbers(whole)), ("defaults.json", defaults())):
            (FOLDER / file).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
