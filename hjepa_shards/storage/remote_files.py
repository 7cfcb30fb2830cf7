"""Files at a URL (https://, s3://, gs:// and what else fsspec knows), over a connection that breaks and continues.

Every file system raises errors of its own, so this boundary catches them all: what may be better at the next try is
tried again (retry.py), from the byte where it stopped; the rest is one line.
"""

import functools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import fsspec
from fsspec.asyn import sync
from fsspec.core import url_to_fs

from hjepa_shards.errors import InputError, ShardError
from hjepa_shards.storage.retry import Pace, Patience, is_hopeless, is_web_page, status_of

Result = TypeVar("Result")

_CHUNK_BYTES = 1 << 20
PATIENCE = Patience()
_TRIES_OF_SHORT = 5
"""Of a part of which fewer bytes came."""
_TRIES_OF_PARTS = 3
"""Of a part, for a proxy on the way may forget what was requested now and then."""
_BEYOND_THE_END = 416
_LISTED_DEPTH = 4
"""<root>/<source>/<split>/<file>"""


class WholeFileError(ShardError):
    """A server sent a whole file where a part of it was requested."""

    def __init__(self, url: str, part: bytes) -> None:
        super().__init__(f"{url}: a part expected, all of the file came")
        self.part = part
        """What was requested, if all of it is there."""


def is_remote(location: str) -> bool:
    return "://" in location


def remote_glob(pattern: str) -> list[str]:
    """The URLs that a pattern with stars finds."""
    files, path = file_system(pattern)
    return [files.unstrip_protocol(str(found)) for found in _tried(pattern, lambda: files.glob(path))]


def remote_below(url: str) -> list[str]:
    """The URLs of all files at or below one; none where the server cannot list (most HTTP servers cannot)."""
    files, path = file_system(url)
    depth = _LISTED_DEPTH if url.startswith(("http://", "https://")) else None  # links lead anywhere

    def found() -> list[str]:
        try:
            files.invalidate_cache()
            return [files.unstrip_protocol(str(name)) for name in files.find(path, maxdepth=depth)]
        except (FileNotFoundError, NotImplementedError):
            return []

    return _tried(url, found)


def remote_info(url: str) -> tuple[int | None, str]:
    """Size in bytes, None where the server does not say; and what else changes when the file does."""
    files, path = file_system(url)
    info = _tried(url, lambda: files.info(path))
    versions = [str(info[key]) for key in sorted(info) if key.lower() in ("etag", "last-modified", "lastmodified")]
    return info.get("size"), " ".join(versions)


def remote_bytes(url: str, num_bytes: int | None) -> Iterator[bytes]:
    """The file, piece by piece. ShardError where it is not `num_bytes` long.

    num_bytes: as `remote_info` said.
    """
    files, path = file_system(url)
    at = failures = 0
    while num_bytes is None or at < num_bytes:
        try:
            with _opened_at(files, path, at) as file:
                pace = Pace(PATIENCE)
                while (num_bytes is None or at <= num_bytes) and (chunk := pace.read(file.read, _CHUNK_BYTES)):
                    if at == 0 and is_web_page(chunk):
                        raise InputError(f"{url}: a file expected, a web page found (a login?); check the address")
                    yield chunk
                    at += len(chunk)
                    failures = failures if len(chunk) < PATIENCE.least_bytes_per_s else 0
            if num_bytes is None:
                return
            if at < num_bytes:
                raise EOFError(f"{at:,} bytes came, {num_bytes:,} expected")
        except InputError:
            raise
        except Exception as error:  # each file system of fsspec has errors of its own
            failures += 1
            _wait_or_give_up(url, error, failures)
    if at > num_bytes:
        raise ShardError(f"{url}: {num_bytes:,} bytes expected, {at:,} came: it changed; run the same command again")


def remote_start(url: str, most_bytes: int) -> bytes:
    """The first `most_bytes` of a file, all of it where it has no more, whatever the server goes on sending."""
    pieces, left = [], most_bytes
    for chunk in remote_bytes(url, remote_info(url)[0]):
        pieces.append(chunk[:left])
        left -= len(pieces[-1])
        if not left:
            break
    return b"".join(pieces)


def remote_exists(url: str) -> bool:
    files, path = file_system(url)

    def exists() -> bool:
        try:
            files.info(path)
        except FileNotFoundError as error:
            status = status_of(error)
            if status in (404, 410) or (status is None and error.__cause__ is None):
                return False
            raise  # fsspec calls any answer so
        return True

    return _tried(url, exists)


def remote_sends_parts(url: str) -> bool:
    """Whether a part of a file can be read without the rest: not every HTTP server knows Range."""
    files, path = file_system(url)
    if "http" not in files.protocol:
        return True

    def answer() -> int:
        with files.open(path, "rb", block_size=0, headers={"Range": "bytes=0-0"}) as file:
            return getattr(file, "r").status  # noqa: B009 (as below)

    return any(_tried(url, answer) == 206 for _ in range(_TRIES_OF_PARTS))


