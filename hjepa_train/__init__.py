"""A trainer for H-JEPA and its relatives: exact resume, and numbers that tell whether it learns."""

from hjepa_train.comparison import compare
from hjepa_train.dataset import MixtureDataset
from hjepa_train.dryrun import dry_run
from hjepa_train.evaluate import evaluate
from hjepa_train.export import export
from hjepa_train.report import write_report
from hjepa_train.run import train
from hjepa_train.runconfig import RunConfig, load_run_config

__all__ = [
    "MixtureDataset",
    "RunConfig",
    "compare",
    "dry_run",
    "evaluate",
    "export",
    "load_run_config",
    "train",
    "write_report",
]
