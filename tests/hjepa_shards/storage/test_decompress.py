"""Compressed bytes made plain: by what they are, in bounded memory, and never cut short silently."""

import bz2
import gzip
import itertools
import lzma
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from hjepa_shards.errors import ShardError
from hjepa_shards.storage.decompress import inflated, is_compressed

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "zstd": lambda data: zstandard.ZstdCompressor(write_checksum=True).compress(data),
    "bzip2": bz2.compress,
    "xz": lzma.compress,
}
CONTENT = np.random.Generator(np.random.Philox(3)).integers(0, 50, 300_000, dtype=np.uint8).tobytes()


def plain(data: bytes, piece: int = 10_000) -> bytes:
    chunks = iter([data[at : at + piece] for at in range(0, len(data), piece)])
    return b"".join(inflated(chunks, "x.tar"))


@pytest.mark.parametrize("name", COMPRESS)
def test_what_was_compressed_comes_back(name: str) -> None:
    compressed = COMPRESS[name](CONTENT)
    assert is_compressed(compressed)
    assert plain(compressed) == CONTENT
    assert plain(compressed + compressed) == CONTENT + CONTENT
    assert plain(compressed + bytes(20_000)) == CONTENT


def test_plain_bytes_stay_as_they_are() -> None:
    assert not is_compressed(CONTENT)
    assert plain(CONTENT) == CONTENT
    assert plain(b"") == b""


@pytest.mark.parametrize("name", COMPRESS)
def test_what_was_cut_short_or_changed_is_refused(name: str) -> None:
    compressed = COMPRESS[name](CONTENT)
    for cut in (1, 9, len(compressed) // 2):
        with pytest.raises(ShardError, match=r"x\.tar: cannot be decompressed .*fetch it again"):
            plain(compressed[:-cut])
    changed = bytearray(compressed)
    changed[len(changed) // 2] ^= 64
    with pytest.raises(ShardError, match="cannot be decompressed"):
        plain(bytes(changed))
    with pytest.raises(ShardError, match="cannot be decompressed"):
        plain(compressed + b"not another stream")


@pytest.mark.parametrize("name", ["gzip", "zstd"])
def test_a_bomb_fills_no_memory(name: str) -> None:
    if name == "gzip":
        bomb = gzip.compress(bytes(1 << 28), 9)
    else:
        bomb = zstandard.ZstdCompressor().compress(bytes(1 << 28))
    assert len(bomb) < 1 << 20
    tracemalloc.start()
    total = sum(map(len, inflated(iter([bomb]), "x.tar")))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert total == 1 << 28
    assert peak < 140 << 20


def test_a_stream_that_wants_gigabytes_of_memory_is_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=31, enable_ldm=True)
    data = zstandard.ZstdCompressor(compression_params=parameters).compressobj().compress(b"x")
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    data = stream.compress(CONTENT) + stream.flush()
    with pytest.raises(ShardError, match="cannot be decompressed"):
        plain(data)


@given(
    data=st.binary(max_size=200), start=st.sampled_from([b"\x1f\x8b\x08", b"\x28\xb5\x2f\xfd", b"BZh9", b"\xfd7zXZ\0"])
)
def test_any_bytes_give_our_error_or_bytes(data: bytes, start: bytes) -> None:
    try:
        for _ in itertools.islice(inflated(iter([start + data]), "x.tar"), 1000):
            pass
    except ShardError:
        return
