"""Which pictures are there more than once: in a split, across sources, and (leaks) in training and held-out data?

    exact      the same pixels
    near       the same picture after other processing: size, compression, colours, a small shift (perceptual_hash.py)
    mirrored   near its mirror image

Splits are put in order of precedence, held-out ones (val, test) first and then as they were given; the first duplicate
in that order stays. A sample is excluded if it is a duplicate of one that stays, never because of a chain of others.
Held-out samples are never excluded: a benchmark stays the one that others report on.
"""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, final

import numpy as np
from numpy.typing import NDArray

from hjepa_shards.base.atomic_files import write_atomically
from hjepa_shards.duplicates.fingerprints import Fingerprints, Split, fingerprints_of, open_splits
from hjepa_shards.duplicates.hamming_pairs import MAX_DISTANCE, near_pairs
from hjepa_shards.duplicates.perceptual_hash import MIRROR, show_the_mirrored, show_the_same
from hjepa_shards.errors import InputError
from hjepa_shards.shards.exclusions import write_exclusions
from hjepa_shards.shards.sample_keys import keys_of
from hjepa_shards.shards.sidecar import Sidecar

DEFAULT_NEAR = 11
"""Bits of the hash: as many as cost no more than 8 do (hamming_pairs.py)."""
HELD_OUT = ("val", "test", "dev", "eval")
"""How the names of held-out splits begin."""

Kind = Literal["exact", "near", "mirrored"]
KINDS: tuple[Kind, ...] = ("exact", "near", "mirrored")
_CONFIRMED_AT_ONCE = 2048

Start = Callable[[str], Callable[[int, int], None]]
"""Begins a stretch of work by its name; gives what to call with (done, in all)."""


@dataclass(frozen=True, slots=True)
class Copy:
    """A sample of a group of duplicates."""

    source: str
    split: str
    index: int
    """In manifest order."""
    key: str | None
    """As in the manifest and the tar; None where the tar no longer has it."""
    label: int
    class_name: str | None
    """Of the label, in its own split; None where that has no names. Numbers of two splits may mean other classes."""
    kind: Literal["first", "exact", "near", "mirrored"]
    """What it is of the other sample in the group that it is most alike; "first" for the first of them."""
    distance: int
    """Bits between their hashes."""
    excluded: bool


@dataclass(frozen=True, slots=True)
class Group:
    """Samples that are duplicates of one another, in order of precedence."""

    kind: Kind
    """The loosest among them: exact if all have the same pixels."""
    leak: bool
    """Held-out and other samples are among them."""
    samples: tuple[Copy, ...]


@dataclass(frozen=True, slots=True)
class Relation:
    """How many images of two splits (or of one) are in the other too."""

    first: str
    """source/split; stays."""
    second: str
    leak: bool
    images: dict[Kind, tuple[int, int]]
    """Of the first and of the second, each image counted once, as the strictest kind that it is."""

    @property
    def totals(self) -> tuple[int, int]:
        return sum(a for a, _ in self.images.values()), sum(b for _, b in self.images.values())


@dataclass(frozen=True, slots=True)
class Duplicates:
    """What was found."""

    groups: tuple[Group, ...]
    """Leaks first."""
    relations: tuple[Relation, ...]
    """Leaks first."""
    exclusions: tuple[dict[str, str], ...]
    """source, split, key, reason: a line each of the list that `build --exclude` takes."""
    samples_of: dict[str, int]
    """Images of each source/split that was looked at."""
    remarks: tuple[str, ...]

    @property
    def num_samples(self) -> int:
        return sum(self.samples_of.values())

    def counts(self) -> dict[str, Any]:
        return {
            "samples": self.num_samples,
            "groups": len(self.groups),
            "leaking_groups": sum(group.leak for group in self.groups),
            "excluded": len(self.exclusions),
            **{kind: sum(group.kind == kind for group in self.groups) for kind in KINDS},
            "relations": [asdict(relation) for relation in self.relations],
        }

    def save_exclusions(self, path: Path) -> None:
        """JSON lines, one object a sample: {"source", "split", "key", "reason"}."""
        write_exclusions(path, self.exclusions)

    def save_report(self, path: Path) -> None:
        """One JSON object; leaks come first in both lists.

        {"groups": [{"kind": "exact" | "near" | "mirrored", "leak": bool, "samples": [{"source", "split", "index",
                     "key": str | null, "label", "class_name": str | null, "kind": "first" | "exact" | "near" |
                     "mirrored", "distance", "excluded": bool}, ...]}, ...],
         "counts": {"samples", "groups", "leaking_groups", "excluded", "exact", "near", "mirrored" (groups),
                    "relations": [{"first", "second", "leak", "images": {kind: [of the first, of the second]}}, ...]},
         "remarks": [str, ...]}
        """
        content = {
            "groups": [asdict(group) for group in self.groups],
            "counts": self.counts(),
            "remarks": list(self.remarks),
        }
        write_atomically(path, json.dumps(content, ensure_ascii=False).encode())


