"""A streaming shard engine for large image mixtures: plain tars, exact order, exact resume. No torch in here.

Folders are in the order of the data, and import only from those before them: base, storage, images, shards, sources,
downloading, building, verifying, mixture, loader, duplicates, reports, commands; each says in its `__init__.py` what is
in it. The names below are what users import.
"""

from typing import TYPE_CHECKING

from hjepa_shards.base.lazy_names import lazy_names

if TYPE_CHECKING:
    from hjepa_shards.building.build import BuildOptions, build
    from hjepa_shards.building.index_tars import index_tars
    from hjepa_shards.building.merge_parts import merge
    from hjepa_shards.commands.doctor import examine
    from hjepa_shards.downloading.published_files import download
    from hjepa_shards.downloading.verify_raw import check_raw_splits
    from hjepa_shards.duplicates.find_duplicates import find_duplicates
    from hjepa_shards.images.crop import AugmentationConfig
    from hjepa_shards.images.encode import EncodeSettings
    from hjepa_shards.loader.batch import Batch
    from hjepa_shards.loader.bench import LoaderSpeed, bench_loader
    from hjepa_shards.loader.loader import Loader, open_loader
    from hjepa_shards.loader.read_split import read_split
    from hjepa_shards.loader.split_view import SplitView
    from hjepa_shards.mixture.expected_sources import expected_mixture
    from hjepa_shards.mixture.forecast import Forecast, forecast
    from hjepa_shards.mixture.mixture import DataConfig, Mixture, SourceConfig, load_mixture, load_mixture_file
    from hjepa_shards.mixture.resume_state import plan_state
    from hjepa_shards.mixture.source_shares import dataset_stats
    from hjepa_shards.mixture.write_mixture import write_mixture
    from hjepa_shards.reports.shards_report import write_report
    from hjepa_shards.shards.location import manifest_at, place_of, splits_at
    from hjepa_shards.sources.registry import SOURCES
    from hjepa_shards.verifying.repair import repair
    from hjepa_shards.verifying.verify_split import verify

__all__ = [
    "SOURCES",
    "AugmentationConfig",
    "Batch",
    "BuildOptions",
    "DataConfig",
    "EncodeSettings",
    "Forecast",
    "Loader",
    "LoaderSpeed",
    "Mixture",
    "SourceConfig",
    "SplitView",
    "bench_loader",
    "build",
    "check_raw_splits",
    "dataset_stats",
    "download",
    "examine",
    "expected_mixture",
    "find_duplicates",
    "forecast",
    "index_tars",
    "load_mixture",
    "load_mixture_file",
    "manifest_at",
    "merge",
    "open_loader",
    "place_of",
    "plan_state",
    "read_split",
    "repair",
    "splits_at",
    "verify",
    "write_mixture",
    "write_report",
]

_HOMES = {
    "building.build": "BuildOptions build",
    "building.index_tars": "index_tars",
    "building.merge_parts": "merge",
    "commands.doctor": "examine",
    "downloading.published_files": "download",
    "downloading.verify_raw": "check_raw_splits",
    "duplicates.find_duplicates": "find_duplicates",
    "images.crop": "AugmentationConfig",
    "images.encode": "EncodeSettings",
    "loader.batch": "Batch",
    "loader.bench": "LoaderSpeed bench_loader",
    "loader.loader": "Loader open_loader",
    "loader.read_split": "read_split",
    "loader.split_view": "SplitView",
    "mixture.expected_sources": "expected_mixture",
    "mixture.forecast": "Forecast forecast",
    "mixture.mixture": "DataConfig Mixture SourceConfig load_mixture load_mixture_file",
    "mixture.resume_state": "plan_state",
    "mixture.source_shares": "dataset_stats",
    "mixture.write_mixture": "write_mixture",
    "reports.shards_report": "write_report",
    "shards.location": "manifest_at place_of splits_at",
    "sources.registry": "SOURCES",
    "verifying.repair": "repair",
    "verifying.verify_split": "verify",
}
__getattr__ = lazy_names(__name__, _HOMES)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
