"""What `manifest.json` may hold: a manifest comes from anybody, and its fields name files, sizes and memory.

Digests become names in a cache, shard names are joined to folders and URLs, counts decide what is allocated, texts are
printed. So each has its type and range here, and what is said twice agrees. Keys that are not known are left alone: a
later version may write them.
"""

import json
import math
from collections.abc import Iterable
from typing import Annotated, Any, Self, TypeVar

from pydantic import BaseModel, Field, ValidationError, model_validator

from hjepa_shards.config import first_problem

MOST_BYTES = 1 << 29
"""Of the file: some five million shards, or as many excluded samples."""
_MOST_IN_ALL = 2**62
"""Samples and bytes of a split, so that no sum of them overflows."""
_MOST_DEPTH = 8
"""Of settings and the like within each other."""

_Facts = TypeVar("_Facts", bound=BaseModel)
Count = Annotated[int, Field(ge=0, lt=2**48)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
KeysDigest = Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
_Name = Annotated[str, Field(pattern=r"^[^/\x00-\x1f\x7f]*$", max_length=255)]
_FileName = Annotated[str, Field(pattern=r"^[^/%\x00-\x1f\x7f]+\.tar$", max_length=255)]
_Extension = Annotated[str, Field(pattern=r"^[a-z0-9]{1,16}$")]
_ClassName = Annotated[str, Field(max_length=4096)]
_Text = Annotated[str, Field(max_length=1 << 16)]


class Columns(BaseModel, strict=True):
    """The shards, as they are in the file: a pattern or names, and columns of one length."""

    pattern: Annotated[str, Field(pattern=r"^[^/%\x00-\x1f\x7f]*%06d[^/%\x00-\x1f\x7f]*\.tar$", max_length=255)] | None
    names: list[_FileName] | None
    samples: list[Count]
    bytes: list[Count]
    sha256: list[Sha256]
    index_sha256: list[Sha256]
    keys_digest: list[KeysDigest]

    @model_validator(mode="before")
    @classmethod
    def _one_of_two(cls, content: Any) -> Any:
        return {"pattern": None, "names": None, **content} if isinstance(content, dict) else content

    @model_validator(mode="after")
    def _columns_agree(self) -> Self:
        columns = [self.bytes, self.sha256, self.index_sha256, self.keys_digest]
        if (self.pattern is None) == (self.names is None):
            raise ValueError("a pattern or names expected")
        if self.names is not None:
            columns.append(self.names)
            if len(set(self.names)) < len(self.names):
                raise ValueError("a name for each shard expected, one that occurs twice found")
        if any(len(column) != len(self.samples) for column in columns):
            raise ValueError("columns of one length expected")
        if max(sum(self.samples), sum(self.bytes)) >= _MOST_IN_ALL:
            raise ValueError(f"fewer than {_MOST_IN_ALL:,} samples and bytes in all expected")
        if any(samples * 512 > size for samples, size in zip(self.samples, self.bytes, strict=True)):
            raise ValueError("for each sample a tar header of 512 bytes expected, shards with fewer bytes found")
        return self


class _Statistics(BaseModel, strict=True):
    """Those that are used; a part of them may be missing."""

    images: Count | None = None
    width: Annotated[list[Count], Field(min_length=3, max_length=3)] | None = None
    height: Annotated[list[Count], Field(min_length=3, max_length=3)] | None = None
    channel_moments: (
        Annotated[
            list[Annotated[list[Annotated[int, Field(ge=0, lt=2**63)]], Field(min_length=3, max_length=3)]],
            Field(min_length=3, max_length=3),
        ]
        | None
    ) = None


class _Settings(BaseModel, strict=True):
    """Those that are used; third-party tars have none of them."""

    samples_per_shard: Annotated[int, Field(ge=1)] | None = None
    seed: int | None = None
    list_samples: Count | None = None
    list_excluded: Count | None = None


class _Provenance(BaseModel, strict=True):
    raw_source: _Name | None = None
    input_digest: _Text | None = None
    upstream: _Text | None = None
    licence: _Text | None = None
    citation: _Text | None = None


class Content(BaseModel, strict=True):
    """The file."""

    source: _Name
    split: _Name
    num_samples: int
    num_shards: int
    num_bytes: int
    class_names: list[_ClassName]
    class_groups: list[_ClassName]
    notes: list[_Text]
    members: list[_Extension] = Field(min_length=1)
    shards: Columns
    encoder: dict[str, Any] | None
    settings: dict[str, Any]
    provenance: dict[str, Any]
    exclusions: list[dict[str, Any]]
    renamed: dict[str, list[Any]]
    statistics: dict[str, Any]

    @model_validator(mode="after")
    def _totals_agree(self) -> Self:
        shards = self.shards
        said = self.num_shards, self.num_samples, self.num_bytes
        found = len(shards.samples), sum(shards.samples), sum(shards.bytes)
        if said != found:
            raise ValueError(f"shards, samples and bytes in all {found} expected, {said} found")
        return self

    @model_validator(mode="after")
    def _facts_are_plain(self) -> Self:
        for name in ("encoder", "settings", "provenance", "statistics"):
            if not _is_plain(getattr(self, name), _MOST_DEPTH):
                raise ValueError(f"{name}: texts and finite numbers, at most {_MOST_DEPTH} deep, expected")
        _checked(_Statistics, "statistics", self.statistics)
        _checked(_Provenance, "provenance", self.provenance)
        settings = _checked(_Settings, "settings", self.settings)
        if settings.list_excluded is not None and settings.list_excluded > len(self.exclusions):
            raise ValueError(f"settings: list_excluded of at most {len(self.exclusions)} exclusions expected")
        return self

    @model_validator(mode="after")
    def _samples_are_named(self) -> Self:
        for one in self.exclusions:
            if not (_are_named([[one.get("name"), one.get("index")]]) and isinstance(one.get("reason"), str)):
                raise ValueError("exclusions: name, index and reason of each expected")
        if not _are_named(self.renamed.values()):
            raise ValueError("renamed: a name and an index for each key expected")
        return self


def parse_json(data: bytes) -> dict[str, Any]:
    """An object in JSON. ValueError where it is none, where it is nested too deeply, and for NaN and infinities."""
    try:
        content = json.loads(data, parse_constant=_no_number)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError("not an object")
    return content


def _checked(model: type[_Facts], name: str, facts: dict[str, Any]) -> _Facts:
    """What is used of some facts, on one line where it is wrong."""
    try:
        return model.model_validate(facts)
    except ValidationError as error:
        raise ValueError(f"{name}.{first_problem(error)}") from error


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number in JSON")


def _are_named(samples: Iterable[list[Any]]) -> bool:
    """Whether each is a name and an index."""
    return all(
        len(one) == 2 and isinstance(one[0], str) and type(one[1]) is int and 0 <= one[1] < 2**63 for one in samples
    )


def _is_plain(value: Any, depth: int) -> bool:
    if isinstance(value, dict):
        return depth > 0 and all(_is_plain(inner, depth - 1) for inner in value.values())
    if isinstance(value, list):
        return depth > 0 and all(_is_plain(inner, depth - 1) for inner in value)
    return not isinstance(value, float) or math.isfinite(value)
