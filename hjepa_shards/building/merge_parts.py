"""The manifest of a build, from its plan and its shards' records alone.

So it is the same whatever built the shards, and wherever: one machine, a cluster, or parts that never met.
"""

import hashlib
import re
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, Field, ValidationError

from hjepa_shards.building.build_plan import PLAN, BuildPlan, read_plan
from hjepa_shards.building.shard_writer import add_statistics, num_measured, record_name
from hjepa_shards.config import first_problem
from hjepa_shards.errors import BuildMismatch, InputError
from hjepa_shards.images.rgb_pixels import notes_of
from hjepa_shards.shards.manifest import FILE_NAME, Manifest, manifest_bytes, shard_pattern
from hjepa_shards.storage.build_output import JOURNAL, Target, is_url, target_of
from hjepa_shards.storage.remote_files import file_system

_MARK = re.compile(rf"{re.escape(JOURNAL)}/\.part-(\d+)-of-(\d+)")


def mark_of(number: int, of: int) -> str:
    """The file in the journal that says: this part has been here."""
    return f".part-{number}-of-{of}"


def merge(folder: str | Path) -> Manifest:
    """Write the manifest of the split in `folder`, whose shards are all there. InputError naming those that are not."""
    return merged(folder)[0]


def merged(folder: str | Path) -> tuple[Manifest, bool]:
    """The same, and whether it was there already."""
    target = target_of(folder)
    plan = read_plan(target)
    if plan is None:
        raise InputError(f"{folder}: no build here ({PLAN} is missing); `hjepa-shards build` begins one")
    with target.alone():
        return finish(target, plan)


_Count = Annotated[int, Field(ge=0, lt=2**48)]
_Sides = Annotated[list[_Count], Field(min_length=3, max_length=3)]
_Moments = Annotated[list[Annotated[int, Field(ge=0, lt=2**62)]], Field(min_length=3, max_length=3)]


class _Statistics(BaseModel, strict=True):
    images: _Count
    width: _Sides
    height: _Sides
    channel_moments: Annotated[list[_Moments], Field(min_length=3, max_length=3)]


class _Record(BaseModel, strict=True):
    """What `write_shard` leaves of a shard."""

    samples: _Count
    bytes: _Count
    sha256: str
    index_sha256: str
    keys_digest: str
    raw_digest: str
    exclusions: list[dict[str, Any]]
    statistics: _Statistics
    remarks: dict[str, _Count] = Field(default_factory=dict)
    """What had to be assumed about pixels, and of how many images."""
    also_decoded: int = 0
    """Images that were kept and decoded all the same, besides `num_measured`; less than 0 where those were excluded."""


def unmerged_below(folder: str | Path) -> list[str]:
    """Every split with a build's plan, here or below. InputError where there is none."""
    if is_url(folder):
        fs, path = file_system(str(folder))
        fs.invalidate_cache()
        found = [fs.unstrip_protocol(name) for name in fs.find(path) if name.endswith(f"/{PLAN}")]
    else:
        found = [str(path) for path in Path(folder).glob(f"**/{PLAN}")]
    if not found:
        raise InputError(f"{folder}: no {PLAN} here or below; `hjepa-shards build --part i/n` begins a build")
    return sorted(name.removesuffix(f"/{PLAN}") for name in found)


def finish(target: Target, plan: BuildPlan) -> tuple[Manifest, bool]:
    """`merged` for a process that is alone in the target."""
    names = target.names()
    missing = [shard for shard in range(plan.num_shards) if not is_finished(names, plan.shard_name(shard))]
    if missing:
        raise InputError(_what_is_missing(target.where, plan, names, missing))
    manifest = _manifest_of(plan, _records(target, plan))
    shutil.rmtree(target.scratch, ignore_errors=True)
    target.remove_leftovers()
    for name in names:
        if _MARK.fullmatch(name):
            target.remove(name)
    data = manifest_bytes(manifest)
    was_built = FILE_NAME in names and target.read(FILE_NAME) == data
    if not was_built:
        target.write(FILE_NAME, data)
    return manifest, was_built


