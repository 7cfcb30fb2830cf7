"""Whether raw data still holds what a split was built from, for names alone do not tell: files are fetched again, too.

`.journal/raw.json` holds size, time and a digest of both ends of at most a thousand files: all of them, or a keyed
choice from one file an image. Each later build of the split asks the disk for those sizes and times (a thousand calls,
whatever the size of the dataset), and reads the ends of a file whose time alone is another: touched is not changed. A
change of few files among millions, or in the middle of a large one, is found by `check_input`, which reads everything.
The file is for this check alone: it is no part of what a build promises, and may be removed.
"""

import hashlib
import json
import os
import stat
from collections.abc import Callable
from dataclasses import astuple, dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import final

from pydantic import TypeAdapter, ValidationError

from hjepa_shards.base.keyed_random import derive_key
from hjepa_shards.base.thread_map import in_threads
from hjepa_shards.building.build_plan import BuildPlan, RawList, shuffled, slice_of
from hjepa_shards.building.merge_parts import is_finished, raw_digest_of_record
from hjepa_shards.building.shard_writer import raw_token, record_name
from hjepa_shards.errors import BuildMismatch
from hjepa_shards.storage.build_output import JOURNAL, Target

RAW = f"{JOURNAL}/raw.json"
_MOST_FILES = 1000
_END_BYTES = 1 << 20
_THREADS = 8
_ADVICE = (
    "build under another --name or --out, remove this build to start again, or put back the raw data that it was "
    "made from"
)


@final
@dataclass(frozen=True, slots=True)
class _Stamp:
    """One raw file. A file that is not there has a size of -1."""

    path: str
    num_bytes: int
    changed_ns: int
    """When its bytes were last written, as the file system says."""
    ends: str
    """Digest of its first and last MiB."""


_STAMPS = TypeAdapter(list[tuple[str, int, int, str]])


def require_same_input(target: Target, listed: RawList) -> None:
    """Stamp the raw files of a split's first build; BuildMismatch naming those that changed since.

    What cannot be compared (no files, another layout of the same samples) is not judged.
    """
    paths = _paths(listed)
    if not paths:
        return
    before = _read(target)
    if before is None:
        target.create(RAW, _packed(list(in_threads(_stamped, paths, _THREADS))))
        return
    if len(before) != len(paths):
        return
    now, changed = [], []
    for old, stamp in zip(before, in_threads(_looked_at, zip(before, paths, strict=True), _THREADS), strict=True):
        now.append(stamp)
        if (old.num_bytes, old.ends) != (stamp.num_bytes, stamp.ends):
            changed.append((old, stamp))
    if changed:
        old, stamp = changed[0]
        raise BuildMismatch(
            f"{target.where}: was built from other raw data: {stamp.path}: {_words(old, stamp)} ({len(changed):,} of "
            f"{len(paths):,} files that were looked at are others); {_ADVICE}"
        )
    if now != before:
        target.write(RAW, _packed(now))


def check_input(
    target: Target, plan: BuildPlan, listed: RawList, workers: int, progress: Callable[[int, int, int], None] | None
) -> None:
    """Read every raw image of the shards that are built. BuildMismatch naming the shards that were made from others.

    workers: threads.  progress: receives (samples done, samples in all, raw bytes read).
    """
    names, order = target.names(), shuffled(plan, listed.listing)
    shards = [shard for shard in range(plan.num_shards) if is_finished(names, plan.shard_name(shard))]
    total = min(plan.num_samples, len(shards) * plan.samples_per_shard)
    done = num_bytes = 0
    changed = []
    for shard in shards:
        digest = hashlib.blake2b(digest_size=16)
        samples = (sample for _, sample in slice_of(plan, order, shard).keyed())
        for token, size in in_threads(partial(raw_token, listed.raw), samples, workers):
            digest.update(token)
            done, num_bytes = done + 1, num_bytes + size
            if progress:
                progress(done, total, num_bytes)
        if digest.hexdigest() != raw_digest_of_record(target, record_name(plan.shard_name(shard))):
            changed.append(plan.shard_name(shard))
    if changed:
        raise BuildMismatch(
            f"{target.where}: was built from other raw data: {len(changed):,} of {len(shards):,} shards, {changed[0]} "
            f"the first, hold images whose raw bytes are others now; {_ADVICE}"
        )


def _paths(listed: RawList) -> list[Path]:
    """The files to stamp, in an order that depends on the list alone."""
    listing = listed.listing
    if len(listing) > _MOST_FILES:
        listing = listing.drawn(derive_key(0, "raw files"), _MOST_FILES)
    paths = dict.fromkeys(listed.raw.files_of(iter(listing)))
    return list(islice(paths, 2 * _MOST_FILES))


def _looked_at(pair: tuple[_Stamp, Path]) -> _Stamp:
    """The stamp of a file, whose ends are read only where its path or time is not that of before."""
    old, path = pair
    stamp = _stat(path)
    if (stamp.path, stamp.num_bytes, stamp.changed_ns) == (old.path, old.num_bytes, old.changed_ns):
        return old
    return replace(stamp, ends=_ends(path, stamp.num_bytes)) if stamp.num_bytes == old.num_bytes else stamp


def _stamped(path: Path) -> _Stamp:
    stamp = _stat(path)
    return replace(stamp, ends=_ends(path, stamp.num_bytes))


def _stat(path: Path) -> _Stamp:
    try:
        found = os.stat(path)
        if not stat.S_ISREG(found.st_mode):  # to open a FIFO is to wait until something is written to it
            return _Stamp(os.fspath(path), -1, 0, "")
    except (OSError, ValueError):  # a list may name what is not there, or cannot be
        return _Stamp(os.fspath(path), -1, 0, "")
    return _Stamp(os.fspath(path), found.st_size, found.st_mtime_ns, "")


def _ends(path: Path, num_bytes: int) -> str:
    if num_bytes < 0:
        return ""
    digest = hashlib.blake2b(digest_size=16)
    try:
        with path.open("rb") as file:
            digest.update(file.read(_END_BYTES))
            file.seek(max(file.tell(), num_bytes - _END_BYTES))
            digest.update(file.read(_END_BYTES))
    except (OSError, ValueError):  # the build that reads the image reports it
        return ""
    return digest.hexdigest()


def _read(target: Target) -> list[_Stamp] | None:
    try:
        return [_Stamp(*row) for row in _STAMPS.validate_json(target.read(RAW))]
    except FileNotFoundError:
        return None
    except ValidationError:  # of no use to anything but this check
        target.remove(RAW)
        return None


def _packed(stamps: list[_Stamp]) -> bytes:
    return json.dumps([astuple(stamp) for stamp in stamps]).encode()


def _words(old: _Stamp, now: _Stamp) -> str:
    if now.num_bytes == old.num_bytes:
        return "other bytes than then"
    if now.num_bytes < 0 or old.num_bytes < 0:
        return "is gone" if now.num_bytes < 0 else "was not there then"
    return f"{old.num_bytes:,} bytes then, {now.num_bytes:,} now"
