"""Compressed bytes made plain: gzip, zstd, bzip2 or xz, known by their first bytes, because file names can be wrong.

A stream is fed in small pieces: what a piece can become is bounded, so a bomb fills no memory (zstd makes at most
128 MiB of 4 KiB). Several streams in a row are one (pigz and zstd write such), and one that is cut short is an error,
which zstandard's own reader does not notice.
"""

import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import zstandard

from hjepa_shards.errors import ShardError
from hjepa_shards.storage.remote_files import said

_PIECE_BYTES = 4096
_MAX_XZ_MEMORY = 1 << 30


class _Stream(Protocol):
    """What decompressors of zlib, bz2, lzma and zstandard have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: Any, /) -> bytes: ...


_STREAMS: dict[bytes, Callable[[], Any]] = {
    b"\x1f\x8b": lambda: zlib.decompressobj(wbits=31),
    b"\x28\xb5\x2f\xfd": lambda: zstandard.ZstdDecompressor().decompressobj(),
    b"BZh": bz2.BZ2Decompressor,
    b"\xfd7zXZ\0": lambda: lzma.LZMADecompressor(memlimit=_MAX_XZ_MEMORY),
}
_DAMAGED = (zlib.error, zstandard.ZstdError, lzma.LZMAError, OSError, EOFError)
"""What they raise; bz2 an OSError."""


def is_compressed(start: bytes) -> bool:
    """Whether a file that starts so is compressed."""
    return _stream_for(start) is not None


def inflated(chunks: Iterator[bytes], where: str) -> Iterator[bytes]:
    """The plain bytes of `chunks`, which may be plain already. ShardError where they are damaged or cut short.

    where: what to call them in errors.
    """
    first = next(chunks, b"")
    begin = _stream_for(first)
    if begin is None:
        yield first
        yield from chunks
        return
    try:
        yield from _streams(first, chunks, begin)
    except _DAMAGED as error:
        raise ShardError(f"{where}: cannot be decompressed ({said(error)}); fetch it again") from error


def _stream_for(start: bytes) -> Callable[[], _Stream] | None:
    return next((begin for magic, begin in _STREAMS.items() if start.startswith(magic)), None)


def _streams(first: bytes, chunks: Iterator[bytes], begin: Callable[[], _Stream]) -> Iterator[bytes]:
    """Streams in a row, and the zeros that may follow the last."""
    stream: _Stream | None = begin()
    chunk = first
    while chunk:
        view = memoryview(chunk)
        for at in range(0, len(view), _PIECE_BYTES):
            left: Any = view[at : at + _PIECE_BYTES]
            while left:
                if stream is None:
                    left = bytes(left).lstrip(b"\0")
                    if not left:
                        break
                    stream = begin()
                yield stream.decompress(left)
                left = stream.unused_data if stream.eof else b""
                stream = None if stream.eof else stream
        chunk = next(chunks, b"")
    if stream is not None:
        raise EOFError("cut short")
