"""What the code did before it had a key of the configuration, or the default that a key had before today's.

A run is saved with all its keys, so a default that changes later does not reach it. Runs from before that hold of
backbone and objective what their YAML said, and no run holds keys that came after it: read by this table, they continue
as they began.
"""

import copy
from collections.abc import Mapping
from typing import Any

AS_IT_WAS: dict[str, Any] = {
    "data.augmentation.views": 1,
    "data.augmentation.grayscale": 0.0,
    "data.augmentation.blur": 0.0,
    "data.augmentation.hue": 0.0,
    "data.augmentation.jitter_share": 1.0,
    "data.augmentation.solarize": 0.0,
    "data.augmentation.three_augment": False,
    "data.augmentation.erase": 0.0,
    "training.lr": 1e-3,
    "training.lr_per_256": None,
    "training.schedule": "cosine",
    "training.min_lr": 0.0,
    "training.step_at": [],
    "training.step_factor": 0.1,
    "training.warmup_epochs": None,
    "training.betas": [0.9, 0.999],
    "training.eps": 1e-8,
    "training.weight_decay": "by_length",  # written as null then
    "training.clip_norm": None,
    "training.layer_decay": None,
    "training.frozen": [],
    "init": None,
    "backbone.vit.class_tokens": 0,
    "backbone.vit.distillation_token": False,
    "backbone.vit.registers": 0,
    "backbone.vit.positions": "sincos",
    "backbone.vit.relative_bias": False,
    "backbone.vit.pool": "mean",
    "backbone.vit.layer_scale": None,
    "backbone.vit.drop_path": 0.0,
    "backbone.vit.dropout": 0.0,
    "backbone.vit.position_grid": None,
}
"""By dotted key. A key that comes belongs here, and one whose default changes, where a run's numbers depend on it.

tests/golden/run_v1/defaults.json has the defaults of 2026-11-30, and a test compares.
"""


def with_missing_keys(content: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a saved configuration with the keys of `AS_IT_WAS` that it lacks. Raises nothing."""
    filled = copy.deepcopy(dict(content))
    for key, value in AS_IT_WAS.items():
        *way, last = key.split(".")
        node: Any = filled
        for depth, part in enumerate(way):
            is_name = depth == 1 and way[0] in ("backbone", "objective")  # of one that may not be the chosen one
            node = (node.get(part) if is_name else node.setdefault(part, {})) if isinstance(node, dict) else None
        if isinstance(node, dict):
            node.setdefault(last, copy.deepcopy(value))
    return filled
