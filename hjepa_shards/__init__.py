"""A streaming shard engine for large image mixtures: plain tars, exact order, exact resume. No torch in here."""

from hjepa_shards.build import BuildOptions, build
from hjepa_shards.config import Strict, flatten, load_yaml, parse
from hjepa_shards.crop import AugmentationConfig
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
from hjepa_shards.files import exclusive, sync_folder, write_atomically
from hjepa_shards.index import index_tars
from hjepa_shards.loader import Batch, Loader, open_loader, read_split
from hjepa_shards.manifest import Manifest, built_splits, load_manifest
from hjepa_shards.mixture import DataConfig, Mixture, SourceConfig, load_mixture, load_mixture_file
from hjepa_shards.plan import Plan, Planned, order_proof
from hjepa_shards.rng import derive_key, permutation
from hjepa_shards.sources import SOURCES
from hjepa_shards.terminal import console, run_app
from hjepa_shards.verify import Problem, verify

__all__ = [
    "SOURCES",
    "AugmentationConfig",
    "Batch",
    "BuildMismatch",
    "BuildOptions",
    "ChecksumMismatch",
    "DataConfig",
    "DecodeError",
    "EncodeSettings",
    "EntryForecast",
    "Forecast",
    "InputError",
    "Loader",
    "Manifest",
    "ManifestError",
    "Mixture",
    "Plan",
    "Planned",
    "Problem",
    "ResumeMismatch",
    "ShardError",
    "ShardTruncated",
    "SidecarError",
    "SourceConfig",
    "Strict",
    "TooMuchDamage",
    "build",
    "built_splits",
    "console",
    "derive_key",
    "exclusive",
    "flatten",
    "forecast",
    "index_tars",
    "load_manifest",
    "load_mixture",
    "load_mixture_file",
    "load_yaml",
    "open_loader",
    "order_proof",
    "parse",
    "permutation",
    "read_split",
    "run_app",
    "sync_folder",
    "verify",
    "write_atomically",
]
