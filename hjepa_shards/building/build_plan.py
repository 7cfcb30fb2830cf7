"""What is to be built, fixed in `.journal/plan.json` before any task runs.

    list, sorted -> without the excluded -> shuffled under the build's seed -> slices of `samples_per_shard`;
    slice j is shard j

The plan holds all of a manifest that is known before an image is encoded; so the manifest follows from plan and records
alone, on a machine that never saw the raw data. The first process writes the plan; each later one (a build that
continues, another part, a repair) compares, and is refused by name where settings, input or encoder differ.
"""

import contextlib
import dataclasses
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, final

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from hjepa_shards.base.keyed_random import derive_key
from hjepa_shards.building.build_rules import RULES, require_rules
from hjepa_shards.building.sample_list import Listing, Shuffled, in_order
from hjepa_shards.building.shard_columns import Slice
from hjepa_shards.building.shard_writer import Members
from hjepa_shards.config import first_problem, flatten, parse
from hjepa_shards.errors import BuildMismatch, DecodeError, InputError
from hjepa_shards.images.encode import EXTENSIONS, EncodeSettings, encode, encoder_identity
from hjepa_shards.shards.manifest import shard_pattern
from hjepa_shards.shards.raw_sample import extension_of
from hjepa_shards.shards.tar import member_bytes
from hjepa_shards.sources.base import RawSplit
from hjepa_shards.storage.build_output import JOURNAL, Target

