"""Is raw data what its authors published? Checked before a build of hours, of every source in the same way.

Files: whether one is empty or unfinished, and those with a published digest against it. Splits, through `open_split` as
`build` opens them: how many images, which classes have none, and whether images decode: a keyed choice of a thousand,
or all of them. What does not decode would be excluded by `build`; here it is named.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import final

import numpy as np

from hjepa_shards.base.keyed_random import derive_key, permutation
from hjepa_shards.base.thread_map import in_threads
from hjepa_shards.downloading.published_files import DOWNLOADS, IMAGENET
from hjepa_shards.errors import InputError, ShardError
from hjepa_shards.images.image_formats import opened
from hjepa_shards.images.rgb_pixels import shown
from hjepa_shards.shards.raw_sample import RawSample
from hjepa_shards.shards.sample_table import SampleTable
from hjepa_shards.sources.base import RawSplit
from hjepa_shards.sources.formats.class_folders import entries
from hjepa_shards.sources.published.cifar import PUBLISHED_MD5
from hjepa_shards.sources.registry import default_splits, open_split, require_source
from hjepa_shards.storage.http_download import SILENT, Progress, Watcher, digest_of

NUM_DECODED = 1000
"""Images of a split that are decoded without --deep."""
_QUICK_BYTES = 4_000_000_000
"""Larger files are hashed with --deep only: ImageNet's take minutes."""
_MOST_NAMED = 5

PUBLISHED_IMAGES = {
    "cifar10": {"train": 50_000, "test": 10_000},
    "cifar100": {"train": 50_000, "test": 10_000},
    "stl10": {"train": 5_000, "test": 8_000, "unlabeled": 100_000},
    "imagenet": {"train": 1_281_167, "val": 50_000},
    "imagenet100": {"train": 126_689, "val": 5_000},
    "places365": {"train": 1_803_460, "val": 36_500, "test": 328_500, "train-challenge": 8_026_628},
    "coco": {"train": 118_287, "val": 5_000, "test": 40_670, "unlabeled": 123_403},
}

