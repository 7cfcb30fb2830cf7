"""A run's configuration, written for the user: the requested mixture, and every number known about it.

The file is text from a template, not a dump, because its comments are half of its value: samples, draws and passes of
each source, the command that builds what is missing. `hjepa-train` takes it as it is; nothing of the trainer is
imported here, a test of the trainer reads what this writes.
"""

import difflib
import math
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

from hjepa_shards.base.atomic_files import write_atomically
from hjepa_shards.config import parse
from hjepa_shards.errors import InputError
from hjepa_shards.images.crop import AugmentationConfig
from hjepa_shards.mixture.mixture import DataConfig, SourceConfig
from hjepa_shards.mixture.source_shares import SourceStats, expected_epoch, expected_stats
from hjepa_shards.shards.location import is_labelled, manifest_at, place_of, splits_at
from hjepa_shards.shards.manifest import FILE_NAME, Manifest
from hjepa_shards.sources.registry import SOURCES

SCALES: dict[str, tuple[tuple[str, ...], int | None]] = {
    "mini": (("imagenet100=0.6", "stl10:unlabeled=0.3", "cifar100=0.1"), 276_000),
    "medium": (("imagenet=0.9", "stl10:unlabeled=0.1"), None),
    "large": (("imagenet=0.7", "coco=0.2", "places365=0.1"), None),
}
"""Foundation mixtures: sources as `parse_source` takes them, samples an epoch (None: all sizes together)."""

_SMALLEST, _LARGEST = 32, 224
"""Sides of the crops, unless one is requested."""
_MIN_STEPS = 2_000
"""With momentum .996 a target network forgets its random start in about 1,500 steps; shorter runs are refused."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MixtureFile:
    """What was written."""

    path: Path
    stats: dict[str, SourceStats]
    notes: tuple[str, ...]
    """What the user should do or know before the run, a sentence each."""


def parse_source(text: str) -> SourceConfig:
    """`name[:split][=weight]`, as on the command line: stl10:unlabeled=0.3."""
    named, equals, weight = text.partition("=")
    name, colon, split = named.partition(":")
    content: dict[str, object] = {"name": name}
    if colon:
        content["split"] = split
    if equals:
        try:
            content["weight"] = float(weight)
        except ValueError:
            raise InputError(f"--source {text}: a number expected after =, {weight!r} found") from None
    return parse(SourceConfig, content, f"--source {text}")


def write_mixture(path: Path, data: DataConfig, *, force: bool = False) -> MixtureFile:
    """Write a complete, commented run configuration around `data`.

    Sources that are not built yet are written anyway. InputError for one that neither `build` nor `data.root`
    knows, for an image size without a patch that fits, and where `path` exists already and `force` is not set.
    """
    if path.exists() and not force:
        raise InputError(f"{path}: a new file expected, one is there; replace it with --force or choose another")
    if not data.root.isprintable():
        raise InputError(f"--root: a path of printable characters expected, {data.root!a} found")
    manifests = [_manifest(data.root, source) for source in data.sources]
    stats = expected_stats(data, manifests)
    text, notes = _Template(path, data, manifests, stats).fill()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path.parent}: cannot be made: {error.strerror}; choose another --out") from error
    write_atomically(path, text.encode())
    return MixtureFile(path=path, stats=stats, notes=notes)


def default_image_size(root: str, sources: Sequence[SourceConfig]) -> int:
    """224, or what the largest images have where all sources are built and none is so large; 32 at least."""
    sides = [_LARGEST]
    manifests = [_manifest(root, source) for source in sources]
    if all(manifest and "width" in manifest.statistics for manifest in manifests):
        sides = [min(m.statistics["width"][1], m.statistics["height"][1]) for m in manifests if m]
    side = min(_LARGEST, max(_SMALLEST, *sides))
    return max(size for size in range(_SMALLEST, side + 1) if any(size % grid == 0 for grid in _LEVELS))


def _manifest(root: str, source: SourceConfig) -> Manifest | None:
    """The manifest of a built source, None of one that can be built, InputError of any other."""
    built = splits_at(root, source.name, [source.split])
    if source.split in built:
        place = place_of(root, source.name, source.split)
        manifest = manifest_at(place)
        if manifest.num_samples == 0:
            raise InputError(f"{place}: samples expected, none found; take it out of the mixture")
        return manifest
    if source.name not in SOURCES and not built:
        names = {*SOURCES, *(path.parent.parent.name for path in Path(root).glob(f"*/*/{FILE_NAME}"))}
        raise InputError(f"--source {source.name}: unknown; {_nearest(source.name, names)}")
    known = {*built, *(SOURCES[source.name].splits if source.name in SOURCES else ())}
    if source.split not in known and not (source.name in SOURCES and SOURCES[source.name].names_splits):
        advice = _nearest(source.split, known)
        raise InputError(f"--source {source.name}:{source.split}: split {source.split!r} is unknown; {advice}")
    return None


def _nearest(name: str, known: set[str]) -> str:
    close = difflib.get_close_matches(name, sorted(known), n=1)
    return f"did you mean {close[0]}?" if close else f"known: {', '.join(sorted(known))}"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Recipe:
    """Everything of a run but its data, by the size of the images."""

    vit: str
    predictor: str
    crop_share: str
    epochs: int
    global_batch: int
    precision: str


_SMALL = _Recipe(
    vit="width: 96, depth: 4, heads: 3",
    predictor="{width: 48, depth: 2, heads: 2}",
    crop_share="1",
    epochs=10,
    global_batch=64,
    precision="fp32",
)
_MIDDLE = _Recipe(
    vit="size: tiny",
    predictor="{width: 96, depth: 4, heads: 4}",
    crop_share="1",
    epochs=100,
    global_batch=256,
    precision="bf16",
)
_LARGE = _Recipe(
    vit="size: small",
    predictor="{width: 192, depth: 6, heads: 6}",
    crop_share="0.875",
    epochs=100,
    global_batch=256,
    precision="bf16",
)
_LEVELS = {14: "1, 2 and 7", 12: "1, 2 and 4", 8: "1, 2 and 4", 16: "1, 2 and 4", 28: "1, 4 and 14"}
"""Patches a side of the image -> sides of the three levels' cells; the grids that H-JEPA has levels for."""