def find_duplicates(
    folders: Sequence[Path], *, near: int = DEFAULT_NEAR, workers: int = 1, start: Start | None = None
) -> Duplicates:
    """Look for duplicates in and between the built splits in `folders`.

    near: the most bits of their 64-bit hashes that two pictures may differ in (0 to 15).  workers: threads.
    start: gives a progress callback (done, total) for the name of what is done.
    InputError for another `near`, ShardError where a split cannot be read.
    """
    if not 0 <= near <= MAX_DISTANCE:
        raise InputError(f"--near: bits of the hash, 0 to {MAX_DISTANCE}, expected, {near} found")
    start = start or (lambda _: lambda done, total: None)
    splits = open_splits(_by_precedence(folders))
    prints = fingerprints_of(splits, workers, start("look at images"))
    try:
        links, remarks = _find_links(prints, near, workers, start)
        return _Copies(prints, links).duplicates(remarks)
    finally:
        prints.close()


def is_held_out(split: str) -> bool:
    return split.lower().startswith(HELD_OUT)


def _by_precedence(folders: Sequence[Path]) -> list[Path]:
    """Held-out splits first; otherwise as given, each once."""
    splits = open_splits(list(dict.fromkeys(folders)))
    return [s.folder for s in sorted(splits, key=lambda s: not is_held_out(s.manifest.split))]


# ---- which samples are alike


@dataclass(frozen=True, slots=True)
class _Links:
    """Between the first samples with their pixels; exact duplicates are found by `first`."""

    first: NDArray[np.int64]
    """Of each sample, the first with the same pixels (itself, where there is no other)."""
    near: NDArray[np.int64]
    """[links, 4]: earlier, later, number in KINDS, distance"""


def _find_links(prints: Fingerprints, near: int, workers: int, start: Start) -> tuple[_Links, list[str]]:
    first = np.arange(prints.num_samples)
    whole = np.nonzero(prints.is_whole)[0]
    _, earliest, group = np.unique(prints.digests[whole], axis=0, return_index=True, return_inverse=True)
    first[whole] = whole[earliest[group.reshape(-1)]]
    telling = np.nonzero((first == np.arange(len(first))) & prints.is_telling & prints.is_whole)[0]
    hashes = prints.hashes[telling]
    found, cut = [], 0
    for kind, flip, confirm in ((1, 0, show_the_same), (2, MIRROR, show_the_mirrored)):
        pairs = near_pairs(hashes, flip, near, workers, start(f"compare: {KINDS[kind]}"))
        cut += pairs.cut
        a, b = telling[pairs.first], telling[pairs.second]
        for some in np.split(np.arange(len(a)), range(_CONFIRMED_AT_ONCE, len(a), _CONFIRMED_AT_ONCE)):
            same = some[confirm(prints.thumbnails[a[some]], prints.thumbnails[b[some]])]
            found.append(np.column_stack([a[same], b[same], np.full(len(same), kind), pairs.distance[same]]))
    links = np.concatenate(found)
    links = links[np.lexsort(links.T[::-1])]
    links = links[np.unique(links[:, :2], axis=0, return_index=True)[1]]  # near and mirrored too: near
    return _Links(first, links), list(_remarks(prints, cut))


