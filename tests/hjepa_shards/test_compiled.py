"""The compiled parts give what Python's do, refuse what they are not written for, and survive any bytes."""

import ctypes
import mmap
import os
import struct
import sys
import zlib
from collections.abc import Iterator
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from tests.hjepa_shards.loader.test_loader import SOURCES, delivered, mix, opener

_resize = pytest.importorskip(
    "hjepa_shards.images._resize", reason="not compiled here, or no AVX2", exc_type=ImportError
)
_pread = pytest.importorskip("hjepa_shards.loader._pread", reason="not compiled here")
_png = pytest.importorskip("hjepa_shards.images._png", reason="not compiled here")
_jpeg = pytest.importorskip("hjepa_shards.images._jpeg", reason="not compiled here")


# ---- resize


@pytest.fixture(params=[True, False], ids=["AVX-512", "AVX2"])
def vectors(request: pytest.FixtureRequest) -> Iterator[None]:
    """What the resize is done with."""
    if _resize.use_avx512(request.param) != request.param:
        pytest.skip("no AVX-512 VBMI here")
    yield
    _resize.use_avx512(True)


@pytest.mark.usefixtures("vectors")
def test_our_resize_gives_opencvs_pixels() -> None:
    rng = np.random.default_rng(0)
    for attempt in range(600):
        whole = rng.integers(0, 256, (*rng.integers(3, 300, 2), 3), np.uint8)
        whole[rng.random(whole.shape) < 0.3] = 255  # where sums would overflow
        top, left = rng.integers(0, whole.shape[0]), rng.integers(0, whole.shape[1] - 2)
        part = whole[top : top + rng.integers(1, 300), left : left + rng.integers(3, 300)]
        rows, columns = rng.integers(1, 300, 2) if attempt % 3 else (224, 224)
        if attempt % 5 == 0:  # OpenCV averages here
            rows, columns = max(1, part.shape[0] // 2), part.shape[1] // 2
            part = part[: 2 * rows, : 2 * columns] if columns > 1 else part
        batch = np.full((3, rows, columns, 3), 77, np.uint8)
        _resize.bilinear(part, batch[1])
        expected = cv2.resize(part, (int(columns), int(rows)), interpolation=cv2.INTER_LINEAR)
        assert np.array_equal(batch[1], expected), (part.shape, rows, columns)
        assert (batch[[0, 2]] == 77).all()


def test_our_means_are_opencvs() -> None:
    rng = np.random.default_rng(0)
    for attempt in range(600):
        whole = rng.integers(0, 256, (*rng.integers(2, 400, 2), 3), np.uint8)
        whole[rng.random(whole.shape) < 0.3] = 255
        top, left = rng.integers(0, whole.shape[0]), rng.integers(0, whole.shape[1] - 1)
        part = whole[top : top + rng.integers(1, 400), left : left + rng.integers(2, 400)]
        height, width = part.shape[:2]
        rows, columns = rng.integers(1, height + 1), rng.integers(1, width + 1)
        if attempt % 3:  # as of photographs, and more
            rows, columns = max(1, int(height / rng.uniform(1, 3))), max(1, int(width / rng.uniform(1, 12)))
        batch = np.full((3, rows, columns, 3), 77, np.uint8)
        expected = batch[1]
        if height % rows or width % columns:
            _resize.mean(part, batch[1])
            expected = cv2.resize(part, (int(columns), int(rows)), interpolation=cv2.INTER_AREA)
        else:
            with pytest.raises(ValueError, match="not by whole numbers"):
                _resize.mean(part, batch[1])
        assert np.array_equal(batch[1], expected), (part.shape, rows, columns)
        assert (batch[[0, 2]] == 77).all()


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux to guard a page of memory")
@pytest.mark.parametrize("size", [(3, 3), (5, 4), (40, 30), (2, 900)])
@pytest.mark.usefixtures("vectors")
def test_nothing_is_read_before_or_past_an_image(size: tuple[int, int]) -> None:
    height, width = size
    page, num_bytes = mmap.PAGESIZE, 3 * height * width
    pages = -(-num_bytes // page)
    memory = mmap.mmap(-1, (pages + 2) * page)
    bytes_of_it = np.frombuffer(memory, np.uint8)
    for guard in (0, pages + 1):
        assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(bytes_of_it.ctypes.data + guard * page), page, 0) == 0
    for start in (page, (pages + 1) * page - num_bytes):
        image = bytes_of_it[start : start + num_bytes].reshape(height, width, 3)
        image[:] = np.random.default_rng(0).integers(0, 256, image.shape)
        for rows, columns in ((2, 2), (1, 2), (height, width - 1)):
            out = np.zeros((rows, columns, 3), np.uint8)
            _resize.bilinear(image, out)
            if height % rows or width % columns:
                _resize.mean(image, out)


def test_our_resize_refuses_what_it_is_not_written_for() -> None:
    image, slot = np.zeros((9, 9, 3), np.uint8), np.zeros((4, 4, 3), np.uint8)
    for source, out in (
        (image[:, :2], slot),
        (image[..., :2], slot),
        (image[::-1], slot),
        (image[:, ::2], slot),
        (image[0], slot),
        (image[:0], slot),
        (image.astype(np.uint16), slot),
        (image, slot[:, :3]),
        (image, slot[:0]),
    ):
        with pytest.raises(ValueError, match="at least 3 wide"):
            _resize.bilinear(source, out)
        with pytest.raises(ValueError, match="larger than what is written to"):
            _resize.mean(source, out)
    slot.flags.writeable = False
    for resize in (_resize.bilinear, _resize.mean):
        with pytest.raises(ValueError, match="read-only"):
            resize(image, slot)
    with pytest.raises(ValueError, match="larger than what is written to"):
        _resize.mean(image[:3], np.zeros((4, 4, 3), np.uint8))


@pytest.mark.usefixtures("vectors")
def test_many_crops_are_resized_as_one_by_one() -> None:
    rng = np.random.default_rng(0)
    slots, crops, expected = np.full((20, 32, 32, 3), 77, np.uint8), [], np.full((20, 32, 32, 3), 77, np.uint8)
    for number in rng.permutation(20)[:15].tolist():
        height, width = rng.integers(34, 90, 2).tolist()
        image = rng.integers(0, 256, (height, width, 3), np.uint8)
        h, w = (32, 32) if number % 4 == 0 else (int(rng.integers(1, height + 1)), int(rng.integers(3, width + 1)))
        top, left = int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1))
        crops.append((image.tobytes(), height, width, top, left, h, w, number))
        expected[number] = cv2.resize(image[top : top + h, left : left + w], (32, 32), interpolation=cv2.INTER_LINEAR)
    _resize.bilinear_many(crops, slots)
    assert np.array_equal(slots, expected)
    _resize.bilinear_many([], slots)


