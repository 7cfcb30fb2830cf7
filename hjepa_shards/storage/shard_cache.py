"""Remote shards on a local disk: whole files by the sha256 of what is in them, shared by any number of jobs.

    <folder>/<sha256>          a file as its manifest says, verified before it took this name
    <folder>/<sha256>.part     one that is on its way; as large as it will be, so that its room is taken
    <folder>/.lock             held while room is made

Everything that `kill -9` can leave is recognised by locks, which go with their process: a part that no process
holds is rubbish, a file that a process holds is pinned. The least recently used of the others make room. Files and
parts together are never more than the limit.
"""

import errno
import fcntl
import hashlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import final

from pydantic import Field

from hjepa_shards.base.atomic_files import writing
from hjepa_shards.config import LocalPath, Strict
from hjepa_shards.errors import InputError

_POLL_S = 0.05
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)


class CacheConfig(Strict):
    """The `data.cache` section, for shards that are not on this machine."""

    folder: LocalPath
    """Several runs may share it; not on a network file system."""
    gigabytes: float = Field(gt=0, le=1e9)
    """It is never larger."""


@final
class ShardCache:
    """A folder of verified files. Threads and processes may use it at once."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        """InputError where the folder cannot be made or written."""
        self.folder, self.max_bytes = folder, max_bytes
        with writing(folder / ".lock"):
            folder.mkdir(parents=True, exist_ok=True)
            (folder / ".lock").touch()

    def open(self, sha256: str) -> int | None:
        """A descriptor of a file, which pins it until it is closed; None where it is not here."""
        path = self.folder / sha256
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        if not _lock(descriptor, fcntl.LOCK_SH) or os.fstat(descriptor).st_nlink == 0:
            os.close(descriptor)  # it is being removed
            return None
        os.utime(descriptor)  # used last
        return descriptor

    def admit(
        self, sha256: str, num_bytes: int, fetch: Callable[[], Iterator[bytes]], *, wait: bool = False
    ) -> int | None:
        """A descriptor as of `open`, of a file that is fetched unless it is here.

        None where there is no room for it, where another job or thread is fetching it (unless `wait`), and where what
        came has another sha256: nothing of that is kept.
        """
        part = self.folder / f"{sha256}.part"
        while True:
            found = self.open(sha256)
            if found is not None:
                return found
            descriptor = self._reserve(part, num_bytes)
            if descriptor is not None:
                break
            if not (wait and part.exists()):
                return self.open(sha256)  # it may have come meanwhile
            time.sleep(_POLL_S)
        try:
            if _fill(descriptor, num_bytes, fetch()) != sha256:
                raise _NotWhatWasAskedForError
            os.fsync(descriptor)
            with self._alone():  # who counts must see it under one name, and who sees it may open it
                fcntl.flock(descriptor, fcntl.LOCK_SH)
                os.rename(part, self.folder / sha256)
        except BaseException as error:
            part.unlink(missing_ok=True)
            os.close(descriptor)
            if isinstance(error, _NotWhatWasAskedForError):
                return None
            raise
        return descriptor

    def forget(self, sha256: str) -> None:
        """Remove a file whose bytes are no longer what they were when it came: disks fail too."""
        with self._making_room():
            (self.folder / sha256).unlink(missing_ok=True)

    def num_bytes(self) -> int:
        """Of all files and parts."""
        with self._alone():
            return sum(size for _, size, _ in self._files())

    def _reserve(self, part: Path, num_bytes: int) -> int | None:
        """A part that takes its room at once, locked by this process; None where that is not possible."""
        with self._making_room():
            if part.exists() or part.with_suffix("").exists():
                return None  # another process's, for those of the dead are gone; or it has come
            if not self._make_room(num_bytes):
                return None
            descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            try:
                if num_bytes:
                    _take_room(descriptor, num_bytes)
            except OSError as error:
                part.unlink()
                os.close(descriptor)
                if error.errno in _NO_ROOM:
                    return None
                raise InputError(f"{part}: cannot be written: {error.strerror}; choose another data.cache") from error
            return descriptor

    def _make_room(self, num_bytes: int) -> bool:
        """Remove what was not used for longest, until there is room. False where the rest is in use."""
        files = sorted(self._files())
        missing = sum(size for _, size, _ in files) + num_bytes - self.max_bytes
        for _, size, path in files:
            if missing <= 0:
                break
            if _removed(path):
                missing -= size
        return missing <= 0

    def _files(self) -> list[tuple[float, int, Path]]:
        """(last use, bytes, path) of each."""
        found = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                with suppress(FileNotFoundError):
                    stat = entry.stat()
                    found.append((stat.st_mtime, stat.st_size, Path(entry.path)))
        return found

    @contextmanager
    def _making_room(self) -> Iterator[None]:
        """Alone, and parts of the dead are gone."""
        with self._alone():
            for part in self.folder.glob("*.part"):
                _removed(part)
            yield

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One process and thread at a time."""
        with (self.folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def shard_cache(config: CacheConfig | None) -> ShardCache | None:
    return ShardCache(config.folder, int(config.gigabytes * 1e9)) if config else None


class _NotWhatWasAskedForError(Exception):
    """Other bytes came."""


def _removed(path: Path) -> bool:
    """Whether a file could be removed: not while a process holds it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        if not _lock(descriptor, fcntl.LOCK_EX):
            return False
        path.unlink(missing_ok=True)
        return True
    finally:
        os.close(descriptor)


def _lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _take_room(descriptor: int, num_bytes: int) -> None:
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, num_bytes)
    else:  # macOS
        os.truncate(descriptor, num_bytes)


def _fill(descriptor: int, num_bytes: int, chunks: Iterator[bytes]) -> str:
    """Write the chunks; hex sha256 of them, '' where they are more or fewer bytes."""
    digest, at = hashlib.sha256(), 0
    for chunk in chunks:
        if at + len(chunk) > num_bytes:
            return ""
        digest.update(chunk)
        view = memoryview(chunk)
        while view:
            written = os.pwrite(descriptor, view, at)
            view, at = view[written:], at + written
    return digest.hexdigest() if at == num_bytes else ""
