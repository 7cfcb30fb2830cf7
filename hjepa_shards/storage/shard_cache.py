"""Remote shards on a local disk: whole files by the sha256 of what is in them, shared by any number of jobs.

    <folder>/<sha256>          a file as its manifest says, verified before it took this name
    <folder>/<sha256>.part     one that is on its way; as large as it will be, so that its room is taken
    <folder>/.lock             held while room is made

Nothing else in the folder is touched. Everything that `kill -9` can leave is recognised by locks, which go with their
process: a part that no process holds is rubbish, a file that a process holds is pinned. The least recently used of the
others make room. Files and parts together are never more than the limit. Nothing is removed for a file that there would
still be no room for: its size is what a manifest says, and that may be a lie. A folder that fails is named, once, and
passed by.
"""

import errno
import fcntl
import hashlib
import os
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import final

from pydantic import Field

from hjepa_shards.base.atomic_files import open_lock, writing
from hjepa_shards.base.regular_files import regular_descriptor
from hjepa_shards.config import LocalPath, Strict

_POLL_S = 0.05
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_SHA256 = re.compile(r"[0-9a-f]{64}")
_OURS = re.compile(rf"{_SHA256.pattern}(\.part)?")


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
        self._said: set[str] = set()
        with writing(folder / ".lock"):
            folder.mkdir(parents=True, exist_ok=True)
            os.close(open_lock(folder / ".lock"))

    def open(self, sha256: str) -> int | None:
        """A descriptor of a file, which pins it until it is closed; None where it is not here."""
        path = self._path(sha256)
        try:
            descriptor = regular_descriptor(path, os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        except OSError as error:
            return self._pass_by(error)
        if not _lock(descriptor, fcntl.LOCK_SH) or os.fstat(descriptor).st_nlink == 0:
            os.close(descriptor)  # it is being removed
            return None
        with suppress(OSError):  # a folder that can be read only
            os.utime(descriptor)  # used last
        return descriptor

    def admit(
        self, sha256: str, num_bytes: int, fetch: Callable[[], Iterator[bytes]], *, wait: bool = False
    ) -> int | None:
        """A descriptor as of `open`, of a file that is fetched unless it is here.

        None where there is no room for it or the folder fails, where another job or thread is fetching it (unless
        `wait`), and where what came has another sha256: nothing of that is kept.
        """
        if num_bytes > self.max_bytes:
            text = f"at most {self.max_bytes:,} bytes, so a shard of {num_bytes:,} is read by range"
            self._say("too large", text)
            return self.open(sha256)
        part = self._path(sha256).with_suffix(".part")
        while True:
            found = self.open(sha256)
            if found is not None:
                return found
            try:
                descriptor = self._reserve(part, num_bytes)
            except OSError as error:
                return self._pass_by(error)
            if descriptor is not None:
                break
            if not (wait and part.exists()):
                return self.open(sha256)  # it may have come meanwhile
            time.sleep(_POLL_S)
        try:
            if _fill(descriptor, num_bytes, fetch()) != sha256:
                raise _NotWhatWasAskedForError
            self._keep(descriptor, part)
        except BaseException as error:
            with suppress(OSError):
                part.unlink(missing_ok=True)
            os.close(descriptor)
            if isinstance(error, _FolderFailedError):
                return self._pass_by(error.reason)
            if isinstance(error, _NotWhatWasAskedForError):
                return None
            raise
        return descriptor

    def forget(self, sha256: str) -> None:
        """Remove a file whose bytes are no longer what they were when it came: disks fail too."""
        try:
            with self._making_room():
                self._path(sha256).unlink(missing_ok=True)
        except OSError as error:
            self._pass_by(error)

    def num_bytes(self) -> int:
        """Of all files and parts."""
        with self._alone():
            return sum(size for _, size, _ in self._files())

    def _path(self, sha256: str) -> Path:
        """ValueError for what is no sha256: it would be the name of another file."""
        if not _SHA256.fullmatch(sha256):
            raise ValueError(f"{sha256[:80]!r}: 64 hexadecimal digits expected")
        return self.folder / sha256

    def _keep(self, descriptor: int, part: Path) -> None:
        """A part that is whole takes its name."""
        try:
            os.fsync(descriptor)
            with self._alone():  # who counts must see it under one name, and who sees it may open it
                fcntl.flock(descriptor, fcntl.LOCK_SH)
                os.rename(part, part.with_suffix(""))
        except OSError as error:
            raise _FolderFailedError(error) from error

    def _reserve(self, part: Path, num_bytes: int) -> int | None:
        """A part that takes its room at once, locked by this process; None where that is not possible."""
        with self._making_room():
            if part.exists() or part.with_suffix("").exists():
                return None  # another process's, for those of the dead are gone; or it has come
            if not self._make_room(num_bytes):
                return None
            descriptor = os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            try:
                if num_bytes:
                    _take_room(descriptor, num_bytes)
            except OSError:
                part.unlink()
                os.close(descriptor)
                raise
            return descriptor

    def _make_room(self, num_bytes: int) -> bool:
        """Remove what was not used for longest, until there is room; nothing where the rest is in use."""
        files = sorted(self._files())
        over = sum(size for _, size, _ in files) + num_bytes - self.max_bytes
        disk = os.statvfs(self.folder)
        free = disk.f_bavail * disk.f_frsize
        going, freed = [], 0
        for _, size, path in files:
            if freed >= max(over, num_bytes - free):
                break
            if _is_idle(path):
                going.append((size, path))
                freed += size
        if free + freed < num_bytes:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if freed < over:
            return False
        return sum(size for size, path in going if _removed(path)) >= over

    def _files(self) -> list[tuple[float, int, Path]]:
        """(last use, bytes, path) of each."""
        found = []
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if not _OURS.fullmatch(entry.name):
                    continue
                with suppress(FileNotFoundError):
                    stat = entry.stat(follow_symlinks=False)
                    found.append((stat.st_mtime, stat.st_size, Path(entry.path)))
        return found

    @contextmanager
    def _making_room(self) -> Iterator[None]:
        """Alone, and parts of the dead are gone."""
        with self._alone():
            for _, _, path in self._files():
                if path.suffix:
                    _removed(path)
            yield

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One process and thread at a time."""
        lock = open_lock(self.folder / ".lock")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)

    def _pass_by(self, error: OSError) -> None:
        """Without the cache, for this file."""
        what = error.strerror or str(error)
        free = ""
        with suppress(OSError):
            disk = os.statvfs(self.folder)
            free = f" ({disk.f_bavail * disk.f_frsize / 2**20:,.1f} MiB free)"
        self._say(what, f"{what}{free}: what cannot be kept there is read by range")

    def _say(self, kind: str, text: str) -> None:
        """Once for each kind of thing that is wrong with it."""
        if kind not in self._said:
            self._said.add(kind)
            print(f"note: data.cache {self.folder}: {text}", file=sys.stderr)


def shard_cache(config: CacheConfig | None) -> ShardCache | None:
    return ShardCache(config.folder, int(config.gigabytes * 1e9)) if config else None


class _NotWhatWasAskedForError(Exception):
    """Other bytes came."""


class _FolderFailedError(Exception):
    """The cache could not be written; what fetches raises errors of its own."""

    def __init__(self, reason: OSError) -> None:
        super().__init__(str(reason))
        self.reason = reason


def _removed(path: Path) -> bool:
    """Whether a file could be removed: not while a process holds it."""
    return _is_idle(path, lambda: path.unlink(missing_ok=True))


def _is_idle(path: Path, then: Callable[[], None] = lambda: None) -> bool:
    """Whether no process holds a file.  then: called if so, before any can."""
    try:
        descriptor = regular_descriptor(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return True
    except OSError:  # a link, or another's: it is nothing of ours
        return False
    try:
        if not _lock(descriptor, fcntl.LOCK_EX):
            return False
        then()
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
            try:
                written = os.pwrite(descriptor, view, at)
            except OSError as error:
                raise _FolderFailedError(error) from error
            view, at = view[written:], at + written
    return digest.hexdigest() if at == num_bytes else ""
