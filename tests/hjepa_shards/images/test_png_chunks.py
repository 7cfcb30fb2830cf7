"""PNGs whose pixels are not all there: no build stores them, no reader shows them; PNGs that only look damaged stay."""

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from hjepa_shards.errors import DecodeError
from hjepa_shards.images.decode import decode
from hjepa_shards.images.encode import JPEG_256, KEEP, PNG, EncodeSettings, encode
from hjepa_shards.images.image_formats import Codec, Colour
from hjepa_shards.images.image_integrity import is_whole
from hjepa_shards.images.png_chunks import png_has_all_rows
from hjepa_shards.loader.png_batch import Job, show_pngs
from hjepa_shards.shards.sidecar import Row

WIDTH, HEIGHT = 40, 30
SETTINGS = (PNG, JPEG_256, EncodeSettings(pixels="jpeg", encoder="pillow"))
PIXELS = np.random.Generator(np.random.Philox(2)).integers(1, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
ROWS = b"".join(b"\0" + row.tobytes() for row in PIXELS)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(compressed: bytes, *before: bytes, end: bytes = chunk(b"IEND", b"")) -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(before) + chunk(b"IDAT", compressed) + end


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 64]) + data[at + 1 :]


WHOLE = png(zlib.compress(ROWS))
HALF = len(ROWS) // HEIGHT * (HEIGHT // 2)
ORIENTED = (chunk(b"eXIf", Image.Exif().tobytes()[6:]),)
DAMAGED = {
    "half the rows": png(zlib.compress(ROWS[:HALF])),
    "half the rows, with EXIF": png(zlib.compress(ROWS[:HALF]), *ORIENTED),
    "cut in a row": png(zlib.compress(ROWS[: HALF + 9])),
    "a flipped bit": flipped(WHOLE, len(WHOLE) // 2),
    "a flipped bit, with EXIF": flipped(png(zlib.compress(ROWS), *ORIENTED), len(WHOLE) // 2),
    "a wrong filter": png(zlib.compress(ROWS[:HALF] + b"\x77" + ROWS[HALF + 1 :])),
    "no image data": png(b"")[:33] + chunk(b"IEND", b""),
    "cut short": WHOLE[: len(WHOLE) // 2],
}
SOUND = {
    "as written": WHOLE,
    "a wrong CRC and right data": png(zlib.compress(ROWS), end=b"")[:-1] + b"\0" + chunk(b"IEND", b""),
    "no end": png(zlib.compress(ROWS), end=b""),
    "a cut chunk after the last row": png(zlib.compress(ROWS), end=chunk(b"IDAT", bytes(99))[:50]),
    "rubbish after the last row": png(zlib.compress(ROWS + bytes(50))),
    "ends black": png(zlib.compress(ROWS[:HALF] + bytes(len(ROWS) - HALF))),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_pngs_are_refused_by_every_build_and_reader(name: str) -> None:
    data = DAMAGED[name]
    for settings in SETTINGS:
        with pytest.raises(DecodeError):
            encode(data, settings)
    with pytest.raises(DecodeError):
        decode(data, Colour.RGB, 1)
    assert not shown_in_a_batch(data)
    if name not in ("half the rows", "half the rows, with EXIF", "cut in a row", "a wrong filter"):  # CRCs are right
        with pytest.raises(DecodeError):
            encode(data, KEEP)


@pytest.mark.parametrize("name", SOUND)
def test_pngs_with_all_their_pixels_are_stored(name: str) -> None:
    data = SOUND[name]
    expected = np.array(PIXELS)
    if name == "ends black":
        expected[HEIGHT // 2 :] = 0
    for settings in (PNG, KEEP):
        assert np.array_equal(np.asarray(Image.open(io.BytesIO(encode(data, PNG).data))), expected), settings
    assert encode(data, KEEP).data == data
    assert np.array_equal(decode(data, Colour.RGB, 1), expected)


def shown_in_a_batch(data: bytes) -> bool:
    values = dict.fromkeys(Row._fields, 0) | {"image_crc32": zlib.crc32(data), "width": WIDTH, "height": HEIGHT}
    row = Row(**values | {"codec": Codec.PNG, "colour": Colour.RGB, "orientation": 1})
    [shown] = show_pngs([Job(data, row, [(0, 0, HEIGHT, WIDTH)], 0)], np.zeros((1, 32, 32, 3), np.uint8))
    return shown


def test_a_wrong_crc_is_left_to_pillow_by_the_fast_decoder() -> None:
    assert not shown_in_a_batch(SOUND["a wrong CRC and right data"])


@pytest.mark.parametrize("mode", ["1", "L", "RGB", "RGBA", "P", "LA", "I;16"])
def test_the_rows_of_every_kind_are_counted(mode: str) -> None:
    for size in ((1, 1), (3, 2), (17, 9), (40, 30)):
        buffer = io.BytesIO()
        Image.new("I;16" if mode == "I;16" else mode, size).save(buffer, "PNG")
        assert png_has_all_rows(buffer.getvalue())
        assert not png_has_all_rows(taller(buffer.getvalue(), size[1] + 1))


def taller(data: bytes, height: int) -> bytes:
    header = bytearray(data[16:29])
    header[4:8] = struct.pack(">I", height)
    return data[:8] + chunk(b"IHDR", bytes(header)) + data[33:]


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 5), (8, 8), (13, 7)])
def test_the_rows_of_interlaced_pngs_are_counted(size: tuple[int, int]) -> None:
    """By the specification's figure: which pass shows which pixel of a block of 8 x 8."""
    figure = [
        "16462646", "77777777", "56565656", "77777777",
        "36463646", "77777777", "56565656", "77777777",
    ]  # fmt: skip
    width, height = size
    num_bytes = 0
    for number in "1234567":
        rows = [sum(figure[y % 8][x % 8] == number for x in range(width)) for y in range(height)]
        num_bytes += sum(1 + 3 * row for row in rows if row)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 1)
    for missing in (0, 1):
        rows = zlib.compress(bytes(num_bytes - missing))
        data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
        assert png_has_all_rows(data) == (not missing)


def lossless_jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS).save(buffer, "JPEG")
    return buffer.getvalue().replace(b"\xff\xc0", b"\xff\xc3", 1)


@pytest.mark.parametrize("make", [lossless_jpeg, lambda: DAMAGED["no image data"]])
def test_what_the_walk_over_parts_cannot_judge_is_doubtful(make: Callable[[], bytes]) -> None:
    assert not is_whole(make())
    with pytest.raises(DecodeError):  # which the decoder settles
        encode(make(), KEEP)