def num_decoded(where: str | Path) -> int | None:
    """How many of the images of the finished split at `where` (a folder or URL) its build has decoded.

    None: a build by earlier rules kept them, and did not count.

    BuildMismatch, InputError where its journal is damaged or not there.
    """
    target = target_of(where)
    plan = read_plan(target)
    if plan is None:
        raise InputError(f"{where}: no build here ({PLAN} is missing)")
    records = _records(target, plan)
    if plan.encode_settings().pixels != "keep":
        return sum(record["samples"] for record in records)
    if plan.rules < 2:
        return None
    return sum(num_measured(r["samples"] + len(r["exclusions"])) + r["also_decoded"] for r in records)


def is_finished(names: set[str], shard_name: str) -> bool:
    """Whether a shard was written and is still there; one that was removed since is written again.

    names: what is in the target.
    """
    return {record_name(shard_name), shard_name, f"{shard_name}.index"} <= names


def _what_is_missing(where: str, plan: BuildPlan, names: set[str], missing: Sequence[int]) -> str:
    marks = [mark for mark in map(_MARK.fullmatch, names) if mark]
    ways = {int(mark[2]) for mark in marks}
    parts = ""
    if len(ways) == 1:
        of = ways.pop()
        numbers = sorted({shard % of + 1 for shard in missing})
        parts = f", of part{'s' * (len(numbers) > 1)} {', '.join(f'{number}/{of}' for number in numbers)}"
    shown = ", ".join(map(str, missing[:10])) + ", ..." * (len(missing) > 10)
    return (
        f"{where}: {plan.num_shards} shards expected, {len(missing)} missing{parts}: {shown}; run those parts again, "
        "or the same build without --part"
    )


def raw_digest_of_record(target: Target, name: str) -> str:
    """Of the raw images that a shard was made from.  name: the record's, as of `record_name`."""
    return str(_record(target, name, target.read(name))["raw_digest"])


def _records(target: Target, plan: BuildPlan) -> list[dict[str, Any]]:
    names = [record_name(plan.shard_name(shard)) for shard in range(plan.num_shards)]
    return [_record(target, name, data) for name, data in zip(names, target.read_all(names), strict=True)]


def _record(target: Target, name: str, data: bytes) -> dict[str, Any]:
    try:
        return _Record.model_validate_json(data).model_dump()
    except ValidationError as error:
        raise BuildMismatch(
            f"{target.where}/{name}: not the record that was written ({first_problem(error)}); remove it and run "
            "the same build again"
        ) from error


def _manifest_of(plan: BuildPlan, records: Sequence[dict[str, Any]]) -> Manifest:
    remarks: Counter[str] = Counter()
    for record in records:
        remarks.update(record["remarks"])
    raw_digest = hashlib.blake2b("".join(r["raw_digest"] for r in records).encode(), digest_size=16)
    return Manifest(
        source=plan.source,
        split=plan.split,
        class_names=plan.class_names,
        class_groups=plan.class_groups,
        notes=[*plan.notes, *notes_of(remarks)],
        members=plan.members.extensions(),
        shard_names=shard_pattern(plan.source, plan.split),
        shard_samples=np.array([r["samples"] for r in records], dtype=np.int64),
        shard_bytes=np.array([r["bytes"] for r in records], dtype=np.int64),
        shard_sha256=[r["sha256"] for r in records],
        index_sha256=[r["index_sha256"] for r in records],
        keys_digest=[r["keys_digest"] for r in records],
        encoder=plan.encoder,
        settings={
            **plan.settings,
            "samples_per_shard": plan.samples_per_shard,
            "seed": plan.seed,
            "list_samples": plan.num_samples,
            "list_excluded": len(plan.excluded),
        },
        provenance={
            "input_digest": plan.input_digest,
            "raw_digest": raw_digest.hexdigest(),
            **plan.provenance,
        },
        exclusions=[*plan.excluded, *plan.left_out, *(exclusion for r in records for exclusion in r["exclusions"])],
        renamed=plan.renamed,
        statistics=add_statistics([r["statistics"] for r in records]),
    )
