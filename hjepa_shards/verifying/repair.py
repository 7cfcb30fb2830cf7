"""A damaged split made right again: just the broken shards and sidecars are built again, from raw.

The manifest says all that a build needs: settings, seed, samples per shard, what was excluded. Raw data or an encoder
that differ from its own are refused; what is built must have the manifest's sha256 before it takes the old file's
place. Of third-party tars only the sidecars can be made again.
"""

import contextlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from hjepa_shards.base.atomic_files import sync_folder, writing
from hjepa_shards.building.build import Progress, build_missing
from hjepa_shards.building.build_plan import PLAN, BuildPlan, RawList, differences, read_plan, take_list
from hjepa_shards.building.build_rules import RULES
from hjepa_shards.building.index_tars import index_tar
from hjepa_shards.building.merge_parts import merge
from hjepa_shards.building.shard_tasks import run_in_processes
from hjepa_shards.building.shard_writer import Members, sha256_of
from hjepa_shards.errors import BuildMismatch, InputError, ManifestError
from hjepa_shards.images.encode import encoder_identity, require_encoder
from hjepa_shards.shards.manifest import Manifest, load_manifest
from hjepa_shards.sources.base import RawSplit, Remarks
from hjepa_shards.sources.registry import reopen
from hjepa_shards.storage.build_output import JOURNAL, FolderTarget
from hjepa_shards.verifying.verify_split import Problem, verify

_WORKSHOP = ".repair"
"""Below the split, so on its disk: what is built again is here until it is found right."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Repair:
    """What was done about a split."""

    repaired: tuple[str, ...]
    """Names of the files that were made again."""
    left: tuple[Problem, ...]
    """What no build can repair: files that the manifest does not know, damaged third-party tars."""


def repair(
    folder: Path,
    *,
    raw: str | Path | None = None,
    classes: Path | None = None,
    list_file: Path | None = None,
    workers: int = 1,
    progress: Progress | None = None,
) -> Repair:
    """Verify the split in `folder` and make its broken files again. raw, classes, list_file: as it was built with.

    workers: processes.  progress: receives (samples done, samples in all, raw bytes read).
    BuildMismatch for another encoder or other raw data, InputError where a rebuilt shard is not the manifest's.
    """
    manifest = _manifest(folder)
    _clear_leftovers(folder)
    problems = verify(folder, workers=workers)
    repaired: tuple[str, ...] = ()
    if any(problem.shard is not None for problem in problems):
        workshop = FolderTarget(folder / _WORKSHOP)
        workshop.prepare()
        with workshop.alone():
            for name in workshop.names():  # of a repair that was killed; its raw data may have been others
                if name != f"{JOURNAL}/.lock":
                    workshop.remove(name)
            try:
                if manifest.encoder is None:
                    _index_again(workshop, folder, problems, manifest.settings.get("image", ""))
                else:
                    plan = _plan_of(folder, manifest)
                    opened = reopen(manifest, raw, classes=classes, list_file=list_file)
                    listed = _listed(folder, plan, opened, workshop.scratch)
                    shards = sorted({problem.shard for problem in problems if problem.shard is not None})
                    way = partial(run_in_processes, workers=workers)
                    build_missing(workshop, plan, listed, shards, way, progress)
                repaired = _moved(workshop, folder, manifest, problems)
            finally:
                shutil.rmtree(workshop.folder, ignore_errors=True)
    left = tuple(problem for problem in problems if problem.name not in repaired)
    return Repair(repaired=repaired, left=left)


def _clear_leftovers(folder: Path) -> None:
    """What commands that were killed have left here."""
    target, workshop = FolderTarget(folder), FolderTarget(folder / _WORKSHOP)
    if workshop.folder.is_symlink():  # nothing that a repair makes, and what it leads to is not ours
        workshop.folder.unlink()
    if (workshop.folder / JOURNAL).is_dir():
        with workshop.alone():
            shutil.rmtree(workshop.folder, ignore_errors=True)
    if any(name.endswith(".tmp") for name in target.names()):
        with target.alone() if (folder / JOURNAL).is_dir() else contextlib.nullcontext():
            target.remove_leftovers()


def _manifest(folder: Path) -> Manifest:
    """The manifest; made again from the journal where it is damaged and the journal still there."""
    try:
        return load_manifest(folder)
    except ManifestError:
        if not (folder / PLAN).exists():
            raise
        return merge(folder)


def _plan_of(folder: Path, manifest: Manifest) -> BuildPlan:
    """The plan that this manifest was made from."""
    settings = dict(manifest.settings)
    try:
        num_samples, num_excluded = settings.pop("list_samples"), settings.pop("list_excluded")
        return BuildPlan(
            source=manifest.source,
            split=manifest.split,
            encoder=manifest.encoder or {},
            seed=settings.pop("seed"),
            samples_per_shard=settings.pop("samples_per_shard"),
            settings=settings,
            input_digest=manifest.provenance["input_digest"],
            num_samples=num_samples,
            excluded=manifest.exclusions[:num_excluded],
            members=Members(
                image=manifest.members[0],
                labels="cls" in manifest.members,
                captions="txt" in manifest.members,
            ),
            class_names=manifest.class_names,
            class_groups=manifest.class_groups,
            notes=manifest.notes,
            provenance={},
            renamed=manifest.renamed,
            rules=_rules_of(folder),
        )
    except KeyError as error:
        raise InputError(
            f"{folder}: its manifest has no {error}: written by another hjepa-shards; build it again"
        ) from error


def _rules_of(folder: Path) -> int:
    """The rules that the split was built by; today's where no journal tells: what is built has to have its sha256."""
    try:
        plan = read_plan(FolderTarget(folder))
    except BuildMismatch:
        plan = None
    return plan.rules if plan else RULES


