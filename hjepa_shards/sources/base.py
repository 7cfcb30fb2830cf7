"""What every source of raw images offers: a split that lists its samples and reads one.

A source module opens its raw data as a `RawSplit` and describes itself as a `Source`; `registry.py` has
them all in one literal. Listing and reading are apart because they happen in different processes: the builder
lists once, workers read. So a split travels as its settings and loads again what it needs on arrival.
"""

import os
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, final

import numpy as np

from hjepa_shards.errors import InputError
from hjepa_shards.shards.raw_sample import RawSample
from hjepa_shards.shards.sample_table import SampleTable

_MAX_LEFT_OUT = 10_000


@dataclass(frozen=True, kw_only=True, slots=True)
class Provenance:
    """Where the images come from and under which terms; goes into the manifest."""

    upstream: str
    licence: str
    citation: str

    def as_dict(self) -> dict[str, str]:
        return {"upstream": self.upstream, "licence": self.licence, "citation": self.citation}


class RawSplit(ABC):
    """One split of a raw dataset, opened.

    Whatever a subclass loads is in a `cached_property`: these are not pickled with a split.
    """

    class_names: tuple[str, ...]
    """One name a label; empty where there are no labels."""
    class_groups: tuple[str, ...] = ()
    """The wider group of each class (CIFAR-100's coarse labels); empty where there are none."""
    provenance: Provenance
    image: str = ""
    """The member of each sample that is its image, where one was chosen."""

    def prepare(self, scratch: Path) -> None:  # noqa: B027 (most sources have nothing to prepare)
        """Called once, before the samples are listed: what must be unpacked or fetched first goes below `scratch`.

        The builder keeps that folder over a kill and removes it when the split is built.
        """

    def choose_image(self, member: str) -> None:
        """Called once, before the samples are listed, with the member of each sample that is its image.

        InputError where a sample has one image, or no such member can be meant.
        """
        raise InputError(f"--image {member}: only samples of third-party tars have several members; leave it out")

    @cached_property
    def samples(self) -> SampleTable:
        """Every sample, in any order; (name, index) is unique."""
        return SampleTable(self.list_samples())

    @abstractmethod
    def list_samples(self) -> Iterable[RawSample]:
        """What `samples` keeps, one after another."""

    def forget_list(self) -> None:
        """Called when the list was taken: what nothing but `samples` and `notes` need may go."""
        vars(self).pop("samples", None)

    @abstractmethod
    def read(self, sample: RawSample) -> bytes | np.ndarray:
        """The encoded image as it is on disk, or pixels: uint8, [H, W, 3] RGB or [H, W] gray.

        DecodeError where the raw data has this sample but no image for it: it is excluded by name, with that reason.
        """

    def files_of(self, samples: Iterable[RawSample]) -> Iterator[Path]:
        """The files of this machine that decide what some samples are: lists, containers, an image each; none: unknown.

        samples: some of its own. A file may come twice, and need not be there.
        """
        return iter(())

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know about this raw data, such as empty classes; a line each."""
        return ()

    @property
    def left_out(self) -> Sequence[Mapping[str, Any]]:
        """Raw data that gave no sample, such as lines of a list: name, index, reason, as an exclusion has them."""
        return ()

    def __getstate__(self) -> dict[str, Any]:
        return {
            name: value
            for name, value in self.__dict__.items()
            if not isinstance(getattr(type(self), name, None), cached_property)
        }


@final
class Remarks:
    """Oddities of raw data, counted by kind, for `RawSplit.notes`; and what is left out, for `RawSplit.left_out`."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._first: dict[str, str] = {}
        self.left_out: list[dict[str, Any]] = []

    def add(self, kind: str, where: str) -> None:
        self._counts[kind] += 1
        self._first.setdefault(kind, where)

    def leave_out(self, name: str, reason: str) -> None:
        """Raw data that gives no sample, though it may have been meant for one. The first few thousand are named."""
        if len(self.left_out) < _MAX_LEFT_OUT:
            self.left_out.append({"name": name, "index": 0, "reason": reason})

    def lines(self) -> tuple[str, ...]:
        """A line a kind: how many, and where the first is."""
        return tuple(f"{count:,} {kind}; the first: {self._first[kind]}" for kind, count in self._counts.items())


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A kind of raw data that can be built: what `hjepa-shards sources` shows, and how to open it."""

    name: str
    description: str
    layout: str
    """What is under the raw folder; '' where no raw data is needed."""
    classes: str
    images: str
    """Images by split, for people."""
    download: Literal["yes", "manual", "no need"]
    splits: tuple[str, ...]
    """Those that the raw data may have; the user who made it named them where `names_splits`."""
    names_splits: bool = False
    """Any split may be requested: `splits` holds the usual ones."""
    default_splits: tuple[str, ...]
    """What is built when no split is named."""
    find_splits: Callable[[Path], tuple[str, ...]] | None = None
    """The same where it depends on what is in the raw folder; nothing found: the default ones."""
    pixels: Literal["png", "keep", "jpeg"]
    """How images are stored when nothing else is requested; jpeg: with shorter side 256, quality 90."""
    takes_classes: bool = False
    """A class list (`--classes FILE`) chooses and orders the classes."""
    open: Callable[[Path | None, str, Path | None], RawSplit]
    """(raw folder, split, class list) -> split. Call it through `open_split`, which checks the three."""
    open_pattern: Callable[[str, str, Path | None], RawSplit] | None = None
    """The same for a brace pattern or URLs (`--raw 'dir/train-{000..012}.tar'`); None: a folder only."""
    open_unlabelled: Callable[[Path | None, str], RawSplit] | None = None
    """(raw folder, split) -> split, of every image in any tree, without labels (`--no-classes`); None: cannot be."""
    open_list: Callable[[Path | None, str, Path], RawSplit] | None = None
    """(folder of the images, split, `--list FILE` that names them) -> split; None: no list can be given."""


def raw_folder(raw: Path | None, inner: tuple[str, ...], needed: tuple[str, ...], advice: str) -> Path:
    """The folder that holds everything of `needed`: `raw` itself, or one of the folders `inner` in it.

    InputError with what was looked for, what is there and `advice`, if there is none.
    """
    if raw is None:
        raise InputError(f"--raw: the folder of the raw data expected, nothing given; {advice}")
    if not os.path.exists(raw):
        raise InputError(f"{raw}: no such folder; {advice}")
    for folder in (raw, *(raw / name for name in inner)):
        if all(os.path.exists(folder / name) for name in needed):
            return folder
    nearest = next((raw / name for name in inner if os.path.isdir(raw / name)), raw)
    missing = [name for name in needed if not os.path.exists(nearest / name)]
    raise InputError(f"{nearest}: {', '.join(missing)} expected, {_shown(nearest)} found; {advice}")


def _shown(folder: Path, most: int = 8) -> str:
    """The first names in a folder, as part of an error."""
    try:
        names = sorted(entry.name for entry in folder.iterdir())
    except FileNotFoundError:
        return "no such folder"
    except OSError as error:
        return error.strerror or "an unreadable folder"
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) + more) or "an empty folder"
