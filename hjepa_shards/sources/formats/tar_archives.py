"""Tars as raw input, whatever they are: plain on a disk, compressed, or at a URL.

A build shuffles, so it asks for any byte of any tar at any time. A plain tar on a disk is read where it is; of all
others a plain copy is made, once, in a scratch folder. A copy is whole or not there, and its name holds the size and
time of what it was made of: a killed build finds its copies again, and processes that share a folder share them.
Members are never unpacked, so no name in a tar can lead anywhere.
"""

import fcntl
import hashlib
import os
import re
import shutil
import stat
import weakref
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hjepa_shards.base.atomic_files import open_lock, whole_file
from hjepa_shards.errors import InputError
from hjepa_shards.sources.formats.tar_patterns import TAR_SUFFIXES
from hjepa_shards.storage.decompress import inflated, is_compressed
from hjepa_shards.storage.remote_files import is_remote, remote_bytes, remote_info
from hjepa_shards.storage.scratch_folder import scratch_folder

_CHUNK_BYTES = 1 << 20
_RESERVED_SHARE = 0.02
"""Of the disk stays free, so that a bomb stops before it fills it."""
_CHECKED_BYTES = 1 << 26
_LOOKING_THREADS = 16


@dataclass(frozen=True, kw_only=True, slots=True)
class Archive:
    """One tar as it was given."""

    location: str
    """A path, or a URL."""
    num_bytes: int | None
    """As stored there; None where the server does not say."""
    copy: str
    """Name of its plain copy in the scratch folder; '' where it is read as it is."""

    @property
    def stem(self) -> str:
        """Its file name without what says that it is a tar."""
        return _stem(self.location)


def look_at(locations: Sequence[str]) -> tuple[Archive, ...]:
    """The archives at these locations. InputError naming those that are missing."""
    remote = [location for location in locations if is_remote(location)]
    with ThreadPoolExecutor(_LOOKING_THREADS) as pool:
        found = dict(zip(remote, pool.map(_look_at_remote, remote), strict=True))
    missing = [location for location in locations if location not in found and not os.path.exists(location)]
    if missing:
        raise InputError(
            f"{missing[0]}: a tar expected, no such file"
            + (f", and {len(missing) - 1:,} more of {len(locations):,} are missing" if len(missing) > 1 else "")
            + "; fetch them, or name those that are there"
        )
    return tuple(found.get(location) or _look_at_file(location) for location in locations)


def _look_at_file(location: str) -> Archive:
    try:
        status = os.stat(location)
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{location}: a tar expected, not a file found; name a folder without a pattern")
        with open(location, "rb") as file:
            start = file.read(8)
    except OSError as error:
        raise InputError(f"{location}: cannot be read: {error.strerror or error}") from error
    copy = ""
    if is_compressed(start):
        copy = _copy_name(location, status.st_size, status.st_mtime_ns)
    return Archive(location=location, num_bytes=status.st_size, copy=copy)


def _look_at_remote(location: str) -> Archive:
    num_bytes, version = remote_info(location)
    return Archive(location=location, num_bytes=num_bytes, copy=_copy_name(location, num_bytes, version))


def _copy_name(location: str, *version: object) -> str:
    digest = hashlib.blake2b(repr((location, *version)).encode(), digest_size=8).hexdigest()
    return f"{_stem(location)[:80]}-{digest}.tar"


def _stem(location: str) -> str:
    name = re.split(r"[?#]", location)[0] if is_remote(location) else location
    name = name.rstrip("/").rpartition("/")[2]
    suffix = max((suffix for suffix in TAR_SUFFIXES if name.endswith(suffix)), key=len, default="")
    return name.removesuffix(suffix)


# ---- plain copies


def plain_tar(archive: Archive, scratch: Path) -> Path:
    """Where the archive is a plain tar on this machine; a copy that is not there yet is made, by one process.

    ShardError where the compressed data is damaged or cut short, InputError where there is no room.
    """
    if not archive.copy:
        return Path(archive.location)
    path = scratch / archive.copy
    if not path.exists():
        with _alone(path):
            if not path.exists():
                for left in scratch.glob(f".{archive.copy}.*.tmp"):
                    left.unlink()
                plain = inflated(_stored_bytes(archive), archive.location)
                with whole_file(path) as file:
                    for chunk in _within_the_disk(plain, scratch, archive):
                        file.write(chunk)
    return path


def make_copies(archives: Sequence[Archive], scratch: Path) -> None:
    """Every copy that is missing, after a look whether there is room for them."""
    missing = [archive for archive in archives if archive.copy and not (scratch / archive.copy).exists()]
    if not missing:
        return
    try:
        scratch.mkdir(parents=True, exist_ok=True)
        disk = shutil.disk_usage(scratch)
    except OSError as error:
        raise InputError(f"{scratch}: cannot be made: {error.strerror or error}; choose another location") from error
    needed = sum(archive.num_bytes or 0 for archive in missing)
    if needed > _room(disk.total, disk.free):
        raise InputError(
            f"{scratch}: {_size(needed)} or more needed for plain copies of {len(missing):,} compressed or remote tars "
            f"({missing[0].location} the first), {_size(disk.free)} free; make room or choose another disk"
        )
    for archive in missing:
        plain_tar(archive, scratch)


def default_scratch(owner: object, archives: Sequence[Archive]) -> Path:
    """A folder for copies where no builder gives one (scratch_folder.py).

    It is removed when `owner` goes; after a kill it is found again.
    """
    digest = hashlib.blake2b(repr([archive.copy for archive in archives]).encode(), digest_size=8).hexdigest()
    folder = scratch_folder(f"hjepa-{digest}")
    weakref.finalize(owner, shutil.rmtree, folder, ignore_errors=True)
    return folder


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One process at a time; the others wait. The lock goes with its process, whatever kills it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = open_lock(path.with_name(f".{path.name}.lock"))
    except OSError as error:
        raise InputError(f"{path.parent}: cannot be written: {error.strerror or error}") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _within_the_disk(chunks: Iterable[bytes], scratch: Path, archive: Archive) -> Iterator[bytes]:
    """`chunks`, until they would fill the disk."""
    unchecked = _CHECKED_BYTES
    written = 0
    for chunk in chunks:
        unchecked += len(chunk)
        written += len(chunk)
        if unchecked >= _CHECKED_BYTES:
            unchecked = 0
            disk = shutil.disk_usage(scratch)
            if _room(disk.total, disk.free) <= len(chunk):
                raise InputError(
                    f"{archive.location}: {_size(written)} and more when unpacked, {_size(disk.free)} free in "
                    f"{scratch}; make room or choose another disk"
                )
        yield chunk


def _room(total: int, free: int) -> int:
    return free - int(total * _RESERVED_SHARE)


def _stored_bytes(archive: Archive) -> Iterator[bytes]:
    if is_remote(archive.location):
        yield from remote_bytes(archive.location, archive.num_bytes)
        return
    try:
        with open(archive.location, "rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk
    except OSError as error:
        raise InputError(f"{archive.location}: cannot be read: {error.strerror or error}") from error


def _size(num_bytes: int) -> str:
    return f"{num_bytes / 2**30:.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:.2f} MiB"