def _remarks(prints: Fingerprints, cut: int) -> Iterator[str]:
    for split in prints.splits:
        stop = split.start + split.manifest.num_samples
        damaged = int((~prints.is_whole[split.start : stop]).sum())
        if damaged:
            yield f"{split.name}: {damaged:,} samples are damaged and were skipped; run `hjepa-shards verify`"
    telling = int((prints.is_whole & ~prints.is_telling).sum())
    if telling:
        yield f"{telling:,} images are blank or under 16 pixels: compared exactly only"
    if cut:
        yield f"{cut:,} comparisons were skipped where too many images have the same coarse structure"


# ---- what follows from it


@final
class _Copies:
    """Links, looked at as groups, relations between splits, and exclusions."""

    def __init__(self, prints: Fingerprints, links: _Links) -> None:
        self.prints = prints
        self.links = links
        self.members: dict[int, list[int]] = defaultdict(list)
        """First sample -> all with its pixels, where there are several."""
        copied = np.nonzero(links.first != np.arange(len(links.first)))[0]
        for sample in copied.tolist():
            first = int(links.first[sample])
            self.members[first] = self.members[first] or [first]
            self.members[first].append(sample)
        self.best: dict[int, tuple[int, int, int]] = {}
        """Sample -> (number in KINDS, distance, of which other sample) that it is most alike."""
        for earlier, later, kind, distance in links.near.tolist():
            for one, other in ((earlier, later), (later, earlier)):
                self.best[one] = min(self.best.get(one, (9, 0, 0)), (kind, distance, other))
        for first, members in self.members.items():
            self.best |= {member: (0, 0, first) for member in members} | {first: (0, 0, members[1])}

    def duplicates(self, remarks: list[str]) -> Duplicates:
        reasons = self._reasons()
        groups = self._groups()
        keys = self._keys({sample for group in groups for sample in group})
        described = [self._described(group, keys, reasons) for group in groups]
        return Duplicates(
            groups=tuple(sorted(described, key=lambda group: not group.leak)),
            relations=tuple(sorted(self._relations(), key=lambda relation: not relation.leak)),
            exclusions=tuple(self._exclusions(reasons, keys)),
            samples_of=self._samples_of(),
            remarks=tuple(remarks + self._unnamed(reasons, keys)),
        )

    def _samples_of(self) -> dict[str, int]:
        counts: dict[str, int] = defaultdict(int)
        for split in self.prints.splits:
            counts[split.name] += split.manifest.num_samples
        return dict(counts)

    def _split(self, sample: int) -> Split:
        return self.prints.splits[self.prints.split_number(sample)]

    def _is_held_out(self, sample: int) -> bool:
        return is_held_out(self._split(sample).manifest.split)

    def _reasons(self) -> dict[int, tuple[int, int, int]]:
        """Excluded sample -> (number in KINDS, distance, which sample that stays): duplicates of samples that stay."""
        by_later: dict[int, list[tuple[int, int, int]]] = defaultdict(list)
        for earlier, later, kind, distance in self.links.near.tolist():
            by_later[later].append((kind, distance, earlier))
        reasons: dict[int, tuple[int, int, int]] = {}
        for later in sorted(by_later):
            stay = [link for link in by_later[later] if link[2] not in reasons]
            if stay and not self._is_held_out(later):
                reasons[later] = min(stay)
        for first, members in self.members.items():
            for member in members[1:]:
                if not self._is_held_out(member):
                    reasons[member] = reasons.get(first, (0, 0, first))
        return reasons

    def _groups(self) -> list[list[int]]:
        """Connected samples, each group in order, groups by their first."""
        parent: dict[int, int] = {}

        def root(sample: int) -> int:
            path = []
            while parent.setdefault(sample, sample) != sample:
                path.append(sample)
                sample = parent[sample]
            for passed in path:
                parent[passed] = sample
            return sample

        for sample, (_, _, other) in self.best.items():
            a, b = root(other), root(sample)
            parent[max(a, b)] = min(a, b)
        for earlier, later in self.links.near[:, :2].tolist():
            a, b = root(earlier), root(later)
            parent[max(a, b)] = min(a, b)
        groups: dict[int, list[int]] = defaultdict(list)
        for sample in sorted(parent):
            groups[root(sample)].append(sample)
        return list(groups.values())

    def _described(self, group: list[int], keys: dict[int, str | None], reasons: dict[int, Any]) -> Group:
        copies = []
        for index, sample in enumerate(group):
            split = self._split(sample)
            kind, distance, _ = self.best[sample]
            label, names = int(self.prints.labels[sample]), split.manifest.class_names
            copies.append(
                Copy(
                    source=split.manifest.source,
                    split=split.manifest.split,
                    index=sample - split.start,
                    key=keys[sample],
                    label=label,
                    class_name=names[label] if 0 <= label < len(names) else None,
                    kind=KINDS[kind] if index else "first",
                    distance=distance if index else 0,
                    excluded=sample in reasons,
                )
            )
        loosest = max(self.best[sample][0] for sample in group)
        held_out = {self._is_held_out(sample) for sample in group}
        return Group(KINDS[loosest], len(held_out) == 2, tuple(copies))

    def _relations(self) -> Iterator[Relation]:
        """For each two splits with duplicates between them, in order of precedence."""
        found: dict[tuple[int, int], tuple[dict[int, int], dict[int, int]]] = defaultdict(lambda: ({}, {}))
        splits = self.prints.splits

        def by_split(first: int) -> dict[int, list[int]]:
            parts: dict[int, list[int]] = defaultdict(list)
            for member in self.members.get(first) or [first]:
                parts[self.prints.split_number(member)].append(member)
            return parts

        def relate(a: dict[int, list[int]], b: dict[int, list[int]], kind: int) -> None:
            for x, y in ((x, y) for x in a for y in b):
                low, high = (x, y) if x <= y else (y, x)
                sides = found[low, high]
                for side, samples in ((sides[x > y], a[x]), (sides[x <= y], b[y])):
                    for sample in samples:
                        side[sample] = min(kind, side.get(sample, kind))

        for first in self.members:
            parts = by_split(first)
            for x in parts:
                relate({x: parts[x][:1]}, {x: parts[x][1:]} if len(parts[x]) > 1 else {}, 0)
                relate({x: parts[x]}, {y: parts[y] for y in parts if y > x}, 0)
        for earlier, later, kind, _ in self.links.near.tolist():
            relate(by_split(earlier), by_split(later), kind)
        for (x, y), (one, other) in sorted(found.items()):
            counts: dict[Kind, tuple[int, int]] = {
                name: (list(one.values()).count(kind), list(other.values()).count(kind))
                for kind, name in enumerate(KINDS)
            }
            leak = is_held_out(splits[x].manifest.split) != is_held_out(splits[y].manifest.split)
            yield Relation(splits[x].name, splits[y].name, leak, counts)

    def _exclusions(
        self, reasons: dict[int, tuple[int, int, int]], keys: dict[int, str | None]
    ) -> Iterator[dict[str, str]]:
        for sample, (kind, distance, of) in sorted(reasons.items()):
            key, split, other = keys[sample], self._split(sample), self._split(of)
            if key is None:
                continue
            name = keys[of] or f"sample {of - other.start}"
            how = f"{KINDS[kind]} copy of {other.name} {name}" + f" ({distance} bits)" * (kind > 0)
            yield {"source": split.manifest.source, "split": split.manifest.split, "key": key, "reason": how}

    def _unnamed(self, reasons: dict[int, Any], keys: dict[int, str | None]) -> list[str]:
        lost = sum(keys[sample] is None for sample in reasons)
        text = (
            f"{lost:,} duplicates cannot be excluded: their tars no longer hold their keys; run `hjepa-shards verify`"
        )
        return [text] if lost else []

    def _keys(self, samples: set[int]) -> dict[int, str | None]:
        by_shard: dict[tuple[int, int], list[int]] = defaultdict(list)
        splits = self.prints.splits
        starts = [np.cumsum(s.manifest.shard_samples) - s.manifest.shard_samples for s in splits]
        for sample in sorted(samples):
            number = self.prints.split_number(sample)
            shard = int(np.searchsorted(starts[number], sample - splits[number].start, side="right")) - 1
            by_shard[number, shard].append(sample)
        keys: dict[int, str | None] = {}
        for (number, shard), members in by_shard.items():
            split = splits[number]
            tar = split.folder / split.manifest.shard_name(shard)
            sidecar = Sidecar(tar.with_name(tar.name + ".index"))
            first = split.start + int(starts[number][shard])
            keys |= zip(members, keys_of(tar, [sidecar.row(s - first) for s in members]), strict=True)
        return keys
