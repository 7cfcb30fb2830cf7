"""Configurations as runs save them, with all their keys, and as they are read by a version that may know more."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hjepa_shards.config import flatten, load_yaml, parse
from hjepa_shards.errors import InputError
from hjepa_train.backbones.registry import BACKBONES
from hjepa_train.base.former_defaults import AS_IT_WAS, with_missing_keys
from hjepa_train.objectives.registry import OBJECTIVES
from hjepa_train.training.config import CONFIG_FILE, RunConfig, room
from hjepa_train.training.recipe_values import recipe_of, with_recipe


def resolved(config: RunConfig, where: str) -> RunConfig:
    """With all keys of its backbone, its objective and its optimizer, those left to defaults and recipe too.

    where: what to call the configuration in errors. InputError for a name or a key that is not known, and for keys that
    contradict each other.
    """
    filled: dict[str, Any] = {
        section: {name: parsed.model_dump(mode="json")}
        for section, chosen, rooms in (
            ("backbone", config.backbone, BACKBONES),
            ("objective", config.objective, OBJECTIVES),
        )
        for name, parsed, _ in [room(chosen, rooms, f"{where}: {section}")]
    }
    filled["training"] = with_recipe(config.training, recipe_of(config, where), where)
    return config.model_copy(update=filled)


def load_saved_config(folder: Path) -> RunConfig:
    """The configuration of the run in `folder`, with all keys. InputError where it is none, or of a later version."""
    path = folder / CONFIG_FILE
    return resolved(parse(RunConfig, with_missing_keys(load_yaml(path)), str(path)), str(path))


def completed(content: Mapping[str, Any]) -> dict[str, Any]:
    """A saved configuration with all keys of this version; where it holds others, as much of it as can be said."""
    filled = with_missing_keys(content)
    try:
        return resolved(RunConfig.model_validate(filled), "saved").model_dump(mode="json")
    except (ValidationError, InputError):  # its comparison names the keys
        return filled


def left_to_defaults(config: RunConfig) -> set[str]:
    """Those keys of `AS_IT_WAS` that a configuration does not give a value."""
    written = flatten(config.model_dump(mode="json", exclude_unset=True))
    if written.get("training.lr_per_256") is not None:
        written["training.lr"] = None  # said in another way
    return {key for key in AS_IT_WAS if key not in written}


def with_values(config: RunConfig, values: Mapping[str, Any]) -> RunConfig:
    """With other values, by their dotted keys; as a saved configuration has them."""
    if not values:
        return config
    content = config.model_dump(mode="json")
    for key, value in values.items():
        *way, last = key.split(".")
        node = content
        for part in way:
            node = node[part]
        node[last] = value
    return RunConfig.model_validate(content)
