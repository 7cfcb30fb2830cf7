"""Raw dataset -> shards: a pure function of (input list, settings, encoder).

The slices are fixed before any task runs (`build_plan.py`); each finished shard leaves a record; the manifest is made
from plan and records alone (`merge_parts.py`). So any number of workers, machines, parts and kills gives the same
bytes, and running the same command again does only what is missing. An image that no decoder reads is excluded from its
slice and named in the manifest; nothing else moves.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from hjepa_shards.building.build_plan import BuildPlan, RawList, fix_plan, shuffled, slice_of, take_list
from hjepa_shards.building.build_rules import require_rules
from hjepa_shards.building.merge_parts import finish, is_finished, mark_of
from hjepa_shards.building.ray_cluster import run_on_cluster
from hjepa_shards.building.same_input import check_input, require_same_input
from hjepa_shards.building.shard_tasks import Job, Run, Task, run_in_processes
from hjepa_shards.errors import InputError
from hjepa_shards.images.encode import JPEG_256, KEEP, PNG, EncodeSettings, require_encoder
from hjepa_shards.shards.exclusions import read_exclusions
from hjepa_shards.shards.manifest import Manifest
from hjepa_shards.sources.base import RawSplit
from hjepa_shards.sources.registry import SOURCES, default_splits, open_split, require_source
from hjepa_shards.storage.build_output import Target, is_url, target_at

DEFAULT_SHARD_MB = 180
_DEFAULT_SETTINGS = {"keep": KEEP, "png": PNG, "jpeg": JPEG_256}


class Progress(Protocol):
    """Receives how far a build is."""

    def __call__(self, done: int, total: int, num_bytes: int, /) -> None:
        """done, total: samples; num_bytes: raw bytes read so far."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BuildOptions:
    """What a user may choose about a build."""

    settings: EncodeSettings | None = None
    """How pixels are stored; None: the source's default."""
    shard_mb: int = DEFAULT_SHARD_MB
    """Aimed size of a shard in MiB; only chooses samples_per_shard, once."""
    samples_per_shard: int | None = None
    seed: int = 0
    """Of the shuffle that decides which sample goes into which shard."""
    limit: int | None = None
    """Only this many samples, drawn over the whole list (the first ones may all be of one class), always the same."""
    classes: Path | None = None
    """A file with one class a line, in place of the published list (imagenet100)."""
    list_file: Path | None = None
    """A file that names images and captions (image-text), where it is not found beside them."""
    no_classes: bool = False
    """Folders are no classes (folder): every image of any tree, without labels."""
    image: str | None = None
    """The member of each sample that is its image (third-party tars), such as left.jpg of 0000.left.jpg."""
    name: str | None = None
    """What to call the source among the shards, where not as it is called here: a second folder of own images."""
    exclude: Path | None = None
    """A file that names samples to be excluded (`exclusions.py`)."""
    check_input: bool = False
    """Also read all raw data of shards that are built already, and compare it with what they were made from."""
    workers: int = 1
    """Processes on this machine."""
    cluster: str | None = None
    """Address of a Ray cluster that does the work instead."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Part:
    """Part `number` (from 1) of `of`: it builds the shards whose number is number - 1 modulo `of`."""

    number: int
    of: int

    @classmethod
    def parse(cls, text: str) -> "Part":
        """`3/8`. InputError for anything else."""
        match = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text)
        if not match or not 1 <= int(match[1]) <= int(match[2]):
            raise InputError(f"--part: i/n with i from 1 to n expected, such as 3/8, {text!r} found")
        return cls(number=int(match[1]), of=int(match[2]))


@dataclass(frozen=True, kw_only=True, slots=True)
class BuiltSplit:
    """A split after a build."""

    where: str
    """Its folder or URL."""
    manifest: Manifest
    was_built: bool
    """All of it was there before, so nothing was done."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BuiltPart:
    """What of a split one part has built."""

    where: str
    num_shards: int
    """Of this part."""
    of_shards: int
    """Of the whole split."""
    was_built: bool
    """Its shards were there before."""


