"""What an epoch takes from each source, or a run took so far: shares, draws, passes."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from hjepa_shards.mixture.mixture import DataConfig, Mixture
from hjepa_shards.mixture.sample_order import Plan
from hjepa_shards.shards.manifest import Manifest


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceStats:
    """What a mixture takes from one entry; None where it depends on a source that is not built."""

    samples: int | None
    share: float | None
    """Of the draws."""
    epoch_samples: float | None
    """Expected draws an epoch."""
    passes: float | None
    """Over all its samples, an epoch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SourceShare:
    """What a run had of an entry so far, all ranks together."""

    draws: int
    share: float
    target: float
    """The target share of its weight now."""
    passes: float
    damaged: int
    """Distinct samples that this rank found damaged."""


def source_shares(
    plan: Plan, position: int, damaged: Mapping[str, Collection[int]] | None = None
) -> dict[str, SourceShare]:
    """By entry, after `position` samples. damaged: samples by entry."""
    draws, weights = plan.counts(position), plan.segment_at(position).weights
    return {
        entry.name: SourceShare(
            draws=drawn,
            share=drawn / max(1, sum(draws)),
            target=weight / sum(weights),
            passes=drawn / entry.num_samples,
            damaged=len((damaged or {}).get(entry.name, ())),
        )
        for entry, drawn, weight in zip(plan.entries, draws, weights, strict=True)
    }


def dataset_stats(mixture: Mixture) -> dict[str, SourceStats]:
    """Size, share, expected samples and passes an epoch of `mixture`, by entry. Raises nothing."""
    total = sum(mixture.weights)
    return {
        entry.name: _stats(entry.num_samples, weight / total, mixture.epoch_samples)
        for entry, weight in zip(mixture.entries, mixture.weights, strict=True)
    }


def expected_stats(data: DataConfig, manifests: Sequence[Manifest | None]) -> dict[str, SourceStats]:
    """As `dataset_stats`, with holes for what is not built."""
    sizes = [manifest.num_samples if manifest else None for manifest in manifests]
    epoch = expected_epoch(data, manifests)
    weights: list[float | None] = [source.first_weight for source in data.sources]
    if data.strategy != "weighted":
        weights = [1] * len(sizes) if data.strategy == "balanced" else [*sizes]
    known = [weight for weight in weights if weight is not None]
    total = math.fsum(known) if len(known) == len(weights) else None
    return {
        source.entry_name: _stats(size, weight / total if weight is not None and total else None, epoch)
        for source, size, weight in zip(data.sources, sizes, weights, strict=True)
    }


def expected_epoch(data: DataConfig, manifests: Sequence[Manifest | None]) -> int | None:
    """Positions in an epoch."""
    known = [manifest.num_samples for manifest in manifests if manifest]
    if data.epoch_samples or len(known) < len(manifests):
        return data.epoch_samples
    return len(known) * max(known) if data.strategy == "balanced" else sum(known)


def _stats(samples: int | None, share: float | None, epoch: int | None) -> SourceStats:
    draws = None if share is None or epoch is None else share * epoch
    passes = None if draws is None or samples is None else draws / samples
    return SourceStats(samples=samples, share=share, epoch_samples=draws, passes=passes)
