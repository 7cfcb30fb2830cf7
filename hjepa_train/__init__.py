"""A trainer for H-JEPA and its relatives: exact resume, and numbers that show whether it learns.

Folders are in the order of the data, and import only from those before them: base, modules, backbones, objectives,
data, parallel, checkpoints, weights, evaluation, reports, training, jobs; each says in its `__init__.py` what is in it.
The names below are what users import.
"""

from typing import TYPE_CHECKING

from hjepa_shards.base.lazy_names import lazy_names

if TYPE_CHECKING:
    from hjepa_train.data.lightning_callback import lightning_callback
    from hjepa_train.data.torch_dataset import MixtureDataset
    from hjepa_train.jobs.dry_run import dry_run
    from hjepa_train.jobs.evaluate import evaluate
    from hjepa_train.jobs.export import export
    from hjepa_train.jobs.run import train
    from hjepa_train.reports.compare_runs import compare
    from hjepa_train.reports.run_report import write_report
    from hjepa_train.training.config import RunConfig, load_run_config

__all__ = [
    "MixtureDataset",
    "RunConfig",
    "compare",
    "dry_run",
    "evaluate",
    "export",
    "lightning_callback",
    "load_run_config",
    "train",
    "write_report",
]

_HOMES = {
    "data.lightning_callback": "lightning_callback",
    "data.torch_dataset": "MixtureDataset",
    "jobs.dry_run": "dry_run",
    "jobs.evaluate": "evaluate",
    "jobs.export": "export",
    "jobs.run": "train",
    "reports.compare_runs": "compare",
    "reports.run_report": "write_report",
    "training.config": "RunConfig load_run_config",
}
__getattr__ = lazy_names(__name__, _HOMES)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
