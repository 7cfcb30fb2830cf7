"""Where shards are: bytes at an offset of a numbered shard.

One small interface; local folders here. Shards and sidecars are opened when they are first used and kept in an LRU
bounded by the process's limit of open files. A read error (EIO, a missing file) is retried with backoff and then
stops the run: only what the bytes themselves say counts as damage.
"""

import contextlib
import os
import resource
import threading
import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Generic, TypeVar, final

from hjepa_shards.base.regular_files import regular_descriptor
from hjepa_shards.errors import ManifestError, ShardError, ShardTruncated
from hjepa_shards.loader.stage_times import Traffic
from hjepa_shards.shards.manifest import Manifest
from hjepa_shards.shards.sidecar import Sidecar

try:
    from hjepa_shards.loader._pread import preads
except ImportError:  # no compiler where this was installed
    preads = None

_RETRY_WAITS_S = (0.1, 0.5, 2.0)
_SPARE_DESCRIPTORS = 64
_OPENED_AT_ONCE = 64

Resource = TypeVar("Resource")


class Store(ABC):
    """The shards of one split."""

    is_far = False
    traffic = Traffic()
    """Stays zero where nothing is far away."""

    @abstractmethod
    def read(self, shard: int, offset: int, num_bytes: int) -> bytes:
        """Bytes [offset, offset + num_bytes) of a shard. ShardTruncated if it is shorter than its manifest says."""

    def read_again(self, shard: int, offset: int, num_bytes: int) -> bytes:
        """The same from where the shard really is: what came first had another checksum."""
        return self.read(shard, offset, num_bytes)

    def read_many(self, wanted: Sequence[tuple[int, int, int]]) -> list[bytes | None]:
        """What is better requested at once, of (shard, offset, bytes) each; None where `read` is to be called."""
        return [None] * len(wanted)

    fetches = False
    """Whether `fetch` can do anything."""

    def fetch(self, shard: int, stopped: Callable[[], bool] = lambda: False) -> bool:
        """Bring a whole shard nearer, where it stays while it is used. Whether it is there now.

        stopped: called between pieces; true ends it as if nothing had come.
        """
        return False

    def keep(self, shards: set[int]) -> None:  # noqa: B027 (a store that fetches nothing keeps nothing)
        """Let go of all other shards that were fetched."""

    def open_sidecars(self, shards: Iterable[int]) -> None:  # noqa: B027 (here opening one takes no time)
        """Many at once, where each takes long."""

    @abstractmethod
    def sidecar(self, shard: int) -> Sidecar:
        """The index of a shard, checked against the manifest."""

    @abstractmethod
    def close(self) -> None: ...


@final
class LocalStore(Store):
    """Shards in a folder."""

    def __init__(self, folder: Path, manifest: Manifest, num_stores: int = 1) -> None:
        """num_stores: how many the process has open, which share its open files."""
        self.folder = folder
        self.manifest = manifest
        limit = descriptor_share(num_stores)
        self._descriptors = Lru(limit, self._open, os.close)
        self._sidecars = Lru(limit, self._open_sidecar, lambda sidecar: None)

    def read(self, shard: int, offset: int, num_bytes: int) -> bytes:
        data = with_retries(
            lambda: self._read_once(shard, offset, num_bytes),
            lambda: f"{self._path(shard)}: reading {num_bytes} bytes at {offset}",
        )
        if len(data) != num_bytes:
            raise ShardTruncated(
                f"{self._path(shard)}: {num_bytes} bytes expected at {offset}, {len(data)} found; "
                "run `hjepa-shards verify`"
            )
        return data

    def read_many(self, wanted: Sequence[tuple[int, int, int]]) -> list[bytes | None]:
        if preads is None:
            return super().read_many(wanted)
        held: dict[int, int] = {}
        try:
            for shard in {shard for shard, _, _ in wanted}:
                held[shard] = self._descriptors.take(shard)
            return preads([(held[shard], offset, num_bytes) for shard, offset, num_bytes in wanted])
        except OSError:
            return super().read_many(wanted)
        finally:
            for shard in held:
                self._descriptors.give_back(shard)

    def sidecar(self, shard: int) -> Sidecar:
        return with_retries(lambda: self._sidecars.get(shard), lambda: f"{self._path(shard)}: opening its index")

    fetches = hasattr(os, "posix_fadvise")

    def fetch(self, shard: int, stopped: Callable[[], bool] = lambda: False) -> bool:
        """The kernel is told to read it into memory."""
        with contextlib.suppress(OSError), self._descriptors.lent(shard) as descriptor:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_WILLNEED)
            return True
        return False

    def close(self) -> None:
        self._descriptors.clear()
        self._sidecars.clear()

    def _read_once(self, shard: int, offset: int, num_bytes: int) -> bytes:
        with self._descriptors.lent(shard) as descriptor:
            return os.pread(descriptor, num_bytes, offset)

    def _path(self, shard: int) -> Path:
        return self.folder / self.manifest.shard_name(shard)

    def _open(self, shard: int) -> int:
        return regular_descriptor(self._path(shard), os.O_RDONLY)

    def _open_sidecar(self, shard: int) -> Sidecar:
        path = self._path(shard)
        return checked_sidecar(path.with_name(path.name + ".index"), self.manifest, shard)