def _patch(image_size: int) -> int:
    """The side of a patch that cuts the image into one of the grids above: between 4 and 16 pixels, if any is."""
    grids = [grid for grid in _LEVELS if image_size % grid == 0]
    if not grids:
        near = [size for size in range(8, image_size + 16) if any(size % grid == 0 for grid in _LEVELS)]
        best = min(near, key=lambda size: abs(size - image_size))
        raise InputError(f"--image-size: a multiple of 8, 12 or 14 expected, {image_size} found; {best} would do")
    return min((image_size // grid for grid in grids), key=lambda patch: max(4 / patch, patch / 16, 1))


@dataclass(frozen=True, slots=True)
class _Template:
    """The text of a configuration and what fills it."""

    path: Path
    data: DataConfig
    manifests: Sequence[Manifest | None]
    """In the order of data.sources; None: not built."""
    stats: dict[str, SourceStats]

    def fill(self) -> tuple[str, tuple[str, ...]]:
        """(the file, what the user should know)"""
        data, size = self.data, self.data.image_size
        recipe = _SMALL if size < 64 else _MIDDLE if size < 128 else _LARGE
        patch = _patch(size)
        grid = size // patch
        epochs, why = self._epochs(recipe)
        evaluation, probe = self._evaluation(recipe)
        missing = {source.entry_name: _build(data.root, source) for source, m in self._pairs() if m is None}
        name, shown = _run_name(self.path), shlex.quote(str(self.path))
        lines: list[str | tuple[str, str]] = [
            f"# {name}: {', '.join(self.stats)}; written by `hjepa-shards mix`",
            *(f"#   {build}   (not built yet)" for build in missing.values()),
            f"#   hjepa-shards plan {shown}   (what the run will see, before it starts)",
            f"#   hjepa-train run {shown}     (killed? add --resume auto)",
            (f"run: {{name: {name}, seed: 0}}", "name of its folder below runs/; seed of order, crops, masks, weights"),
            "data:",
            f"  root: {_scalar(data.root)}",
            (f"  strategy: {data.strategy}", _STRATEGY[data.strategy]),
            *self._sources(),
            self._epoch_samples(),
            (f"  image_size: {size}", "side of the crops, pixels"),
            (
                f"  augmentation: {{{_augmentation(data.augmentation)}}}",
                "crop_scale: share of the area; color_jitter: of brightness, contrast, saturation",
            ),
            (f"  pixel_mean: {_list(data.pixel_mean)}", self._own_pixels()),
            f"  pixel_std: {_list(data.pixel_std)}",
            (f"backbone: {{vit: {{{recipe.vit}, patch: {patch}}}}}", f"{grid} x {grid} patches"),
            "objective:",
            "  hjepa:",
            ("    levels: 3", f"cells of {_LEVELS[grid]} patches a side"),
            (f"    predictor: {recipe.predictor}", "a ViT without patches"),
            "training:",
            (f"  epochs: {epochs}", why),
            (f"  global_batch: {recipe.global_batch}", "images of an optimizer step, over all GPUs"),
            ("  micro_batch: null", "images a GPU works on at once; by default all of its part"),
            ("  lr: 1.0e-3", "of AdamW, its peak; falls to 0 along a cosine"),
            ("  warmup_epochs: null", "by default a tenth of the run"),
            (f"  precision: {recipe.precision}", "bf16 on a GPU, fp32 on a CPU"),
            ("  save_every_steps: 500", "a kill costs at most this many"),
            ("  keep_checkpoints: 2", "the latest"),
            evaluation,
            ("logging: {every_steps: 20, tensorboard: true}", "a line in metrics.jsonl"),
        ]
        width = max(40, *(len(line[0]) + 2 for line in self._sources()))
        text = "".join(_commented(line, width) + "\n" for line in lines)
        notes = [f"{entry} is not built yet: {build}" for entry, build in missing.items()]
        if recipe is not _SMALL:
            notes.append("this recipe wants a GPU; --image-size 32 writes one for a CPU")
        return text, (*notes, *probe)

    def _pairs(self) -> list[tuple[SourceConfig, Manifest | None]]:
        return list(zip(self.data.sources, self.manifests, strict=True))

    def _sources(self) -> list[tuple[str, str]]:
        """The list of sources, its comments a table."""
        lines = [("  sources:", f"{'share':>8} {'samples':>12} {'an epoch':>12} {'passes':>8}")]
        for source in self.data.sources:
            stats = self.stats[source.entry_name]
            columns = (
                f"{_maybe(stats.share, '.2%'):>8} {_maybe(stats.samples, ',', 'not built'):>12} "
                f"{_maybe(stats.epoch_samples, ',.0f'):>12} {_maybe(stats.passes, '.2f'):>8}"
            )
            lines.append((f"    - {{{_entry(source)}}}", columns))
        return lines

    def _epoch_samples(self) -> tuple[str, str]:
        rule = "sources x the largest size" if self.data.strategy == "balanced" else "all sizes together"
        if self.data.epoch_samples:
            return f"  epoch_samples: {self.data.epoch_samples}", f"positions in an epoch; by default {rule}"
        epoch = expected_epoch(self.data, self.manifests)
        return f"  # epoch_samples: {_maybe(epoch, '', 'N')}", f"the default: {rule}"

    def _own_pixels(self) -> str:
        """The mean and deviation of the mixture itself, weighted by its shares, as a comment."""
        mean = variance = [0.0, 0.0, 0.0]
        for source, manifest in self._pairs():
            share = self.stats[source.entry_name].share
            channels = manifest.channel_means() if manifest else []
            if not channels or share is None:
                return "ImageNet's, the usual choice"
            mean = [m + share * value for m, (value, _) in zip(mean, channels, strict=True)]
            variance = [v + share * square for v, (_, square) in zip(variance, channels, strict=True)]
        std = [max(0.0, v - m * m) ** 0.5 for m, v in zip(mean, variance, strict=True)]
        own = ", ".join(f"{value:.3f}" for value in mean), ", ".join(f"{value:.3f}" for value in std)
        return f"ImageNet's; this mixture's own: [{own[0]}] and [{own[1]}]"

    def _epochs(self, recipe: _Recipe) -> tuple[int, str]:
        """(how many, what that comes to)"""
        epoch = expected_epoch(self.data, self.manifests)
        if epoch is None:
            return recipe.epochs, ""
        least = math.ceil(_MIN_STEPS * recipe.global_batch / epoch)
        epochs = max(recipe.epochs, least)
        why = ": at least this many, for the target network to forget its random start" if least > recipe.epochs else ""
        return epochs, f"{math.ceil(epochs * epoch / recipe.global_batch):,} steps{why}"

    def _evaluation(self, recipe: _Recipe) -> tuple[str | tuple[str, str], tuple[str, ...]]:
        """(the section, what it still needs), of the first source with labels and a test split; a built one first."""
        candidates = []
        for source, manifest in self._pairs():
            known = SOURCES.get(source.name)
            built = set(splits_at(self.data.root, source.name, [source.split]))
            possible = built | set(known.splits if known else ())
            has_labels = bool(known and known.classes[:1].isdigit())
            if manifest and not has_labels:
                has_labels = is_labelled(place_of(self.data.root, source.name, source.split), manifest)
            if has_labels and "train" in possible and possible & {"test", "val"}:
                test = "test" if "test" in possible else "val"
                lacking = {"train", test} - built if manifest else set()
                candidates.append((manifest is None, len(lacking), source.name, lacking))
        if not candidates:
            section = "# evaluation: {source: NAME}", "of a built source with labels, a train and a test split"
            return section, (
                "no source has labels and a test split, so `hjepa-train eval` wants another: build one (cifar10, or "
                "a folder with train/<class>/ and test/<class>/) and name it under `evaluation`",
            )
        *_, name, lacking = min(candidates, key=lambda candidate: candidate[:2])
        section = f"evaluation: {{source: {name}, crop_share: {recipe.crop_share}, bank: 10000, test: 4000}}"
        comment = "`hjepa-train eval`: crop_share of the shorter side; bank: images to learn from"
        return (section, comment), tuple(
            f"`hjepa-train eval` will want the split {split} of {name}" for split in sorted(lacking)
        )


_STRATEGY = {
    "weighted": "every batch counts these shares out exactly",
    "balanced": "the same number from each; small ones repeat",
    "concat": "by size: an epoch holds each sample once",
}


def _commented(line: str | tuple[str, str], width: int) -> str:
    """A line of the file, its comment from column `width` on where there is room."""
    text, comment = (line, "") if isinstance(line, str) else line
    return f"{text + '  ':<{width}}# {comment}" if comment else text


def _build(root: str, source: SourceConfig) -> str:
    """The command that builds a source, with its other splits where they come along."""
    known = SOURCES.get(source.name)
    raw = " --raw DIR" if known is None or known.layout else ""
    split = "" if known and source.split in known.default_splits else f" --split {source.split}"
    return f"hjepa-shards build {source.name}{raw}{split} --out {shlex.quote(root)}"


def _run_name(path: Path) -> str:
    """The file's name as a run may be called."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._") or "run"


def _entry(source: SourceConfig) -> str:
    parts = [f"name: {source.name}"]
    parts += [f"split: {source.split}"] * (source.split != "train")
    parts += [f"entry: {source.entry}"] * (source.entry is not None)
    parts += [f"weight: {_number(source.first_weight)}"] if source.first_weight is not None else []
    return ", ".join(parts)


def _scalar(text: str) -> str:
    """A string that YAML reads back: plain where it is safe, quoted otherwise."""
    if re.fullmatch(r"[A-Za-z_.][\w.-]*/[\w./-]*", text, flags=re.ASCII):
        return text
    return "'" + text.replace("'", "''") + "'"


def _number(value: float) -> str:
    """A decimal that YAML takes for a number: YAML 1.1 reads 1e-07 as a word."""
    text = format(Decimal(str(value)).normalize(), "f")
    return text if "." in text or len(text) < 16 else f"{text}.0"


def _augmentation(config: AugmentationConfig) -> str:
    parts = [f"crop_scale: {_list(config.crop_scale)}"]
    if config.crop_ratio != AugmentationConfig().crop_ratio:
        parts.append(f"crop_ratio: {_list(config.crop_ratio)}")
    parts.append(f"horizontal_flip: {str(config.horizontal_flip).lower()}")
    parts.append(f"color_jitter: {_number(config.color_jitter)}")
    rare = {name: getattr(config, name) for name in ("views", "grayscale", "blur")}
    parts += [
        f"{name}: {_number(value)}" for name, value in rare.items() if value != getattr(AugmentationConfig(), name)
    ]
    return ", ".join(parts)


def _list(values: Sequence[float]) -> str:
    return f"[{', '.join(map(_number, values))}]"


def _maybe(value: float | None, form: str, otherwise: str = "?") -> str:
    return otherwise if value is None else format(value, form)
