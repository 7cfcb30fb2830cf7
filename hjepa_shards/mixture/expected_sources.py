"""A mixture before its sources are built: those that are missing are taken to be as large as they were published.

So a run can be planned on any machine, data or not. The counts are right as far as nothing had to be excluded from the
build; bytes are not known, and are zero.
"""

from pathlib import Path

import numpy as np

from hjepa_shards.downloading.verify_raw import PUBLISHED_IMAGES
from hjepa_shards.mixture.mixture import DataConfig, Mixture, SourceConfig, find_place, mixture_of_manifests
from hjepa_shards.shards.location import manifest_at, place_of
from hjepa_shards.shards.manifest import FILE_NAME, Manifest, shard_pattern
from hjepa_shards.sources.registry import SOURCES, open_split

_SAMPLES_PER_SHARD = 2048
"""Enough for a plan: counts do not depend on it."""


def expected_mixture(config: DataConfig, where: str) -> tuple[Mixture, tuple[str, ...]]:
    """(the mixture, which of its entries are not built).

    config, where: as of `load_mixture`. InputError for a source that is not built and of which no size is known.
    """
    sources = sorted(config.sources, key=lambda source: source.entry_name)
    sizes = [_size_unless_built(config.root, source) for source in sources]
    manifests = [
        manifest_at(find_place(config.root, source, where)) if size is None else _stand_in(source, size)
        for source, size in zip(sources, sizes, strict=True)
    ]
    missing = [source.entry_name for source, size in zip(sources, sizes, strict=True) if size is not None]
    return mixture_of_manifests(config, manifests, where), tuple(missing)


def _size_unless_built(root: str, source: SourceConfig) -> int | None:
    """Images of a known source that is not built; None where it is, or must be looked for."""
    place = place_of(root, source.name, source.split)
    if not isinstance(place, Path) or (place / FILE_NAME).is_file():
        return None
    known = SOURCES.get(source.name)
    if known and not known.layout:  # its images are here already
        return len(open_split(source.name, None, source.split).samples)
    return PUBLISHED_IMAGES.get(source.name, {}).get(source.split)


def _stand_in(source: SourceConfig, num_samples: int) -> Manifest:
    num_shards = -(-num_samples // _SAMPLES_PER_SHARD)
    ends = np.minimum(np.arange(1, num_shards + 1) * _SAMPLES_PER_SHARD, num_samples)
    return Manifest(
        source=source.name,
        split=source.split,
        class_names=(),
        class_groups=(),
        notes=(),
        members=(),
        shard_names=shard_pattern(source.name, source.split),
        shard_samples=np.diff(ends, prepend=0).astype(np.int64),
        shard_bytes=np.zeros(num_shards, np.int64),
        shard_sha256=("",) * num_shards,
        index_sha256=("",) * num_shards,
        keys_digest=("",) * num_shards,
        encoder=None,
        settings={},
        provenance={},
        exclusions=(),
        renamed={},
        statistics={},
    )
