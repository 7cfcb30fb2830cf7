"""The `data` section of a configuration, and the mixture it names: entries, manifests and whole weights.

    root: data/shards
    strategy: weighted
    sources:
      - {name: cifar10, weight: .6}
      - {name: cifar100, weight: .4}

`weighted` draws by the weights given here, `balanced` equally, `concat` by size, so that every epoch holds
each sample exactly once.
"""

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from hjepa_shards.base.notebook_html import share_bar, table
from hjepa_shards.base.shown_text import counted, listed
from hjepa_shards.config import Location, Strict, load_yaml, parse
from hjepa_shards.errors import InputError
from hjepa_shards.images.crop import AugmentationConfig
from hjepa_shards.mixture.sample_order import Entry, OrderSettings, Plan
from hjepa_shards.mixture.source_counts import exact_weights, first_segment
from hjepa_shards.mixture.weight_schedule import Staircase, make_staircase
from hjepa_shards.shards.location import Place, manifest_at, place_of
from hjepa_shards.shards.manifest import FILE_NAME, Manifest
from hjepa_shards.sources.registry import SOURCES
from hjepa_shards.storage.shard_cache import CacheConfig

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$"
_MOST_SAMPLES = 2**48
_MOST_PIXELS = 2**13
_LEAST_DEVIATION = 1e-6


class SourceConfig(Strict):
    """One entry of the mixture."""

    name: str = Field(pattern=_NAME)
    """A built source: a folder under `root`."""
    split: str = Field(default="train", pattern=_NAME)
    """Of the source."""
    weight: float | dict[float, float] | None = None
    """Share of the draws, in any unit; only for `strategy: weighted`, where it is required.

    {0: .1, 100: .9} follows epochs (weight_schedule.py).
    """
    entry: str | None = Field(default=None, pattern=_NAME)
    """Its name in the mixture; by default the source, or source-split where the split is not `train`."""

    @field_validator("weight", mode="before")
    @classmethod
    def _numbers(cls, weight: Any) -> Any:
        try:
            if isinstance(weight, dict) and weight:
                return {_at_least_0(epoch): _at_least_0(value) for epoch, value in weight.items()}
            return None if weight is None else _at_least_0(weight)
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError("a number of at least 0, or such numbers by epoch ({0: .1, 100: .9}) expected") from error

    @property
    def first_weight(self) -> float | None:
        """The weight at the start."""
        return self.weight[min(self.weight)] if isinstance(self.weight, Mapping) else self.weight

    @property
    def entry_name(self) -> str:
        return self.entry or (self.name if self.split == "train" else f"{self.name}-{self.split}")


