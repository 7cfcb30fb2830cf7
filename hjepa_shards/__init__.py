"""A streaming shard engine for large image mixtures: plain tars, exact order, exact resume. No torch in here."""

from hjepa_shards.batch import Batch
from hjepa_shards.bench import Speed as LoaderSpeed
from hjepa_shards.bench import bench as bench_loader
from hjepa_shards.build import BuildOptions, build
from hjepa_shards.capacity import cores
from hjepa_shards.charts import stack as stacked_bar
from hjepa_shards.config import Strict, flatten, load_yaml, overridden, parse
from hjepa_shards.crop import AugmentationConfig
from hjepa_shards.curves import Band, Curve, line_chart
from hjepa_shards.doctor import Advice, Examination, examine, versions
from hjepa_shards.download import download, space_needed
from hjepa_shards.dryrun import EntryForecast, Forecast, forecast
from hjepa_shards.encode import EncodeSettings
from hjepa_shards.errors import (
    BuildMismatch,
    ChecksumMismatch,
    DecodeError,
    InputError,
    ManifestError,
    ResumeMismatch,
    ShardError,
    ShardTruncated,
    SidecarError,
    TooMuchDamage,
)
from hjepa_shards.evaluation import read_split
from hjepa_shards.fetch import Patience, Watcher
from hjepa_shards.files import exclusive, sync_folder, write_atomically
from hjepa_shards.index import index_tars
from hjepa_shards.loader import Loader, open_loader
from hjepa_shards.manifest import Manifest, load_manifest
from hjepa_shards.mixfile import MixtureFile, parse_source, write_mixture
from hjepa_shards.mixture import DataConfig, Mixture, SourceConfig, load_mixture, load_mixture_file
from hjepa_shards.page import render_page
from hjepa_shards.pictures import Budget, Picture
from hjepa_shards.places import manifest_at, place_of, splits_at
from hjepa_shards.plan import Plan, Planned, add_proofs, order_proof
from hjepa_shards.rawcheck import check_raw_files, check_raw_splits
from hjepa_shards.report import write_report
from hjepa_shards.rng import derive_key, permutation
from hjepa_shards.shares import SourceShare, SourceStats, dataset_stats, source_shares
from hjepa_shards.sources import SOURCES
from hjepa_shards.stages import LoaderStats
from hjepa_shards.state import state_dict as plan_state
from hjepa_shards.terminal import console, run_app, say_error
from hjepa_shards.unbuilt import expected_mixture
from hjepa_shards.verify import Problem, verify
from hjepa_shards.view import SplitView

__all__ = [
    "SOURCES",
    "Advice",
    "AugmentationConfig",
    "Band",
    "Batch",
    "Budget",
    "BuildMismatch",
    "BuildOptions",
    "ChecksumMismatch",
    "Curve",
    "DataConfig",
    "DecodeError",
    "EncodeSettings",
    "EntryForecast",
    "Examination",
    "Forecast",
    "InputError",
    "Loader",
    "LoaderSpeed",
    "LoaderStats",
    "Manifest",
    "ManifestError",
    "Mixture",
    "MixtureFile",
    "Patience",
    "Picture",
    "Plan",
    "Planned",
    "Problem",
    "ResumeMismatch",
    "ShardError",
    "ShardTruncated",
    "SidecarError",
    "SourceConfig",
    "SourceShare",
    "SourceStats",
    "SplitView",
    "Strict",
    "TooMuchDamage",
    "Watcher",
    "add_proofs",
    "bench_loader",
    "build",
    "check_raw_files",
    "check_raw_splits",
    "console",
    "cores",
    "dataset_stats",
    "derive_key",
    "download",
    "examine",
    "exclusive",
    "expected_mixture",
    "flatten",
    "forecast",
    "index_tars",
    "line_chart",
    "load_manifest",
    "load_mixture",
    "load_mixture_file",
    "load_yaml",
    "manifest_at",
    "open_loader",
    "order_proof",
    "overridden",
    "parse",
    "parse_source",
    "permutation",
    "place_of",
    "plan_state",
    "read_split",
    "render_page",
    "run_app",
    "say_error",
    "source_shares",
    "space_needed",
    "splits_at",
    "stacked_bar",
    "sync_folder",
    "verify",
    "versions",
    "write_atomically",
    "write_mixture",
    "write_report",
]
