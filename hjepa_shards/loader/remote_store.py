"""Shards at a URL: whole ones from the cache where they are there, single samples by range where they are not.

So nothing waits for a whole shard. Indexes are small and always fetched whole; without a cache they are read from
files that have no name any more. What is in a cache was verified when it came; a sample's checksum is tested at every
read anyway, and one that fails is read again from the origin, which decides.
"""

import hashlib
import os
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import final

from hjepa_shards.errors import InputError, ShardError, ShardTruncated
from hjepa_shards.loader.shard_store import LocalStore, Lru, Store, checked_sidecar, descriptor_share, with_retries
from hjepa_shards.loader.stage_times import Traffic
from hjepa_shards.shards.location import STORED_FORMS, Place
from hjepa_shards.shards.manifest import Manifest
from hjepa_shards.shards.sidecar import HEADER_BYTES, ROW, Sidecar
from hjepa_shards.storage.decompress import inflated
from hjepa_shards.storage.remote_files import (
    WholeFileError,
    remote_bytes,
    remote_exists,
    remote_info,
    remote_range,
    remote_ranges,
    remote_sends_parts,
    remote_start,
)
from hjepa_shards.storage.shard_cache import ShardCache

_TRIES = 3
"""Of a whole shard or index, where other bytes than the manifest's came."""
_INDEXES_AT_ONCE = 16
_MOST_WHOLE_IN_A_ROW = 5
"""Whole shards that come where a part was requested, before the server is taken to know nothing else."""
_MOST_STORED, _HEADERS_BYTES = 1.05, 1 << 16
"""What no compression adds to: a share of the plain bytes, and bytes besides."""


