"""Files at a URL (https://, s3://, gs:// and what else fsspec knows), over a connection that breaks and continues.

Every file system raises errors of its own, so this boundary catches them all: what may be better at the next try is
tried again, five times and longer apart each time, from the byte where it stopped.
"""

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import fsspec
from fsspec.core import url_to_fs

from hjepa_shards.errors import InputError, ShardError

Result = TypeVar("Result")

_CHUNK_BYTES = 1 << 20
_TRIES = 5
_FIRST_WAIT_S = 0.5
"""After the first failure in a row; three times as long after each further one."""
_HOPELESS = frozenset({400, 401, 403, 404, 405, 410})
"""HTTP answers that the next try would not change."""
_BEYOND_THE_END = 416


def is_remote(location: str) -> bool:
    return "://" in location


def remote_glob(pattern: str) -> list[str]:
    """The URLs that a pattern with stars finds."""
    files, path = _file_system(pattern)
    return [files.unstrip_protocol(str(found)) for found in _tried(pattern, lambda: files.glob(path))]


def remote_info(url: str) -> tuple[int | None, str]:
    """Size in bytes, None where the server does not say; and what else changes when the file does."""
    files, path = _file_system(url)
    info = _tried(url, lambda: files.info(path))
    versions = [str(info[key]) for key in sorted(info) if key.lower() in ("etag", "last-modified", "lastmodified")]
    return info.get("size"), " ".join(versions)


def remote_bytes(url: str, num_bytes: int | None) -> Iterator[bytes]:
    """The file, piece by piece. ShardError where it is not `num_bytes` long.

    num_bytes: as `remote_info` said.
    """
    files, path = _file_system(url)
    at = failures = 0
    while num_bytes is None or at < num_bytes:
        try:
            with _opened_at(files, path, at) as file:
                while chunk := file.read(_CHUNK_BYTES):
                    yield chunk
                    at += len(chunk)
                    failures = 0
            if num_bytes is None:
                return
            if at < num_bytes:
                raise EOFError(f"{at:,} bytes came, {num_bytes:,} expected")
        except Exception as error:  # each file system of fsspec has errors of its own
            failures += 1
            _wait_or_give_up(url, error, failures)
    if at > num_bytes:
        raise ShardError(f"{url}: {num_bytes:,} bytes expected, {at:,} came: it changed; run the same command again")


def remote_exists(url: str) -> bool:
    files, path = _file_system(url)

    def exists() -> bool:
        try:
            files.info(path)
        except FileNotFoundError:
            return False
        return True

    return _tried(url, exists)


def remote_range(url: str, start: int, stop: int) -> bytes:
    """Bytes [start, stop) of a file. EOFError where it gives fewer even at the last try."""
    files, path = _file_system(url)

    def bytes_there() -> Any:
        try:
            return files.cat_file(path, start=start, end=stop)
        except Exception as error:  # as above
            if _status(error) == _BEYOND_THE_END:
                return b""
            raise

    for attempt in range(1, _TRIES + 1):
        data = _of_range(_tried(url, bytes_there), start, stop)
        if data is not None:
            return data
        if attempt < _TRIES:
            time.sleep(_FIRST_WAIT_S * 3 ** (attempt - 1))
    raise EOFError("fewer came")


def remote_ranges(wanted: Sequence[tuple[str, int, int]]) -> list[bytes | None]:
    """Many (url, start, stop) of one file system, side by side; None where one did not come at the first try."""
    files, _ = _file_system(wanted[0][0])
    paths = [_file_system(url)[1] for url, _, _ in wanted]
    starts, stops = [start for _, start, _ in wanted], [stop for _, _, stop in wanted]
    try:
        found = files.cat_ranges(paths, starts, stops, on_error="return")
    except Exception:  # as above; the caller tries each alone, and learns what is wrong
        return [None] * len(wanted)
    return [
        _of_range(data, start, stop) if isinstance(data, bytes) else None
        for data, start, stop in zip(found, starts, stops, strict=True)
    ]


def _of_range(data: bytes, start: int, stop: int) -> bytes | None:
    """What was requested, also from a server that sends the whole file instead; None where it is less."""
    if len(data) == stop - start:
        return data
    return data[start:stop] if len(data) >= stop else None


def said(error: BaseException) -> str:
    """What an error of some library says, on one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def _file_system(url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """The file system of a URL and the path in it."""
    try:
        return url_to_fs(url, **(_patience() if url.startswith(("http://", "https://")) else {}))
    except (ImportError, ValueError) as error:
        raise InputError(f"{url}: cannot be opened: {said(error)}") from error


@functools.cache
def _patience() -> dict[str, Any]:
    """A silent server is given up; a long download is not."""
    import aiohttp  # a third of a second, for those who go there only

    return {"client_kwargs": {"timeout": aiohttp.ClientTimeout(total=None, sock_connect=20, sock_read=60)}}


@contextmanager
def _opened_at(files: fsspec.AbstractFileSystem, path: str, at: int) -> Iterator[Any]:
    """A file from byte `at` on; from an HTTP server that cannot begin there, what comes before is read and dropped."""
    if "http" not in files.protocol:
        with files.open(path, "rb") as file:
            file.seek(at)
            yield file
        return
    options = {"headers": {"Range": f"bytes={at}-"}} if at else {}
    with files.open(path, "rb", block_size=0, **options) as file:
        response: Any = getattr(file, "r")  # noqa: B009 (of HTTP files only, which fsspec's types do not say)
        unwanted = 0 if response.status == 206 else at
        while unwanted:
            dropped = len(file.read(min(unwanted, _CHUNK_BYTES)))
            if not dropped:
                raise EOFError("shorter than before")
            unwanted -= dropped
        yield file


def _tried(url: str, call: Callable[[], Result]) -> Result:
    failures = 0
    while True:
        try:
            return call()
        except Exception as error:  # as above
            failures += 1
            _wait_or_give_up(url, error, failures)


def _status(error: Exception) -> int | None:
    """Of an HTTP answer."""
    return getattr(error, "status", None) or getattr(error.__cause__, "status", None)


def _wait_or_give_up(url: str, error: Exception, failures: int) -> None:
    """Sleep, longer each time. InputError where another try would be in vain."""
    status = _status(error)
    missing = isinstance(error, FileNotFoundError) and error.__cause__ is None
    if missing or status in _HOPELESS or isinstance(error, PermissionError) or failures == _TRIES:
        what = f"answer {status}" if status else said(error.__cause__ or error)
        raise InputError(
            f"{url}: cannot be fetched ({what}); check the address and the connection, then run the same command again"
        ) from error
    time.sleep(_FIRST_WAIT_S * 3 ** (failures - 1))
