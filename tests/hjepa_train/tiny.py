"""A complete run that takes seconds."""

from pathlib import Path
from typing import Any

import yaml

STEPS = 36
PROBED = {"source": "digits", "bank": 150, "test": 50, "crop_share": 1}
"""As `evaluation` of `tiny_run`: probed at the first and the last step."""


def tiny_run(shards: Path, folder: Path, **changes: Any) -> Path:
    """A run of seconds: 36 steps of 16 images of 16 pixels, without probes. changes: "section__key" = value."""
    content: dict[str, Any] = {
        "run": {"name": "tiny", "seed": 3, "folder": str(folder)},
        "data": {
            "root": str(shards),
            "strategy": "weighted",
            "sources": [{"name": "digits", "weight": 0.75}, {"name": "photos", "weight": 0.25}],
            "epoch_samples": 16 * STEPS // 2,
            "image_size": 16,
            "threads": 2,
        },
        "backbone": {"vit": {"width": 24, "depth": 2, "heads": 2, "patch": 2}},
        "objective": {"hjepa": {"levels": 2, "momentum": 0.8, "predictor": {"width": 16, "depth": 1, "heads": 2}}},
        "training": {"device": "cpu", "epochs": 2, "global_batch": 16, "threads": 1, "save_every_steps": 7},
        "evaluation": {**PROBED, "during_every_epochs": 0},
        "logging": {"every_steps": 1, "images_every": 0, "tensorboard": False},
    }
    content["evaluation"] = changes.pop("evaluation", content["evaluation"])
    content["logging"] = changes.pop("logging", content["logging"])
    for key, value in changes.items():
        section, name = key.split("__")
        content[section][name] = value
    path = folder / "run.yaml"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content))
    return path