Start = Callable[[str], Progress | None]
"""Takes the name of a split whose shards are about to be built; gives the progress of that."""


def build(
    source: str,
    *,
    raw: str | Path | None,
    out: str | Path,
    splits: Sequence[str] = (),
    options: BuildOptions | None = None,
    progress: Progress | None = None,
) -> list[Manifest]:
    """Build `out/<source, or options.name>/<split>` for each of `splits` (all that the raw data has, if none is named).

    raw: a folder, or tars as a pattern; None for the bundled images.  out: a folder, or a URL that fsspec knows.
    progress: receives (samples done, samples in all, raw bytes read). Returns a manifest a split. Continues where a
    killed build stopped. InputError for a wrong folder or option, BuildMismatch where `out` holds a build with other
    settings, input or encoder.
    """
    built = build_splits(source, raw=raw, out=out, splits=splits, options=options, start=lambda _: progress)
    return [split.manifest for split in built]


def build_splits(
    source: str,
    *,
    raw: str | Path | None,
    out: str | Path,
    splits: Sequence[str] = (),
    options: BuildOptions | None = None,
    start: Start = lambda _: None,
) -> list[BuiltSplit]:
    """`build`, with a progress of each split's own, and with what was done about each."""
    options = options or BuildOptions()
    name = options.name or source
    built = []
    for split, opened in _opened(source, raw, splits, options):
        target = _target(out, name, split, options)
        listed = _listed(target, name, split, opened, options)
        target.prepare()
        with target.alone():
            plan = _plan(target, name, split, listed, source, options)
            require_same_input(target, listed)
            if options.check_input:
                check_input(target, plan, listed, options.workers, start(f"check the input of {name} {split}"))
            target.remove_leftovers()
            progress = start(f"{name} {split}")
            num_made = build_missing(target, plan, listed, range(plan.num_shards), _way(options), progress)
            manifest, was_built = finish(target, plan)
        built.append(BuiltSplit(where=target.where, manifest=manifest, was_built=was_built and not num_made))
    return built


def build_part(
    source: str,
    *,
    raw: str | Path | None,
    out: str | Path,
    part: Part,
    splits: Sequence[str] = (),
    options: BuildOptions | None = None,
    start: Start = lambda _: None,
) -> list[BuiltPart]:
    """One part of the same build, beside others on this or other machines; `merge` makes the manifests."""
    options = options or BuildOptions()
    name = options.name or source
    parts = []
    for split, opened in _opened(source, raw, splits, options):
        target = _target(out, name, split, options)
        listed = _listed(target, name, split, opened, options)
        target.prepare()
        with target.alone_with(mark_of(part.number, part.of)):
            plan = _plan(target, name, split, listed, source, options)
            require_same_input(target, listed)
            shards = range(part.number - 1, plan.num_shards, part.of)
            target.remove_leftovers(tuple(Path(plan.shard_name(shard)).stem for shard in shards))
            num_made = build_missing(target, plan, listed, shards, _way(options), start(f"{name} {split}"))
        part_built = BuiltPart(
            where=target.where, num_shards=len(shards), of_shards=plan.num_shards, was_built=not num_made
        )
        parts.append(part_built)
    return parts


def default_settings(source: str) -> EncodeSettings:
    """How a source's pixels are stored when nothing else is requested."""
    require_source(source)
    return _DEFAULT_SETTINGS[SOURCES[source].pixels]