@pytest.mark.parametrize(
    ("crop", "shape"),
    [
        ((b"x" * 27, 3, 3, 0, 0, 3, 4, 0), (1, 4, 4, 3)),
        ((b"x" * 27, 3, 3, 1, 0, 3, 3, 0), (1, 4, 4, 3)),
        ((b"x" * 27, 3, 3, -1, 0, 3, 3, 0), (1, 4, 4, 3)),
        ((b"x" * 27, 3, 3, 0, 0, 3, 2, 0), (1, 4, 4, 3)),
        ((b"x" * 26, 3, 3, 0, 0, 3, 3, 0), (1, 4, 4, 3)),
        ((b"x" * 27, 3, 3, 0, 0, 3, 3, 1), (1, 4, 4, 3)),
        ((b"x" * 27, 3, 3, 0, 0, 3, 3, -1), (1, 4, 4, 3)),
        ((b"x" * 27, 3, 3, 0, 0, 3, 3, 0), (1, 4, 5, 3)),
        ((b"x" * 27, 3, 3, 0, 0, 3, 3, 0), (4, 4, 3)),
    ],
)
def test_crops_outside_of_their_images_are_refused(crop: tuple[object, ...], shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="crops that lie in their images"):
        _resize.bilinear_many([crop], np.zeros(shape, np.uint8))


# ---- reads


