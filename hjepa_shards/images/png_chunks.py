"""The chunks of a PNG: whether all of it is there, without decoding a pixel.

PNG specification, 3rd edition: https://www.w3.org/TR/png-3/
"""

import zlib
from collections.abc import Iterator

from zlib_ng.zlib_ng import crc32

_SIGNATURE_BYTES = 8
_CHANNELS = {2: 3, 4: 2, 6: 4}
"""By colour type; else 1."""
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""Of an interlaced PNG: first column, first row, and the steps between columns and rows."""
_INFLATED_AT_ONCE = 1 << 20


def png_is_whole(data: bytes) -> bool:
    """Whether it has image data and an end, and the CRC of every chunk is right."""
    has_pixels = False
    for kind, start, stop in _chunks(data):
        if crc32(data[start - 4 : stop]) != int.from_bytes(data[stop : stop + 4]):
            return False
        has_pixels |= kind == b"IDAT" and stop > start
        if kind == b"IEND":
            return has_pixels
    return False


def png_has_all_rows(data: bytes) -> bool:
    """Whether the compressed data of a PNG are as long as its rows: decoders may take fewer for black ones."""
    inflater, left = zlib.decompressobj(), _row_bytes(data)
    try:
        for kind, start, stop in _chunks(data):
            chunk = data[start:stop] if kind == b"IDAT" else b""
            while chunk and left > 0 and not inflater.eof:
                left -= len(inflater.decompress(chunk, _INFLATED_AT_ONCE))
                chunk = inflater.unconsumed_tail
        return left <= 0 or left <= len(inflater.flush())
    except (zlib.error, IndexError):
        return False


def png_without_cut_end(data: bytes) -> bytes:
    """The chunks that are all there, where the last one is cut short; else the same bytes.

    Pillow loses an image whose rows are all there over it.
    """
    end, has_pixels = _SIGNATURE_BYTES, False
    for kind, _, stop in _chunks(data):
        end = stop + 4
        has_pixels |= kind == b"IDAT"
        if kind == b"IEND":
            return data
    return data[:end] if has_pixels else data


def _row_bytes(data: bytes) -> int:
    """Bytes of all rows before compression, each after its filter's byte."""
    width, height = int.from_bytes(data[16:20]), int.from_bytes(data[20:24])
    bits = data[24] * _CHANNELS.get(data[25], 1)
    passes = _PASSES if data[28] else ((0, 0, 1, 1),)
    total = 0
    for left, top, right, down in passes:
        columns, rows = -(-(width - left) // right), -(-(height - top) // down)
        total += rows * (1 + -(-columns * bits // 8)) if columns > 0 else 0
    return total


def _chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and stop of the content of every chunk that is all there."""
    offset = _SIGNATURE_BYTES
    while offset + 12 <= len(data):
        start, stop = offset + 8, offset + 8 + int.from_bytes(data[offset : offset + 4])
        if stop + 4 > len(data):
            return
        yield data[offset + 4 : start], start, stop
        offset = stop + 4