PLAN = f"{JOURNAL}/plan.json"
_PROBED_SAMPLES = 256
_JPEG: dict[str, str] = dict.fromkeys(("jpeg", "jfif", "jpe"), "jpg")


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class BuildPlan:
    """The content of plan.json."""

    source: str
    split: str
    settings: Mapping[str, Any]
    """How pixels are stored; and `image`, the member that was chosen as each sample's image, if one was."""
    encoder: Mapping[str, Any]
    seed: int
    """Of the shuffle that decides which sample goes into which shard."""
    input_digest: str
    num_samples: int
    """Of the list that is cut into shards."""
    samples_per_shard: Annotated[int, Field(ge=1)]
    excluded: Sequence[Mapping[str, Any]]
    """Samples excluded on request, before the list was cut: name, index, reason."""
    members: Members
    class_names: Sequence[str]
    class_groups: Sequence[str]
    notes: Sequence[str]
    provenance: Mapping[str, str]
    renamed: Mapping[str, Sequence[Any]]
    left_out: Sequence[Mapping[str, Any]] = ()
    """Raw data that gave no sample, such as lines of a list: name, index, reason."""
    rules: int = 1
    """By which raw data is read (`build_rules.py`)."""

    @property
    def num_shards(self) -> int:
        return -(-self.num_samples // self.samples_per_shard)

    def shard_name(self, shard: int) -> str:
        return shard_pattern(self.source, self.split) % shard

    def encode_settings(self) -> EncodeSettings:
        """InputError for settings that no build has written."""
        settings = {key: self.settings[key] for key in self.settings if key != "image"}
        return parse(EncodeSettings, settings, f"{self.source} {self.split}: settings of the build")


_PLANS = TypeAdapter(BuildPlan)


@final
@dataclass(frozen=True, slots=True)
class RawList:
    """A raw split, its samples in order, and what was excluded from them on request."""

    raw: RawSplit
    listing: Listing
    excluded: Sequence[Mapping[str, Any]]
    notes: Sequence[str]
    left_out: Sequence[Mapping[str, Any]]

    def digest(self) -> str:
        return self.listing.digest(self.raw.class_names)

    def without(self, reasons: Mapping[int, str]) -> "RawList":
        """Without the samples at some indices; reasons: why, by index."""
        excluded = []
        for index in sorted(reasons):
            sample = self.listing[index]
            excluded.append({"name": sample.name, "index": sample.index, "reason": reasons[index]})
        return replace(self, listing=self.listing.without(reasons), excluded=excluded)

    def thinned(self, num_samples: int) -> "RawList":
        """This many, drawn over the whole list and still in its order: the first ones may all be of one class."""
        if num_samples >= len(self.listing):
            return self
        return replace(self, listing=self.listing.drawn(derive_key(0, "limit"), num_samples))


def take_list(raw: RawSplit) -> RawList:
    """The sorted list of a raw split, which forgets its own."""
    samples, notes, left_out = raw.samples, raw.notes, raw.left_out
    raw.forget_list()
    return RawList(raw, in_order(samples), (), notes, left_out)


def shuffled(plan: BuildPlan, listing: Listing) -> Shuffled:
    """The list in the order in which it is cut into shards."""
    return Shuffled(listing, derive_key(plan.seed, "build", plan.source, plan.split))


def slice_of(plan: BuildPlan, order: Shuffled, shard: int) -> Slice:
    """The samples of one shard, in order."""
    start = shard * plan.samples_per_shard
    return order.slice(start, start + plan.samples_per_shard)


def fix_plan(
    target: Target,
    source: str,
    split: str,
    listed: RawList,
    settings: EncodeSettings,
    *,
    raw_source: str,
    seed: int,
    samples_per_shard: int | None,
    shard_bytes: int,
) -> BuildPlan:
    """The plan of `target`: the one that is there, compared with what is requested, or a new one.

    source: the name to build under.  raw_source: the one that opened the raw data, mostly the same.
    samples_per_shard: None lets a new plan choose it, for shards of about `shard_bytes`.
    """
    requested: dict[str, Any] = {
        "source": source,
        "split": split,
        "settings": settings.model_dump() | ({"image": listed.raw.image} if listed.raw.image else {}),
        "encoder": encoder_identity(settings),
        "seed": seed,
        "input_digest": listed.digest(),
        "num_samples": len(listed.listing),
        "excluded": list(listed.excluded),
    }
    if samples_per_shard is not None:
        requested["samples_per_shard"] = samples_per_shard
    found = read_plan(target)
    if found is None:
        names = target.names()
        if PLAN not in names and any(name.endswith(".tar") for name in names):
            raise BuildMismatch(f"{target.where}: holds tars but no build journal; build into another folder")
        if samples_per_shard is None:
            requested["samples_per_shard"] = _samples_per_shard(listed, settings, shard_bytes)
        plan = _new_plan(listed, settings, requested, raw_source)
        if target.create(PLAN, _packed(plan)):
            return plan
        found = read_plan(target)  # another part was faster
        assert found is not None
    if different := differences(dataclasses.asdict(found), requested):
        require_rules(found.rules, target.where)
        raise BuildMismatch(
            f"{target.where}: holds a build made otherwise ({different}); build under another --name or --out, or "
            "remove this one to start again"
        )
    return found


def read_plan(target: Target) -> BuildPlan | None:
    """The plan that is in `target`, if any."""
    try:
        data = target.read(PLAN)
    except FileNotFoundError:
        return None
    try:
        return _PLANS.validate_json(data, strict=True)
    except ValidationError as error:
        raise BuildMismatch(
            f"{target.where}/{PLAN}: not a plan that this hjepa-shards wrote ({first_problem(error)}); remove "
            f"{target.where} to start again"
        ) from error


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Whatever is in `now` and was otherwise before, named; '' where nothing is."""
    was, now = flatten(before), flatten(now)
    different = [key for key, value in now.items() if was.get(key) != value]
    if "num_samples" in different:  # which says more than the digest of the same list
        different.remove("input_digest")
    return "; ".join(f"{key}: {_shown(was.get(key))} before, {_shown(now[key])} now" for key in different)


def _new_plan(listed: RawList, settings: EncodeSettings, requested: Mapping[str, Any], raw_source: str) -> BuildPlan:
    raw, listing = listed.raw, listed.listing
    members = Members(
        image=_image_extension(listing.names(), settings),
        labels=listing.has_labels(),
        captions=listing.has_captions(),
    )
    plan = BuildPlan(
        **requested,
        rules=RULES,
        members=members,
        class_names=raw.class_names,
        class_groups=raw.class_groups,
        notes=listed.notes,
        left_out=listed.left_out,
        provenance=raw.provenance.as_dict() | ({"raw_source": raw_source} if raw_source != requested["source"] else {}),
        renamed=listing.renamed(),
    )
    return _PLANS.validate_json(_packed(plan), strict=True)  # as it will be read


def _packed(plan: BuildPlan) -> bytes:
    content = dataclasses.asdict(plan)
    if not content["left_out"]:
        del content["left_out"]
    return json.dumps(content, sort_keys=True, indent=1).encode()


def _shown(value: Any) -> str:
    return f"{len(value)} samples" if isinstance(value, list) else str(value)


def _samples_per_shard(listed: RawList, settings: EncodeSettings, shard_bytes: int) -> int:
    """Aimed bytes / mean bytes in a tar of the first samples of the list, rounded to a multiple of 256."""
    probed = range(min(len(listed.listing), _PROBED_SAMPLES))
    sizes = []
    for i in probed:
        sample = listed.listing[i]
        with contextlib.suppress(DecodeError):
            image = encode(listed.raw.read(sample), settings).data
            texts = (b"0",) * (sample.label >= 0) + tuple(text.encode() for text in sample.captions)
            sizes.append(sum(member_bytes(len(data)) for data in (image, *texts)))
    if not sizes:
        raise InputError(
            f"{listed.listing[0].name}: an image expected, neither it nor any of the first {len(probed)} "
            "files can be decoded; is this a folder of images?"
        )
    return max(256, round(shard_bytes / float(np.mean(sizes)) / 256) * 256)


def _image_extension(names: Iterable[str], settings: EncodeSettings) -> str:
    """One extension for a whole split; `keep` takes the commonest (readers go by magic bytes)."""
    if settings.pixels != "keep":
        return "jpg" if settings.pixels == "jpeg" else "png"
    stored = Counter(_JPEG.get(extension := extension_of(name), extension) for name in names)
    known = {extension: stored[extension] for extension in EXTENSIONS.values()}
    commonest = max(known, key=lambda extension: known[extension])
    return commonest if known[commonest] else "png"