@final
class RemoteStore(Store):
    """The shards of a split at a URL."""

    is_far = True

    def __init__(self, url: str, manifest: Manifest, cache: ShardCache | None, num_stores: int = 1) -> None:
        """cache: None reads everything by range.  num_stores: how many the process has open."""
        self.url = url
        self.manifest = manifest
        self.cache = cache
        self.fetches = cache is not None
        self._form = self._stored_form()
        self._only_whole = bool(self._form)
        """No part of a shard can be read at its origin: it is compressed, or the server sends all of it each time."""
        self._whole_in_a_row = 0
        self._sends_parts = False
        """Whether that was asked."""
        if not self.cache:
            self._ask_for_parts()
        limit = descriptor_share(num_stores)
        self._descriptors = Lru(limit, self._open, os.close)
        self._sidecars = Lru(limit, self._open_sidecar, lambda sidecar: None)
        self._counting = threading.Lock()

    def read(self, shard: int, offset: int, num_bytes: int) -> bytes:
        found = self._read_cached(shard, offset, num_bytes)
        if found is not None:
            self._count(Traffic(cached=1))
            return found
        return self._read_range(shard, offset, num_bytes)

    def read_again(self, shard: int, offset: int, num_bytes: int) -> bytes:
        held = self._read_cached(shard, offset, num_bytes)
        data = self._read_range(shard, offset, num_bytes)
        if self.cache and held is not None and held != data:
            self.cache.forget(self.manifest.shard_sha256[shard])  # the disk has changed it since it came
            self._descriptors.keep(lambda other: other != shard)
        return data

    def read_many(self, wanted: Sequence[tuple[int, int, int]]) -> list[bytes | None]:
        absent = [i for i, (shard, _, _) in enumerate(wanted) if not self._is_here(shard)]
        found: list[bytes | None] = [None] * len(wanted)
        if len(absent) > 1:
            self._ask_for_parts()
        if len(absent) > 1 and not self._only_whole:
            ranges = [(self._shard_url(shard), at, at + num) for shard, at, num in (wanted[i] for i in absent)]
            for i, data in zip(absent, remote_ranges(ranges), strict=True):
                found[i] = data
                self._count(Traffic(ranges=1, num_bytes=len(data) if data else 0))
        return found

    def open_sidecars(self, shards: Iterable[int]) -> None:
        missing = [shard for shard in shards if shard not in self._sidecars]
        if len(missing) > 1:
            with ThreadPoolExecutor(min(len(missing), _INDEXES_AT_ONCE), thread_name_prefix="hjepa-index") as pool:
                wait([pool.submit(self.sidecar, shard) for shard in missing])  # what fails is reported when it is used

    def sidecar(self, shard: int) -> Sidecar:
        return with_retries(lambda: self._sidecars.get(shard), lambda: f"{self._shard_url(shard)}: reading its index")

    def fetch(self, shard: int, stopped: Callable[[], bool] = lambda: False) -> bool:
        """It comes into the cache."""
        return self._fetch(shard, stopped)

    def _fetch(self, shard: int, stopped: Callable[[], bool] = lambda: False, *, wait: bool = False) -> bool:
        """wait: also for another thread or job that is fetching it."""
        if not self.cache:
            return False
        sha256, num_bytes = self.manifest.shard_sha256[shard], int(self.manifest.shard_bytes[shard])

        def go_on(_: bytes) -> bool:
            return not stopped()

        if not self._form and not self._is_here(shard):
            found, _ = remote_info(self._shard_url(shard))
            if found not in (None, num_bytes):
                return False  # no room is made for what the manifest alone says
        for _ in range(_TRIES):
            if stopped():
                break
            descriptor = self.cache.admit(sha256, num_bytes, lambda: takewhile(go_on, self._chunks(shard)), wait=wait)
            if descriptor is not None:
                os.close(descriptor)
                return self._is_here(shard)
        return False

    def _count(self, more: Traffic) -> None:
        with self._counting:
            self.traffic += more

    def keep(self, shards: set[int]) -> None:
        """The cache may remove all others."""
        self._descriptors.keep(shards.__contains__)

    def close(self) -> None:
        self._descriptors.clear()
        self._sidecars.clear()

    def _shard_url(self, shard: int) -> str:
        return f"{self.url}/{self.manifest.shard_name(shard)}"

    def _stored_form(self) -> str:
        """The ending of the shards' names at the origin."""
        for form in STORED_FORMS:
            if remote_exists(self._shard_url(0) + form):
                if form and not self.cache:
                    raise InputError(
                        f"{self._shard_url(0)}{form}: compressed shards cannot be read by range; give the run a "
                        "data.cache, or put plain tars there"
                    )
                return form
        raise InputError(f"{self._shard_url(0)}: a shard expected, as the manifest says, none found; upload it again")

    def _ask_for_parts(self) -> None:
        """Once, before the first part is requested: a batch of whole shards would fill the memory."""
        if not self._sends_parts and not self._only_whole:
            if not remote_sends_parts(self._shard_url(0)):
                self._read_whole_from_now_on()
            self._sends_parts = True

    def _read_whole_from_now_on(self) -> None:
        """InputError where there is no cache: the server would send each shard once a sample."""
        if not self.cache:
            raise InputError(
                f"{self.url}: the server sends whole files only (it ignores Range): each sample would cost a shard; "
                "give the run a data.cache, or put the shards on a server that knows ranges"
            )
        self._only_whole = True

    def _is_here(self, shard: int) -> bool:
        try:
            with self._descriptors.lent(shard):
                return True
        except _NotHereError:
            return False

    def _read_cached(self, shard: int, offset: int, num_bytes: int) -> bytes | None:
        try:
            with self._descriptors.lent(shard) as descriptor:
                return os.pread(descriptor, num_bytes, offset)
        except (_NotHereError, OSError):  # a disk that fails here is no reason to stop: the origin has it
            return None

    def _read_range(self, shard: int, offset: int, num_bytes: int) -> bytes:
        self._ask_for_parts()
        if self._only_whole:
            if not self._fetch(shard, wait=True):
                raise ShardError(
                    f"{self._shard_url(shard)}{self._form}: no room for it in the cache, or other bytes come "
                    "than the manifest's; give data.cache more room, or upload the shard again"
                )
            return self.read(shard, offset, num_bytes)
        url = self._shard_url(shard)
        try:
            data = remote_range(url, offset, offset + num_bytes)
            self._whole_in_a_row = 0
            self._count(Traffic(ranges=1, num_bytes=num_bytes))
            return data
        except WholeFileError as error:
            self._whole_in_a_row += 1  # a proxy on the way may forget what was requested now and then
            if self._whole_in_a_row < _MOST_WHOLE_IN_A_ROW:
                return error.part
            self._read_whole_from_now_on()
            return self._read_range(shard, offset, num_bytes)
        except EOFError as error:
            found, _ = remote_info(url)
            if found is not None and found < int(self.manifest.shard_bytes[shard]):
                raise ShardTruncated(
                    f"{url}: {self.manifest.shard_bytes[shard]} bytes expected, {found} found; upload it again"
                ) from error
            raise ShardError(
                f"{url}: bytes {offset} to {offset + num_bytes} expected, {error}; check the connection, then resume"
            ) from error

    def _chunks(self, shard: int) -> Iterator[bytes]:
        url = self._shard_url(shard) + self._form
        num_bytes, _ = remote_info(url)
        left = int(self.manifest.shard_bytes[shard] * _MOST_STORED) + _HEADERS_BYTES

        def counted() -> Iterator[bytes]:
            nonlocal left
            for chunk in remote_bytes(url, num_bytes):
                self._count(Traffic(num_bytes=len(chunk)))
                left -= len(chunk)
                if left < 0:
                    raise ShardError(f"{url}: more bytes come than a shard of the manifest's size has; upload it again")
                yield chunk
            self._count(Traffic(shards=1))

        return inflated(counted(), url) if self._form else counted()

    def _open(self, shard: int) -> int:
        descriptor = self.cache.open(self.manifest.shard_sha256[shard]) if self.cache else None
        if descriptor is None:
            raise _NotHereError
        return descriptor

    def _open_sidecar(self, shard: int) -> Sidecar:
        url = f"{self._shard_url(shard)}.index"
        descriptor = self._cached_index(shard, url)
        if self.cache and descriptor is not None:
            try:
                return checked_sidecar(self.cache.folder / self.manifest.index_sha256[shard], self.manifest, shard, url)
            finally:
                os.close(descriptor)
        # without a cache, or room in it; and what always comes with other bytes than the manifest's: its rows show it
        with tempfile.NamedTemporaryFile(prefix="hjepa-index-") as file:  # its name is gone as soon as it is open
            data = b""
            for _ in range(_TRIES):
                data = remote_start(url, self._index_bytes(shard) + 1)
                if hashlib.sha256(data).hexdigest() == self.manifest.index_sha256[shard]:
                    break
            file.write(data)
            file.flush()
            return checked_sidecar(Path(file.name), self.manifest, shard, url)

    def _cached_index(self, shard: int, url: str) -> int | None:
        """A descriptor that pins it in the cache, which fetches it if need be; None where that cannot be."""
        if self.cache is None:
            return None
        sha256 = self.manifest.index_sha256[shard]
        num_bytes = self._index_bytes(shard)
        descriptor = self.cache.open(sha256)
        for _ in range(_TRIES):
            if descriptor is None and (found := remote_info(url)[0]) in (None, num_bytes):
                descriptor = self.cache.admit(sha256, num_bytes, partial(remote_bytes, url, found), wait=True)
        return descriptor

    def _index_bytes(self, shard: int) -> int:
        return HEADER_BYTES + int(self.manifest.shard_samples[shard]) * ROW.itemsize


def store_at(place: Place, manifest: Manifest, cache: ShardCache | None = None, num_stores: int = 1) -> Store:
    """The shards of the split that is there.  num_stores: how many the process has open."""
    if isinstance(place, Path):
        return LocalStore(place, manifest, num_stores)
    return RemoteStore(place, manifest, cache, num_stores)


class _NotHereError(Exception):
    """The cache does not have it."""