def _listed(folder: Path, plan: BuildPlan, raw: RawSplit, scratch: Path) -> RawList:
    """The list that the split was cut from. BuildMismatch where raw data or encoder are others."""
    raw.prepare(scratch)
    listed = take_list(raw)
    reasons = {(entry["name"], entry["index"]): entry["reason"] for entry in plan.excluded}
    damaged = {}
    for number, sample in enumerate(listed.listing) if reasons else ():
        if (sample.name, sample.index) in reasons:
            damaged[number] = reasons[sample.name, sample.index]
    listed = listed.without(damaged).thinned(plan.num_samples)
    settings = plan.encode_settings()
    require_encoder(settings)
    different = differences(
        {"encoder": plan.encoder, "input_digest": plan.input_digest},
        {"encoder": encoder_identity(settings), "input_digest": listed.digest()},
    )
    if different:
        raise BuildMismatch(
            f"{folder}: was built otherwise ({different}); repair it with the raw data and the libraries of the build"
        )
    return listed


def _index_again(workshop: FolderTarget, folder: Path, problems: Sequence[Problem], image: str) -> None:
    """The sidecars of undamaged third-party tars.  image: the member that was chosen, '' for any."""
    damaged = {problem.name for problem in problems}
    for problem in problems:
        tar = folder / problem.name.removesuffix(".index")
        if problem.name.endswith(".index") and problem.shard is not None and tar.name not in damaged:
            workshop.write(problem.name, index_tar(tar, Remarks(), image).index)


def _moved(workshop: FolderTarget, folder: Path, manifest: Manifest, problems: Sequence[Problem]) -> tuple[str, ...]:
    """Put the files that were made again where they belong, if all are right."""
    made = [problem for problem in problems if (workshop.folder / problem.name).exists()]
    for problem in made:
        assert problem.shard is not None
        column = manifest.index_sha256 if problem.name.endswith(".index") else manifest.shard_sha256
        found = sha256_of(workshop.folder / problem.name)
        if found != column[problem.shard]:
            raise InputError(
                f"{problem.path}: made again it has sha256 {found}, {column[problem.shard]} expected; the raw data "
                "has other bytes than when it was built. Nothing was changed"
            )
    for problem in made:
        with writing(folder / problem.name):
            os.replace(workshop.folder / problem.name, folder / problem.name)
    sync_folder(folder)
    return tuple(problem.name for problem in made)