class DataConfig(Strict):
    """The `data` section."""

    root: Location
    """Folder of the built shards, or its URL (s3://, https://, ...): <root>/<source>/<split>/manifest.json. ~ and
    $VARIABLES are expanded."""
    cache: CacheConfig | None = None
    """Where whole shards of a URL are kept; None: samples are read by range, nothing is kept."""
    strategy: Literal["weighted", "balanced", "concat"] = "weighted"
    """How sources share the draws: by weight, the same number from each, or every sample of each once."""
    sources: tuple[SourceConfig, ...]
    """The entries of the mixture, one or more."""
    epoch_samples: int | None = Field(default=None, ge=1, le=_MOST_SAMPLES)
    """Positions in an epoch; by default all sizes together, for `balanced` sources × the largest size."""
    image_size: int = Field(default=224, ge=1, le=_MOST_PIXELS)
    """Pixels a side of the crops."""
    augmentation: AugmentationConfig = AugmentationConfig()
    """What is done to an image when training."""
    pixel_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Of R, G, B in [0, 1]; ImageNet's by default. `hjepa-shards info` prints a source's own."""
    pixel_std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """The same for the standard deviation."""
    order: OrderSettings = OrderSettings()
    """How samples are shuffled inside a source."""
    threads: int = Field(default=0, ge=0, le=4096)
    """Decoding threads; 0 is one a core."""

    def epoch_of(self, sizes: Sequence[int]) -> int:
        """Positions in an epoch.  sizes: samples of each entry. Raises nothing."""
        return self.epoch_samples or (len(sizes) * max(sizes) if self.strategy == "balanced" else sum(sizes))

    @field_validator("pixel_std")
    @classmethod
    def _divides(cls, deviations: tuple[float, float, float]) -> tuple[float, float, float]:
        if not min(deviations) >= _LEAST_DEVIATION:
            raise ValueError(
                f"standard deviations of at least {_LEAST_DEVIATION} expected, for pixels are divided by them"
            )
        return deviations

    @field_validator("sources")
    @classmethod
    def _not_empty(cls, sources: tuple[SourceConfig, ...]) -> tuple[SourceConfig, ...]:
        if not sources:
            raise ValueError("at least one source expected")
        return sources

    @model_validator(mode="after")
    def _weights_fit_the_strategy(self) -> "DataConfig":
        given = [source.entry_name for source in self.sources if source.weight is not None]
        missing = [source.entry_name for source in self.sources if source.weight is None]
        if self.strategy == "weighted" and missing:
            raise ValueError(f"`strategy: weighted` needs a weight for {', '.join(missing)}; or use `balanced`")
        if self.strategy != "weighted" and given:
            raise ValueError(f"`strategy: {self.strategy}` takes no weights, some found for {', '.join(given)}")
        if self.strategy == "weighted" and not make_staircase(_written(self.sources), 1):
            _weights("weighted", self.sources, ())
        return self

    @model_validator(mode="after")
    def _names_are_unique(self) -> "DataConfig":
        names = [source.entry_name for source in self.sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two sources are called {', '.join(twice)}; give one another name with `entry: <name>`")
        return self


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Mixture:
    """What a configuration names, found on disk. Tuples are in the order of the entries' names."""

    config: DataConfig
    entries: tuple[Entry, ...]
    manifests: tuple[Manifest, ...]
    places: tuple[Place, ...]
    weights: tuple[int, ...]
    """In lowest terms, at the start of a run."""
    epoch_samples: int
    staircase: Staircase | None
    """Where weights follow epochs."""

    def make_plan(self, seed: int) -> Plan:
        """The plan of a run under `seed`, from its first position on."""
        segment = first_segment(self.weights)
        return Plan(self.entries, seed, self.config.order, segment, self.epoch_samples, self.staircase)

    def weights_at(self, position: int) -> tuple[int, ...]:
        """The entries' weights at `position`, in lowest terms."""
        return self.staircase.weights(position) if self.staircase else self.weights

    def __repr__(self) -> str:
        shares = [f"{entry.name} {weight / sum(self.weights):.2%}" for entry, weight in self._weighed()]
        return f"<{self._title()}: {listed(shares)}>"

    def _repr_html_(self) -> str:
        rows = []
        for (entry, weight), place in zip(self._weighed(), self.places, strict=True):
            share = weight / sum(self.weights)
            draws = share * self.epoch_samples
            counts = f"{entry.num_samples:,}", f"{weight:,}", f"{share:.2%}"
            rows.append(
                (entry.name, *counts, share_bar(share), f"{draws:,.0f}", f"{draws / entry.num_samples:.2f}", str(place))
            )
        columns = ("entry", "samples", "weight", "share", "", "an epoch", "passes", "from")
        return table(self._title(), columns, rows)

    def _weighed(self) -> Iterable[tuple[Entry, int]]:
        return zip(self.entries, self.weights, strict=True)

    def _title(self) -> str:
        changing = ", weights follow epochs, these at the start" if self.staircase else ""
        entries = counted(len(self.entries), "entry", "entries")
        return f"Mixture of {entries}, {self.config.strategy}, {self.epoch_samples:,} samples an epoch{changing}"