def remote_range(url: str, start: int, stop: int) -> bytes:
    """Bytes [start, stop) of a file. EOFError where it gives fewer even at the last try.

    WholeFileError where a server that was taken to send parts sends all of it.
    """
    files, path = file_system(url)

    def bytes_there() -> Any:
        try:
            if files.async_impl:  # with a limit of time, for a server may send a byte now and then
                return sync(files.loop, files._cat_file, path, start=start, end=stop, timeout=_longest_s(stop - start))
            return files.cat_file(path, start=start, end=stop)
        except Exception as error:  # as above
            if status_of(error) == _BEYOND_THE_END:
                return b""
            raise

    for failures in range(1, _TRIES_OF_SHORT + 1):
        data = _tried(url, bytes_there)
        if len(data) >= stop and len(data) > stop - start:
            raise WholeFileError(url, data[start:stop])
        if len(data) == stop - start:
            return data
        if failures < _TRIES_OF_SHORT:
            time.sleep(PATIENCE.pause_s(failures))
    raise EOFError("fewer came")


def remote_ranges(wanted: Sequence[tuple[str, int, int]]) -> list[bytes | None]:
    """Many (url, start, stop) of one file system, side by side; None where one did not come at the first try."""
    files, _ = file_system(wanted[0][0])
    paths = [file_system(url)[1] for url, _, _ in wanted]
    starts, stops = [start for _, start, _ in wanted], [stop for _, _, stop in wanted]
    try:
        found = files.cat_ranges(paths, starts, stops, on_error="return")
    except Exception:  # as above; the caller tries each alone, and learns what is wrong
        return [None] * len(wanted)
    return [
        data if isinstance(data, bytes) and len(data) == stop - start else None
        for data, start, stop in zip(found, starts, stops, strict=True)
    ]


def _longest_s(num_bytes: int) -> float:
    return 2 * PATIENCE.timeout_s + num_bytes / PATIENCE.least_bytes_per_s


def said(error: BaseException) -> str:
    """What an error of some library says, on one line."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def file_system(url: str) -> tuple[Any, str]:
    """fsspec's file system of a URL, and the path in it. InputError where there is none, or it cannot be reached."""
    options = _patience() if url.startswith(("http://", "https://")) else {}

    def opened() -> tuple[Any, str]:
        try:
            if options:  # fsspec would take the colons of an IPv6 address for its chains of file systems
                return _http_files()(**options), url
            return url_to_fs(url, **options)
        except ImportError as error:
            raise InputError(
                f"{url}: cannot be opened: {said(error)}; s3:// needs `pip install 'hjepa[s3]'`"
            ) from error
        except ValueError as error:
            raise InputError(f"{url}: cannot be opened: {said(error)}; a URL that fsspec knows expected") from error

    return _tried(url, opened)


@functools.cache
def _http_files() -> type[fsspec.AbstractFileSystem]:
    """fsspec's, but of an answer to a range no more than to its end is taken: fsspec holds all that a server sends."""
    from fsspec.implementations.http import HTTPFileSystem  # for those who go there only

    class Bounded(HTTPFileSystem):
        async def _cat_file(self, url: str, start: int | None = None, end: int | None = None, **options: Any) -> Any:
            if start is None or end is None:
                return await super()._cat_file(url, start=start, end=end, **options)
            session: Any = await self.set_session()
            headers = {"Range": f"bytes={start}-{end - 1}"}
            async with session.get(self.encode_url(url), **{**self.kwargs, **options, "headers": headers}) as answer:
                self._raise_not_found_for_status(answer, url)
                most = end - start if answer.status == 206 else end  # all of a file, from its beginning on
                data = bytearray()
                async for chunk in answer.content.iter_chunked(_CHUNK_BYTES):
                    data += chunk
                    if len(data) >= most:
                        break
            return bytes(data[:most])

    return Bounded


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
        except InputError:
            raise
        except Exception as error:  # as above
            failures += 1
            _wait_or_give_up(url, error, failures)


def _wait_or_give_up(url: str, error: Exception, failures: int) -> None:
    """Sleep, longer each time. InputError where another try would be in vain."""
    status = status_of(error)
    in_vain = is_hopeless(error) or isinstance(error, ImportError | ValueError)
    if in_vain or PATIENCE.is_over(failures, answered=status is not None):
        cause = error.__cause__ or error
        what = f"answer {status}" if status else f"{type(cause).__name__}: {said(cause)}"
        raise InputError(f"{url}: cannot be fetched ({what}); {_advice(status, error)}") from error
    time.sleep(PATIENCE.pause_s(failures))


def _advice(status: int | None, error: Exception) -> str:
    if status in (401, 403) or isinstance(error, PermissionError) or "redential" in type(error).__name__:
        return "check the credentials and the address, then run the same command again"
    return "check the address and the connection, then run the same command again"
