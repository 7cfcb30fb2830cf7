"""What a run has trained, as it is in one of its checkpoints: for those who read it and do not continue it."""

from dataclasses import dataclass
from pathlib import Path
from typing import final

from hjepa_shards.errors import InputError
from hjepa_train.backbones.base import Backbone
from hjepa_train.base.mixture_facts import NO_FACTS, read_facts
from hjepa_train.checkpoints import checkpoint_files
from hjepa_train.checkpoints.background_saver import restore
from hjepa_train.objectives.base import Objective
from hjepa_train.training.config import RunConfig, build_parts
from hjepa_train.training.saved_config import load_saved_config

_ANY_LENGTH = 10**6
"""Steps of a run whose weights are only read."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class SavedObjective:
    config: RunConfig
    """The run's, with all keys."""
    checkpoint: Path
    objective: Objective

    def encoder(self, name: str | None, option: str) -> tuple[str, Backbone]:
        """One of its encoders, by default the last: the momentum target where there is one.

        option: what to call the choice in errors. InputError for a name that the run does not have.
        """
        encoders = self.objective.encoders()
        name = name or list(encoders)[-1]
        if name not in encoders:
            raise InputError(f"{option} {name}: one of {', '.join(encoders)} expected, which is what this run has")
        return name, encoders[name]


def load_objective(folder: Path, which: str) -> SavedObjective:
    """The objective of the run in `folder`, on the CPU.

    which: `latest`, `best` (by training.keep_best) or a checkpoint's folder. InputError where it is not there.
    """
    config = load_saved_config(folder)
    path = checkpoint_files.choose(folder / "checkpoints", which, config.training.keep_best)
    _, objective = build_parts(config, _ANY_LENGTH, str(folder), read_facts(folder) or NO_FACTS)
    restore(checkpoint_files.load(path), objective)
    return SavedObjective(config=config, checkpoint=path, objective=objective)