FILES_MD5: dict[str, dict[str, str]] = {
    "cifar10": PUBLISHED_MD5,
    "cifar100": PUBLISHED_MD5,
    "stl10": {
        "train_X.bin": "918c2871b30a85fa023e0c44e0bee87f",
        "train_y.bin": "5a34089d4802c674881badbb80307741",
        "test_X.bin": "7f263ba9f9e0b06b93213547f721ac82",
        "test_y.bin": "36f9794fa4beb8a2c72628de14fa638e",
        "unlabeled_X.bin": "5242ba1fed5e4be9e1e742405eb56ca4",
    },
    "places365": {
        "categories_places365.txt": "06c963b85866bd0649f97cb43dd16673",
        "places365_train_standard.txt": "30f37515461640559006b8329efbed1a",
        "places365_train_challenge.txt": "b2931dc997b8c33c27e7329c073a6b57",
        "places365_val.txt": "e9f2fd57bfd9d07630173f4e8708e4b1",
        "places365_test.txt": "2fce8233fe493576d724142e45d93653",
    },
}
"""Of the files in the archives, from torchvision's dataset classes."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class FilesCheck:
    """What was found among the files of raw data."""

    count: int
    """Files in the folder."""
    as_published: tuple[str, ...]
    """Names of those whose bytes are the published ones."""
    wrong: tuple[str, ...]


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class SplitCheck:
    """What was found in one split."""

    split: str
    images: int = 0
    published: int | None = None
    """None: no number was published, or a class list chose from it."""
    classes: int = 0
    decoded: int = 0
    wrong: tuple[str, ...] = ()
    unopened: str = ""
    """Why nothing can be said about it; '' where it could be opened."""


def check_raw_files(source: str, raw: Path, *, deep: bool = False, watcher: Watcher = SILENT) -> FilesCheck:
    """Look for empty and unfinished files below `raw`, and compare those whose digest was published.

    deep: also the files that take minutes to read.
    """
    walk = _Walk(source, deep)
    walk.look_into(raw)
    wrong, right = walk.odd, []
    for path, algorithm, expected in walk.published:
        found = digest_of(path, algorithm, watcher.bar(f"check {path.name}"))
        if found == expected:
            right.append(path.name)
        else:
            wrong.append(f"{path}: {algorithm} {expected} expected, as published, {found} found; fetch it again")
    return FilesCheck(count=walk.count, as_published=tuple(right), wrong=tuple(wrong))


def check_raw_splits(
    source: str,
    raw: str | Path | None,
    *,
    splits: Sequence[str] = (),
    classes: Path | None = None,
    list_file: Path | None = None,
    no_classes: bool = False,
    deep: bool = False,
    workers: int = 1,
    watcher: Watcher = SILENT,
) -> list[SplitCheck]:
    """Look into each of `splits` (the default ones, if none is named).

    raw, classes, list_file, no_classes: as `open_split` takes them.  deep: decode every image.  workers: threads.
    watcher: receives how far it is.
    InputError for an unknown source; a split that cannot be opened is reported in its check.
    """
    require_source(source)
    checks = []
    for split in splits or default_splits(source, raw):
        with tempfile.TemporaryDirectory(prefix="hjepa-verify-raw-") as scratch:
            try:
                opened_split = open_split(
                    source, raw, split, classes=classes, list_file=list_file, no_classes=no_classes
                )
                opened_split.prepare(Path(scratch))
                samples = opened_split.samples
            except InputError as error:
                checks.append(SplitCheck(split=split, unopened=str(error)))
            except ShardError as error:
                checks.append(SplitCheck(split=split, wrong=(str(error),)))
            else:
                published = None if classes else PUBLISHED_IMAGES.get(source, {}).get(split)
                progress = watcher.bar(f"decode {split}")
                checks.append(_check_split(source, split, opened_split, samples, published, deep, workers, progress))
    return checks


def _check_split(
    source: str,
    split: str,
    opened_split: RawSplit,
    samples: SampleTable,
    published: int | None,
    deep: bool,
    workers: int,
    progress: Progress,
) -> SplitCheck:
    wrong = []
    if published is not None and len(samples) != published:
        wrong.append(f"{published:,} images expected, as published, {len(samples):,} found")
    empty = samples.empty_classes(opened_split.class_names)
    if empty:
        wrong.append(f"{len(empty):,} of {len(opened_split.class_names):,} classes have no image: {_some(empty)}")
    count = len(samples) if deep else min(len(samples), NUM_DECODED)
    chosen = iter(samples)
    if not deep:
        order = permutation(derive_key(0, "verify-raw", source, split), len(samples))
        chosen = (samples[i] for i in np.sort(order[:count]).tolist())
    done, unreadable = 0, []
    for done, reason in enumerate(in_threads(partial(_unreadable, opened_split), chosen, workers), start=1):
        if reason:
            unreadable.append(reason)
        progress(done, count)
    if unreadable:
        wrong.append(f"{len(unreadable):,} of {done:,} images cannot be decoded: {_some(unreadable)}")
    return SplitCheck(
        split=split,
        images=len(samples),
        published=published,
        classes=len(opened_split.class_names) or len(samples.labels()),
        decoded=done - len(unreadable),
        wrong=tuple(wrong),
    )


def _unreadable(opened_split: RawSplit, sample: RawSample) -> str:
    """Why an image cannot be decoded; '' if it can."""
    try:
        image = opened_split.read(sample)
        if isinstance(image, bytes):
            with opened(image) as opened_image:
                shown(image, opened_image)
    except (InputError, ShardError) as error:
        return f"{sample.name} ({error})"
    return ""


@final
class _Walk:
    """What a walk over the raw data finds; of a million files only the few that matter are kept."""

    def __init__(self, source: str, deep: bool) -> None:
        self.count = 0
        self.odd: list[str] = []
        self.published: list[tuple[Path, str, str]] = []
        """(file, algorithm, digest)"""
        archives = (*DOWNLOADS.get(source, ()), *DOWNLOADS.get(f"{source}-small", ()), *IMAGENET)
        self._digests = {name: ("md5", md5) for name, md5 in FILES_MD5.get(source, {}).items()}
        self._digests |= {archive.name: ("sha256", archive.sha256) for archive in archives}
        self._most_bytes = None if deep else _QUICK_BYTES

    def look_into(self, folder: Path) -> None:
        """Every file below, except hidden ones."""
        for entry in entries(folder):
            if entry.is_dir(follow_symlinks=False):
                self.look_into(Path(entry.path))
            elif entry.is_file():
                self.count += 1
                num_bytes = entry.stat().st_size
                if entry.name.endswith(".part"):
                    self.odd.append(f"{entry.path}: an unfinished download; `hjepa-shards download` continues it")
                elif num_bytes == 0:
                    self.odd.append(f"{entry.path}: a file with bytes expected, an empty one found; fetch it again")
                elif entry.name in self._digests and (self._most_bytes is None or num_bytes <= self._most_bytes):
                    self.published.append((Path(entry.path), *self._digests[entry.name]))


def _some(words: Sequence[str]) -> str:
    return ", ".join(words[:_MOST_NAMED]) + (f" and {len(words) - _MOST_NAMED:,} more" * (len(words) > _MOST_NAMED))