def test_many_reads_are_those_of_os_pread(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    data = rng.bytes(100_000)
    (tmp_path / "a").write_bytes(data)
    descriptor = os.open(tmp_path / "a", os.O_RDONLY)
    spans = [(int(rng.integers(0, 99_000)), int(rng.integers(0, 1000))) for _ in range(50)]
    assert _pread.preads([(descriptor, at, num) for at, num in spans]) == [data[at : at + num] for at, num in spans]
    assert _pread.preads([(descriptor, 99_990, 20), (descriptor, 99_990, 10)]) == [None, data[-10:]], "past the end"
    assert _pread.preads([]) == []
    os.close(descriptor)
    assert _pread.preads([(descriptor, 0, 5)]) == [None]


@pytest.mark.parametrize("wanted", [None, [(1, 2)], [(0, 0, -1)], [("a", 0, 1)], [3]])
def test_reads_that_are_none_are_refused(wanted: object) -> None:
    with pytest.raises((TypeError, SystemError)):
        _pread.preads(wanted)


# ---- small PNGs


def stored(image: Image.Image, **options: object) -> bytes:
    buffer = BytesIO()
    image.save(buffer, "PNG", **options)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(pixels: NDArray[np.uint8], filters: NDArray[np.uint8], *, parts: int = 1, between: bytes = b"") -> bytes:
    """[H, W, 3] or [H, W] with a filter a row, its data in several chunks."""
    height, width, *channels = pixels.shape
    step = 3 if channels else 1
    rows = pixels.reshape(height, -1).astype(np.int64)
    above = np.vstack([np.zeros_like(rows[:1]), rows[:-1]])
    left = np.hstack([np.zeros((height, step), np.int64), rows[:, :-step]])
    corner = np.hstack([np.zeros((height, step), np.int64), above[:, :-step]])
    base = left + above - corner
    distances = np.stack([abs(base - left), abs(base - above), abs(base - corner)])
    paeth = np.choose(distances.argmin(0), [left, above, corner])
    filtered = np.stack([rows, rows - left, rows - above, rows - (left + above) // 2, rows - paeth])
    chosen = filtered[filters, np.arange(height)] % 256
    data = zlib.compress(np.hstack([filters[:, None], chosen]).astype(np.uint8).tobytes())
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if step == 3 else 0, 0, 0, 0)
    cuts = np.linspace(0, len(data), parts + 1).astype(int)
    chunks = [chunk(b"IDAT", data[a:b]) for a, b in pairwise(cuts)]
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + between + b"".join(chunks) + chunk(b"IEND", b"")


def of_pillow(data: bytes) -> NDArray[np.uint8]:
    with Image.open(BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def decoded(*images: tuple[bytes, int, int]) -> list[bytes | None]:
    """With libdeflate, where it is, and without."""
    wanted = [(data, zlib.crc32(data), height, width) for data, height, width in images]
    found = _png.decode_pngs(wanted)
    assert found == _png.decode_pngs(wanted, True)
    return found


def test_small_pngs_are_decoded_as_by_pillow() -> None:
    rng = np.random.default_rng(0)
    images = []
    for attempt in range(200):
        height, width = rng.integers(1, 60, 2).tolist()
        shape = (height, width, 3) if attempt % 3 else (height, width)
        pixels = rng.integers(0, 256, shape, np.uint8)
        if attempt % 2:
            pixels = np.cumsum(pixels % 3, axis=1).astype(np.uint8)
        text = chunk(b"tEXt", b"by\0no one") if attempt % 4 == 0 else b""
        data = png(pixels, rng.integers(0, 5, height).astype(np.uint8), parts=1 + attempt % 3, between=text)
        images.append((data, height, width))
        images.append((stored(Image.fromarray(pixels)), height, width))
    for (data, height, width), found in zip(images, decoded(*images), strict=True):
        assert found is not None
        assert np.array_equal(np.frombuffer(found, np.uint8).reshape(height, width, 3), of_pillow(data))


def test_what_is_not_a_plain_png_is_left_to_python() -> None:
    rgb = Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8))
    good = stored(rgb)
    interlaced = good[:28] + b"\1" + struct.pack(">I", zlib.crc32(good[12:28] + b"\1")) + good[33:]
    for data in (
        stored(rgb.convert("P")),
        stored(rgb.convert("RGBA")),
        stored(rgb.convert("L").convert("I;16")),
        stored(rgb.convert("1")),
        stored(rgb, transparency=(1, 2, 3)),
        interlaced,
        good[:-20],
        good[:40],
        b"",
        good.replace(b"IDAT", b"IDOT"),
        good.replace(b"IEND", b"IDAT"),
    ):
        assert decoded((data, 9, 7)) == [None]
    assert decoded((good, 7, 9)) == [None], "not the size that the index says"
    for by_zlib in (False, True):
        assert _png.decode_pngs([(good, zlib.crc32(good) ^ 1, 9, 7)], by_zlib) == [None], "not the bytes"
    assert decoded((good, 9, 7), (b"", 3, 3), (good, 9, 7))[::2] == [rgb.tobytes()] * 2


@pytest.mark.parametrize(
    "wanted", [None, [(b"", 0, 0, 5)], [(b"", 0, 1 << 20, 1 << 12)], [("", 0, 1, 1)], [(b"", 0, 1)]]
)
def test_images_that_are_none_are_refused(wanted: object) -> None:
    with pytest.raises((TypeError, ValueError)):
        _png.decode_pngs(wanted)


def test_any_bytes_are_survived() -> None:
    rng = np.random.default_rng(0)
    pixels, filters = rng.integers(0, 256, (8, 8, 3), np.uint8), rng.integers(0, 5, 8).astype(np.uint8)
    good = [bytearray(png(pixels, filters, parts=parts)) for parts in (1, 2)]
    for attempt in range(3000):
        data = good[attempt % 2].copy()
        for at in rng.integers(8, len(data), rng.integers(1, 4)).tolist():
            data[at] = int(rng.choice([0, 255, data[at] ^ 1 << int(rng.integers(8)), int(rng.integers(256))]))
        [found] = decoded((bytes(data[: rng.integers(20, len(data) + 1)]), 8, 8))
        assert found is None or len(found) == 8 * 8 * 3


# ---- together


def test_without_the_compiled_parts_batches_are_the_same(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mixture = mix(shards, SOURCES)
    expected = delivered(opener(mixture), 120, global_batch=24)
    monkeypatch.setattr("hjepa_shards.images.decode.bilinear", None)
    monkeypatch.setattr("hjepa_shards.images.decode.mean", None)
    monkeypatch.setattr("hjepa_shards.loader.shard_store.preads", None)
    monkeypatch.setattr("hjepa_shards.loader.png_batch.decode_pngs", None)
    assert delivered(opener(mixture), 120, global_batch=24) == expected


# ---- the size of a JPEG


def jpeg(height: int, width: int, **options: Any) -> bytes:
    buffer = BytesIO()
    Image.fromarray(np.zeros((height, width, 3), np.uint8)).save(buffer, "JPEG", **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"progressive": True},
        {"comment": b"\xff\xc0\x00\x11\x08\x00\x01\x00\x01"},
        {"exif": b"Exif\0\0" + bytes(9000)},
    ],
)
def test_a_jpegs_pixels_are_those_of_its_own_frame(options: dict[str, Any]) -> None:
    """Not of a thumbnail's, or of what looks like one in a comment."""
    data = jpeg(300, 7, **options)
    assert _jpeg.num_pixels(data) == 2100
    start = data.index(b"\xff\xc2" if "progressive" in options else b"\xff\xc0", 0 if "comment" not in options else 60)
    for end in range(start):
        assert _jpeg.num_pixels(data[:end]) == -1


def test_a_jpeg_that_is_unusual_is_left_to_the_library() -> None:
    data = jpeg(30, 7)
    for unusual in (
        b"",
        b"\xff",
        data[:2] + b"\xff" + data[2:],
        data[:2] + b"x" + data[2:],
        data[:4] + bytes(2) + data[6:],
    ):
        assert _jpeg.num_pixels(unusual) == -1
    with pytest.raises(TypeError):
        _jpeg.num_pixels(bytearray(data))
    random = np.random.default_rng(0)
    for _ in range(2000):
        changed = bytearray(data[: random.integers(0, 700)])
        for _ in range(min(4, len(changed))):
            changed[random.integers(len(changed))] = random.choice([0, 0xFF, 0xC0, 0xD8, 0xE0, random.integers(256)])
        assert -1 <= _jpeg.num_pixels(bytes(changed)) < 2**32
