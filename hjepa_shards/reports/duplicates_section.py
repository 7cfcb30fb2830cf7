"""Duplicates of images for a page: what `hjepa-shards duplicates --report` wrote, read and shown with its images."""

import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from hjepa_shards.config import first_problem
from hjepa_shards.errors import InputError
from hjepa_shards.reports.inline_images import Budget
from hjepa_shards.reports.split_survey import Survey
from hjepa_shards.shards.class_names import one_name
from hjepa_shards.shards.manifest import Manifest

_GROUPS, _IMAGES_A_GROUP = 24, 6


class _Copy(BaseModel):
    """One sample of a group, as `hjepa-shards duplicates --report` writes it."""

    source: str
    split: str
    index: int = Field(ge=0)
    key: str | None = None
    label: int = -1
    class_name: str | None = None
    excluded: bool = False

    @property
    def split_name(self) -> str:
        return f"{self.source}-{self.split}"


class _Group(BaseModel):
    kind: str
    leak: bool = False
    """Between training and held-out images."""
    samples: tuple[_Copy, ...]

    @property
    def disagrees(self) -> bool:
        """Duplicates of other classes: of one source, where a name means the same. Numbers meet numbers only."""
        classes: dict[tuple[str, bool], set[str | int]] = {}
        for copy in self.samples:
            if copy.label >= 0:
                named = copy.class_name is not None
                of_source = classes.setdefault((copy.source, named), set())
                of_source.add(copy.label if copy.class_name is None else one_name(copy.class_name))
        return any(len(of_source) > 1 for of_source in classes.values())


class _Relation(BaseModel):
    """How many images of two splits (or of one) are in the other too."""

    first: str
    second: str
    leak: bool
    images: dict[str, tuple[int, int]]


class _Counts(BaseModel):
    samples: int
    groups: int
    leaking_groups: int
    excluded: int
    relations: tuple[_Relation, ...]


class Copies(BaseModel):
    groups: tuple[_Group, ...]
    counts: _Counts
    remarks: tuple[str, ...] = ()


def read_copies(path: Path) -> Copies:
    try:
        return Copies.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except ValidationError as error:
        raise InputError(
            f"{path}: what `hjepa-shards duplicates --report` writes expected; {first_problem(error)}"
        ) from error


def copies_section(duplicates: Copies, found: Mapping[str, tuple[Path, Manifest]], budget: Budget) -> dict[str, Any]:
    """The counts, and some groups with their images."""
    for copy in (copy for group in duplicates.groups for copy in group.samples):
        names = found[copy.split_name][1].class_names if copy.split_name in found else ()
        if copy.class_name is None and 0 <= copy.label < len(names):  # written by an earlier version
            copy.class_name = names[copy.label]
    groups = []
    with contextlib.ExitStack() as stack:
        surveys: dict[str, Survey] = {}
        for group in _most_telling(duplicates.groups)[:_GROUPS]:
            pictures = []
            for copy in group.samples[:_IMAGES_A_GROUP]:
                if copy.split_name not in found or copy.index >= found[copy.split_name][1].num_samples:
                    continue
                if copy.split_name not in surveys:
                    surveys[copy.split_name] = stack.enter_context(Survey(*found[copy.split_name]))
                names = found[copy.split_name][1].class_names
                if picture := budget.shown(surveys[copy.split_name].show(copy.index), names):
                    pictures.append(replace(picture, title=f"{copy.split_name} · {picture.title}"))
            groups.append({"group": group, "pictures": pictures})
    kinds = dict.fromkeys(kind for relation in duplicates.counts.relations for kind in relation.images)
    return {
        "counts": duplicates.counts,
        "remarks": duplicates.remarks,
        "disagreements": sum(group.disagrees for group in duplicates.groups),
        "kinds": list(kinds),
        "relations": [_relation(relation, list(kinds)) for relation in duplicates.counts.relations],
        "groups": groups,
    }


def _most_telling(groups: Sequence[_Group]) -> list[_Group]:
    """Leaks before others, and among them the splits in turns, so that no large one hides the rest."""
    turns: Counter[frozenset[str]] = Counter()
    ranked = []
    for group in sorted(groups, key=lambda group: (group.kind != "exact", not group.disagrees)):
        split_names = frozenset(copy.split_name for copy in group.samples)
        turns[split_names] += 1
        ranked.append((not group.leak, turns[split_names], group))
    return [group for *_, group in sorted(ranked, key=lambda entry: entry[:2])]


def _relation(relation: _Relation, kinds: list[str]) -> dict[str, Any]:
    """Said of the held-out split where there is a leak, otherwise of the one whose duplicates would go."""
    side = 0 if relation.leak else 1
    names = (relation.first, relation.second)
    numbers = [relation.images[kind][side] if kind in relation.images else 0 for kind in kinds]
    return {
        "of": names[side],
        "within": names[1 - side] if names[0] != names[1] else "itself",
        "leak": relation.leak,
        "numbers": [*numbers, sum(numbers)],
    }