def _at_least_0(value: Any) -> float:
    number = float(value)
    if isinstance(value, bool) or not 0 <= number < math.inf:
        raise ValueError
    return number


def load_mixture_file(path: Path) -> Mixture:
    """The mixture of the YAML file at `path`: the `data` section of a run, or a file that holds only that.

    InputError for keys that are wrong or sources that are not built, ManifestError for a manifest that is damaged.
    """
    return mixture_of(load_yaml(path), str(path))


def mixture_of(content: dict[str, Any], where: str) -> Mixture:
    """The same of the file's content."""
    return load_mixture(parse(DataConfig, content.get("data", content), f"{where}: data"), where)


def load_mixture(config: DataConfig, where: str) -> Mixture:
    """Open the manifests of all sources in `config`. InputError naming the first that is not built.

    where: what to call the configuration in errors, usually its file. ManifestError for a manifest that is damaged.
    """
    sources = sorted(config.sources, key=lambda source: source.entry_name)
    return mixture_of_manifests(
        config, [manifest_at(find_place(config.root, source, where)) for source in sources], where
    )


def mixture_of_manifests(config: DataConfig, manifests: Sequence[Manifest], where: str) -> Mixture:
    """The mixture of sources whose manifests are known, in the order of the entries' names."""
    sources = sorted(config.sources, key=lambda source: source.entry_name)
    for source, manifest in zip(sources, manifests, strict=True):
        if manifest.num_samples == 0:
            raise InputError(f"{where}: {source.entry_name} has no samples; take it out of the mixture")
    sizes = [manifest.num_samples for manifest in manifests]
    epoch_samples = config.epoch_of(sizes)
    staircase = make_staircase(_written(sources), epoch_samples)
    return Mixture(
        config=config,
        entries=tuple(
            Entry(
                name=source.entry_name,
                shard_samples=manifest.shard_samples,
                order_digest=manifest.order_digest,
                content_digest=manifest.content_digest,
            )
            for source, manifest in zip(sources, manifests, strict=True)
        ),
        manifests=tuple(manifests),
        places=tuple(place_of(config.root, source.name, source.split) for source in sources),
        weights=staircase.weights(0) if staircase else _weights(config.strategy, sources, sizes),
        epoch_samples=epoch_samples,
        staircase=staircase,
    )


def find_place(config_root: str, source: SourceConfig, where: str) -> Place:
    """Where a built source is. InputError where none is built there; at a URL nothing is looked up yet."""
    folder, root = place_of(config_root, source.name, source.split), Path(config_root)
    if isinstance(folder, Path) and not (folder / FILE_NAME).is_file():
        built = sorted(str(path.parent.relative_to(root)) for path in root.glob(f"*/*/{FILE_NAME}"))
        raise InputError(
            f"{where}: {folder / FILE_NAME} expected, not found; built under {root}: "
            f"{', '.join(built) or 'nothing'}; {_advice(root, source, built)}"
        )
    return folder


def _weights(strategy: str, sources: Sequence[SourceConfig], sizes: Sequence[int]) -> tuple[int, ...]:
    if strategy == "balanced":
        return (1,) * len(sizes)
    if strategy == "concat":
        return exact_weights(sizes)
    return exact_weights([weight for weight in _written(sources) if not isinstance(weight, Mapping)])


def _written(sources: Sequence[SourceConfig]) -> list[float | Mapping[float, float]]:
    return [source.weight for source in sources if source.weight is not None]


def _advice(root: Path, source: SourceConfig, built: list[str]) -> str:
    name = f"{source.name}/{source.split}"
    nearest = difflib.get_close_matches(name, built, n=1, cutoff=0.8)
    known = SOURCES.get(source.name)
    if nearest and known is None:
        return f"did you mean {nearest[0]}?"
    raw = " --raw DIR" if known is None or known.layout else ""
    return f"build it with `hjepa-shards build {source.name} --split {source.split}{raw} --out {root}`"