def checked_sidecar(path: Path, manifest: Manifest, shard: int, url: str = "") -> Sidecar:
    """A shard's index, compared with what the manifest says of it.  url: where it came from."""
    sidecar = Sidecar(path, url)
    expected = (int(manifest.shard_samples[shard]), int(manifest.shard_bytes[shard]), manifest.keys_digest[shard])
    found = (sidecar.num_samples, sidecar.tar_bytes, sidecar.keys_digest.hex())
    if expected != found:
        raise ManifestError(
            f"{sidecar.path}: the manifest says (samples, tar bytes, keys) {expected}, the sidecar {found}: they are "
            "not of one build; run `hjepa-shards verify`"
        )
    return sidecar


def with_retries(attempt: Callable[[], Resource], what: Callable[[], str]) -> Resource:
    """What `attempt` returns; ShardError saying `what` failed where even the last attempt is an OSError."""
    for wait_s in (*_RETRY_WAITS_S, None):
        try:
            return attempt()
        except OSError as error:
            if wait_s is None:
                raise ShardError(
                    f"{what()} failed {len(_RETRY_WAITS_S) + 1} times: {error.strerror or error}; look at the disk, "
                    "then resume"
                ) from error
            time.sleep(wait_s)
    raise AssertionError("unreachable")


def descriptor_share(num_stores: int) -> int:
    """Open files for shards, and as many for sidecars, of one of `num_stores` splits.

    All of them together: half of what the process may have open.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        soft = 1 << 16
    return max(8, (soft - _SPARE_DESCRIPTORS) // (4 * num_stores))


@final
class Lru(Generic[Resource]):
    """The last `limit` resources used, each opened once. One in use by a thread is never closed under it."""

    def __init__(self, limit: int, open_one: Callable[[int], Resource], close_one: Callable[[Resource], None]) -> None:
        self._limit = limit
        self._open_one, self._close_one = open_one, close_one
        self._entries: OrderedDict[int, tuple[Resource, int]] = OrderedDict()
        self._lock = threading.Lock()
        self._opening = [threading.Lock() for _ in range(_OPENED_AT_ONCE)]
        """By key: one may take long to open, others need not wait for it."""

    def lent(self, key: int) -> "_Loan[Resource]":
        return _Loan(self, key)

    def get(self, key: int) -> Resource:
        """One that needs no closing: it may be dropped while it is used."""
        resource = self.take(key)
        self.give_back(key)
        return resource

    def take(self, key: int) -> Resource:
        held = self._take_held(key)
        if held is not None:
            return held
        with self._opening[key % _OPENED_AT_ONCE]:
            held = self._take_held(key)
            if held is None:
                held = self._open_one(key)
                with self._lock:
                    self._entries[key] = (held, 1)
        return held

    def _take_held(self, key: int) -> Resource | None:
        with self._lock:
            if key not in self._entries:
                return None
            held, users = self._entries[key]
            self._entries[key] = (held, users + 1)
            self._entries.move_to_end(key)
            return held

    def __contains__(self, key: int) -> bool:
        return key in self._entries

    def give_back(self, key: int) -> None:
        with self._lock:
            opened, users = self._entries[key]
            self._entries[key] = (opened, users - 1)
            too_many = len(self._entries) - self._limit
            if too_many > 0:
                idle = [k for k, (_, users) in self._entries.items() if users == 0]
                for old in idle[:too_many]:
                    self._close_one(self._entries.pop(old)[0])

    def keep(self, wanted: Callable[[int], bool]) -> None:
        """Close all others that no thread uses."""
        with self._lock:
            for key in [k for k, (_, users) in self._entries.items() if users == 0 and not wanted(k)]:
                self._close_one(self._entries.pop(key)[0])

    def clear(self) -> None:
        with self._lock:
            for opened, _ in self._entries.values():
                self._close_one(opened)
            self._entries.clear()


@final
class _Loan(Generic[Resource]):
    def __init__(self, lru: Lru[Resource], key: int) -> None:
        self._lru, self._key = lru, key

    def __enter__(self) -> Resource:
        return self._lru.take(self._key)

    def __exit__(self, *_: object) -> None:
        self._lru.give_back(self._key)