def build_missing(
    target: Target, plan: BuildPlan, listed: RawList, shards: Sequence[int], way: Run, progress: Progress | None
) -> int:
    """Those of `shards` that are not in the target yet; how many they were.

    BuildMismatch where they would follow other rules.
    """
    names = target.names()
    todo = [shard for shard in shards if not is_finished(names, plan.shard_name(shard))]
    total = sum(_num_samples(plan, shard) for shard in shards)
    done = total - sum(_num_samples(plan, shard) for shard in todo)
    num_bytes = 0

    def report(samples: int, raw_bytes: int) -> None:
        nonlocal done, num_bytes
        done, num_bytes = done + samples, num_bytes + raw_bytes
        if progress:
            progress(done, total, num_bytes)

    report(0, 0)
    if todo:
        require_rules(plan.rules, target.where)
        order = shuffled(plan, listed.listing)
        job = Job(target, listed.raw, plan.members, plan.encode_settings(), dict(plan.encoder), plan.rules)
        way(
            job,
            (Task(plan.shard_name(shard), slice_of(plan, order, shard)) for shard in todo),
            report,
        )
    return len(todo)


def _num_samples(plan: BuildPlan, shard: int) -> int:
    """Of the slice, before any image in it turns out to be broken."""
    return min(plan.samples_per_shard, plan.num_samples - shard * plan.samples_per_shard)


def _opened(
    source: str, raw: str | Path | None, splits: Sequence[str], options: BuildOptions
) -> list[tuple[str, RawSplit]]:
    """Every split, opened before the first is built: what is wrong with the last is reported at once."""
    require_source(source)
    _require_name(options.name, source)
    require_encoder(_settings(source, options))
    for name in ("samples_per_shard", "limit", "workers", "shard_mb"):
        value = getattr(options, name)
        if value is not None and value < 1:
            raise InputError(f"--{name.replace('_', '-')}: a positive number expected, {value} found")
    if options.cluster and raw is not None and Path(raw).exists():
        raw = Path(raw).resolve()  # workers on other machines run in other folders
    opened, refused = list[tuple[str, RawSplit]](), list[InputError]()
    for split in splits or default_splits(source, raw):
        try:
            found = open_split(
                source,
                raw,
                split,
                classes=options.classes,
                list_file=options.list_file,
                image=options.image,
                no_classes=options.no_classes,
            )
            opened.append((split, found))
        except InputError as error:
            refused.append(error)
    if refused and opened and not splits:
        alone = " ".join(f"--split {split}" for split, _ in opened)
        raise InputError(f"{refused[0]}; or build what is available, with {alone}") from refused[0]
    if refused:
        raise refused[0]
    return opened


def _require_name(name: str | None, source: str) -> None:
    """InputError for a name that a folder, a key or a reader of tars could fail on, or that means other images."""
    if name is None or name == source:
        return
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", name):
        raise InputError(f"--name: letters, digits, - and _ expected, {name!r} found")
    if name in SOURCES:
        raise InputError(f"--name {name}: another source is called so; choose a name of your own")


def _listed(target: Target, name: str, split: str, raw: RawSplit, options: BuildOptions) -> RawList:
    """The list that is cut into shards."""
    raw.prepare(target.scratch)
    listed = take_list(raw)
    if options.exclude is not None:
        reasons = read_exclusions(options.exclude, name, split)
        listed = listed.without({index: reasons[key] for key, index in listed.listing.places_of(reasons).items()})
    if options.limit is not None:
        listed = listed.thinned(options.limit)
    if not len(listed.listing):
        raise InputError(f"{name} {split}: no images found in the raw data")
    return listed


def _target(out: str | Path, name: str, split: str, options: BuildOptions) -> Target:
    if options.cluster and not is_url(out):
        out = Path(out).resolve()
    return target_at(out, name, split)


def _plan(target: Target, name: str, split: str, listed: RawList, source: str, options: BuildOptions) -> BuildPlan:
    return fix_plan(
        target,
        name,
        split,
        listed,
        _settings(source, options),
        raw_source=source,
        seed=options.seed,
        samples_per_shard=options.samples_per_shard,
        shard_bytes=options.shard_mb * 2**20,
    )


def _settings(source: str, options: BuildOptions) -> EncodeSettings:
    return options.settings or default_settings(source)


def _way(options: BuildOptions) -> Run:
    """Where the tasks run."""
    if options.cluster:
        return partial(run_on_cluster, address=options.cluster)
    return partial(run_in_processes, workers=options.workers)
