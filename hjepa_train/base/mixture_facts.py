"""What objectives may know of their data: the mixture's entries, their class names, and whether there are captions.

It stands in the run's folder (facts.json), so that a run is evaluated and exported where its shards are gone. Labels of
several entries meet by class name only: 3 of one source and 3 of another are two classes, `cat` of both is one.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from json import dumps
from pathlib import Path
from typing import Annotated, final

from pydantic import Field, TypeAdapter, ValidationError

from hjepa_shards import Mixture
from hjepa_shards.base.atomic_files import write_atomically
from hjepa_shards.base.regular_files import read_regular
from hjepa_shards.config import first_problem
from hjepa_shards.errors import InputError

FILE = "facts.json"
"""In a run's folder."""
_MOST_BYTES = 1 << 26
_Name = Annotated[str, Field(max_length=4096)]


@final
@dataclass(frozen=True, kw_only=True)
class EntryFacts:
    """One entry of the mixture."""

    name: _Name
    class_names: tuple[_Name, ...]
    """Of its labels, by number; none where they are not known, or where there are no labels."""
    has_labels: bool
    has_captions: bool


@final
@dataclass(frozen=True, kw_only=True)
class Facts:
    """The mixture's, in the order of `Batch.entry_B`."""

    entries: tuple[EntryFacts, ...] = ()

    @cached_property
    def class_names(self) -> tuple[str, ...]:
        """All classes of all entries, each once, in the order in which entries name them."""
        return tuple(dict.fromkeys(one_name(name) for entry in self.entries for name in entry.class_names))

    def numbers(self) -> list[list[int]]:
        """For each entry, what its labels 0, 1, ... are among `class_names`."""
        return [numbers_among(self.class_names, entry.class_names) for entry in self.entries]


NO_FACTS = Facts()
_FACTS = TypeAdapter(Facts)


def facts_of(mixture: Mixture) -> Facts:
    """Of a mixture as it is built; an entry that is not built yet has no classes."""
    return Facts(
        entries=tuple(
            EntryFacts(
                name=entry.name,
                class_names=tuple(manifest.class_names),
                has_labels="cls" in manifest.members,
                has_captions="txt" in manifest.members,
            )
            for entry, manifest in zip(mixture.entries, mixture.manifests, strict=True)
        )
    )


def one_name(name: str) -> str:
    """A class name in Unicode's composed form, in which names are compared."""
    return unicodedata.normalize("NFC", name)


def numbers_among(known: Sequence[str], names: Sequence[str], unknown: int = -1) -> list[int]:
    """The number of each name among known ones.  unknown: of those that are not among them."""
    number_of: dict[str, int] = {}
    for number, name in enumerate(known):
        number_of.setdefault(one_name(name), number)
    return [number_of.get(one_name(name), unknown) for name in names]


def write_facts(folder: Path, facts: Facts) -> None:
    """Into a run's folder."""
    write_atomically(folder / FILE, (dumps(asdict(facts), ensure_ascii=False) + "\n").encode())


def read_facts(folder: Path) -> Facts | None:
    """Of the run in `folder`; None where it is from before they were kept. InputError where the file holds none."""
    try:
        return _FACTS.validate_json(read_regular(folder / FILE, _MOST_BYTES), strict=True)
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise InputError(
            f"{folder / FILE}: entries with their class names, as a run wrote them, expected: {first_problem(error)}; "
            "put a copy of the file back, or remove it where the shards are still there"
        ) from error
