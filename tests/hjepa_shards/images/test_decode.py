"""The fast decoders agree with Pillow, the reference; a crop lands in its slot."""

import io
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg
from PIL import Image

from hjepa_shards.duplicates.perceptual_hash import small_pixels
from hjepa_shards.errors import DecodeError
from hjepa_shards.images.decode import crop_into, decode, fitted
from hjepa_shards.images.encode import KEEP, encode
from hjepa_shards.images.image_formats import Colour, inspect, opened
from hjepa_shards.images.rgb_pixels import to_rgb
from hjepa_shards.sources.own.bundled import inside_sklearn
from tests.hjepa_shards.images.test_image_formats import HEIGHT, WIDTH, saved, scene, turned


def decoded(data: bytes) -> np.ndarray:
    info = inspect(data)
    return decode(data, info.colour, info.orientation)


def by_pillow(data: bytes) -> np.ndarray:
    with opened(data) as image:
        return np.asarray(to_rgb(image))


@pytest.mark.parametrize("codec", ["PNG", "JPEG", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA", "LA", "CMYK"])
def test_every_mode_decodes_as_pillow_does(codec: str, mode: str) -> None:
    try:
        data = saved(scene().convert(mode), codec)
    except OSError:
        pytest.skip(f"Pillow writes no {codec} of {mode}")
    difference = np.abs(decoded(data).astype(int) - by_pillow(data))
    assert difference.max() <= (4 if codec == "JPEG" else 2)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turned_images_come_upright(orientation: int) -> None:
    assert np.array_equal(decoded(turned(orientation)), np.asarray(scene()))


def test_sixteen_bit_rgb_keeps_its_upper_eight_bits() -> None:
    deep = np.array([[[0x0102, 0x80FF, 0xFFFF]]], np.uint16)
    ok, data = cv2.imencode(".png", deep)
    assert ok
    assert decoded(data.tobytes())[0, 0].tolist() == [0xFF, 0x80, 0x01]


@pytest.mark.parametrize("codec", ["PNG", "WEBP"])
def test_of_an_animation_the_first_frame_is_shown(codec: str) -> None:
    frames = [scene().convert("L"), Image.new("L", (WIDTH, HEIGHT), 255)]
    data = saved(frames[0].convert("RGB"), codec, save_all=True, append_images=frames[1:], lossless=True)
    assert np.array_equal(decoded(data)[..., 0], np.asarray(frames[0]))


def test_stray_bytes_in_a_jpeg_do_not_make_it_damaged() -> None:
    data = saved(scene(), "JPEG")
    stray = data[:20] + b"\0\0\0" + data[20:]  # after the JFIF segment
    with pytest.raises(ValueError, match="extraneous"):
        simplejpeg.decode_jpeg(stray)
    encode(stray, KEEP)  # Pillow takes it, so a build stores it
    assert np.array_equal(decoded(stray), decoded(data))


@pytest.mark.parametrize("codec", ["PNG", "JPEG", "WEBP"])
def test_truncated_images_are_decode_errors(codec: str) -> None:
    data = saved(scene(), codec)
    with pytest.raises(DecodeError):
        decode(data[: len(data) * 2 // 3], inspect(data).colour, 1)


def jpeg_bomb() -> bytes:
    """Some hundred bytes that ask for 1.2 GB."""
    data = bytearray(simplejpeg.encode_jpeg(np.zeros((64, 64, 3), np.uint8)))
    size_at = data.index(b"\xff\xc0") + 5
    data[size_at : size_at + 4] = struct.pack(">HH", 20000, 20000)
    return bytes(data)


def png_bomb() -> bytes:
    """Fifty kilobytes that are 1.2 GB: all rows are there, of one bit a pixel."""
    head = struct.pack(">IIBBBBB", 20000, 20000, 1, 0, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"IDAT", zlib.compress(bytes(20000 * 2501), 1)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


@pytest.mark.parametrize("shrink", [1, 8])
@pytest.mark.parametrize("bomb", [jpeg_bomb, png_bomb])
def test_a_bomb_is_refused_before_memory_is_taken_whatever_its_sidecar_says(
    bomb: Callable[[], bytes], shrink: int
) -> None:
    data = bomb()
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError, match="a decompression bomb: 20000 x 20000 pixels"):
            decode(data, Colour.RGB, 1, shrink)
        if bomb is jpeg_bomb:
            with pytest.raises(DecodeError, match="a decompression bomb"):
                small_pixels(data, 640, 480, Colour.RGB, 1)
        assert tracemalloc.get_traced_memory()[1] < 1 << 24
    finally:
        tracemalloc.stop()


def test_odd_images_decode_as_pillow_does(real_data: Path) -> None:
    agreed = 0
    for path in sorted((real_data / "odd").iterdir()):
        try:
            data = encode(path.read_bytes(), KEEP).data
        except DecodeError:
            continue
        found, expected = decoded(data), by_pillow(data)
        assert found.shape == expected.shape, path.name
        assert np.abs(found.astype(int) - expected).mean() < 1, path.name
        agreed += 1
    assert agreed >= 40


@pytest.mark.parametrize("shrink", [2, 4, 8])
def test_a_smaller_image_is_the_mean_of_the_whole_one(shrink: int) -> None:
    with Image.open(inside_sklearn("datasets/images/flower.jpg")) as photo:
        data = saved(photo.crop((0, 0, 16 * 19 + 3, 16 * 15 + 1)), "JPEG", quality=95)
    found = decode(data, Colour.RGB, 1, shrink).astype(int)
    assert found.shape == (-(-241 // shrink), -(-307 // shrink), 3)
    whole = decode(data, Colour.RGB, 1)[: 240 // shrink * shrink, : 304 // shrink * shrink].astype(int)
    rows, columns = 240 // shrink, 304 // shrink
    means = whole.reshape(rows, shrink, columns, shrink, 3).mean((1, 3))
    assert np.abs(found[:rows, :columns] - means).mean() < 2
    png = saved(Image.fromarray(whole.astype(np.uint8)), "PNG")
    assert np.array_equal(decode(png, Colour.RGB, 1, shrink), whole), "where it is not cheap it comes whole"


def test_a_crop_that_is_shown_smaller_is_on_whole_pixels_there() -> None:
    def found(*crop: int) -> tuple[list[int], int]:
        [fit], [shrink] = fitted(np.array([crop]), 224)
        return fit.tolist(), int(shrink)

    assert found(3, 5, 447, 600) == ([3, 5, 447, 600], 1)
    assert found(3, 5, 449, 600) == ([2, 4, 448, 600], 2)
    assert found(3, 5, 901, 899) == ([0, 4, 900, 896], 4)
    assert found(9, 7, 9000, 1799) == ([8, 0, 9000, 1792], 8)


def test_a_crop_of_the_slots_size_is_copied() -> None:
    pixels = np.asarray(scene())
    slot = np.zeros((8, 8, 3), np.uint8)
    crop_into(slot, pixels, np.array([3, 15, 8, 8]))
    assert np.array_equal(slot, pixels[3:11, 15:23])


@pytest.mark.parametrize("side", [5, 8, 16, 60])
def test_resizing_writes_into_the_slot_and_keeps_colours_in_place(side: int) -> None:
    batch = np.full((3, side, side, 3), 77, np.uint8)
    crop_into(batch[1], np.asarray(scene()), np.array([0, 0, HEIGHT, WIDTH]))
    assert (batch[[0, 2]] == 77).all()
    assert batch[1][0, 0].tolist() == [250, 0, 0]
    assert batch[1][0, -1].tolist() == [0, 250, 0]
    assert batch[1][-1, 0].tolist() == [0, 0, 250]


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize(
    ("height", "width", "method"),
    [
        (60, 50, cv2.INTER_LINEAR),
        (64, 64, cv2.INTER_LINEAR),
        (65, 40, cv2.INTER_AREA),
        (40, 65, cv2.INTER_AREA),
        (96, 96, cv2.INTER_AREA),
        (96, 64, cv2.INTER_AREA),
        (20, 90, cv2.INTER_AREA),
        (20, 2, cv2.INTER_LINEAR),
    ],
)
def test_crops_more_than_twice_as_large_on_a_side_are_averaged(
    compiled: bool, height: int, width: int, method: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not compiled:
        monkeypatch.setattr("hjepa_shards.images.decode.bilinear", None)
        monkeypatch.setattr("hjepa_shards.images.decode.mean", None)
    pixels, slot = np.random.default_rng(0).integers(0, 256, (100, 100, 3), np.uint8), np.zeros((32, 32, 3), np.uint8)
    crop_into(slot, pixels, (3, 4, height, width))
    assert np.array_equal(slot, cv2.resize(pixels[3 : 3 + height, 4 : 4 + width], (32, 32), interpolation=method))


def test_resizing_is_close_to_pillows_antialiased_bilinear(real_data: Path) -> None:
    data = next(iter(sorted((real_data / "photos").rglob("*.jpg")))).read_bytes()
    image = Image.open(io.BytesIO(data)).convert("RGB")
    for size in (400, 200, 100):
        slot = np.empty((size, size, 3), np.uint8)
        crop_into(slot, np.asarray(image), np.array([0, 0, 512, 512]))
        expected = np.asarray(image.resize((size, size), Image.Resampling.BILINEAR)).astype(float)
        error = ((slot - expected) ** 2).mean()
        assert 10 * np.log10(255**2 / error) > 25
