"""Whole or not, without decoding: no whole file is doubted that matters, no cut one passes."""

import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from hjepa_shards.errors import DecodeError
from hjepa_shards.images.encode import KEEP, encode, moments_of
from hjepa_shards.images.image_formats import inspect
from hjepa_shards.images.image_integrity import is_whole, plain_jpeg

NOISE = Image.fromarray(np.random.Generator(np.random.Philox(3)).integers(0, 256, (40, 60, 3), dtype=np.uint8))


def saved(codec: str, **how: object) -> bytes:
    buffer = io.BytesIO()
    NOISE.save(buffer, codec, **how)
    return buffer.getvalue()


FILES = {
    "jpeg": saved("JPEG"),
    "progressive": saved("JPEG", progressive=True),
    "restarts": saved("JPEG", restart_marker_blocks=2),
    "commented": saved("JPEG", comment=b"\xff\xd9 a thumbnail ends here \xff\xd9"),
    "png": saved("PNG"),
    "webp": saved("WEBP"),
    "lossless webp": saved("WEBP", lossless=True),
}


@pytest.mark.parametrize("name", FILES)
def test_whole_files_are_whole_and_stay_so_with_rubbish_after_them(name: str) -> None:
    assert is_whole(FILES[name])
    if "webp" not in name:  # a decoder decides there
        assert is_whole(FILES[name] + b"\0\n rubbish")


@pytest.mark.parametrize("name", FILES)
def test_no_cut_file_is_whole(name: str) -> None:
    data = FILES[name]
    assert not any(is_whole(data[:length]) for length in range(len(data) - 1))


def test_every_flipped_bit_of_a_png_is_found() -> None:
    data = bytearray(FILES["png"])
    for offset in range(8, len(data), 7):
        data[offset] ^= 16
        assert not is_whole(bytes(data)), offset
        data[offset] ^= 16


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_plain_jpegs_are_described_as_pillow_does(mode: str) -> None:
    buffer = io.BytesIO()
    NOISE.convert(mode).save(buffer, "JPEG")
    assert plain_jpeg(buffer.getvalue()) == inspect(buffer.getvalue())


def test_no_other_file_is_a_plain_jpeg() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    empty = FILES["jpeg"].replace((40).to_bytes(2) + (60).to_bytes(2), bytes(4), 1)
    huge = FILES["jpeg"].replace((40).to_bytes(2) + (60).to_bytes(2), b"\xff" * 4, 1)
    for data in (FILES["png"], FILES["jpeg"][:-9], saved("JPEG", exif=exif), empty, huge, b"", b"\xff\xd8\xff"):
        assert plain_jpeg(data) is None


@given(st.binary(max_size=60), st.sampled_from([b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF1234WEBP", b""]))
def test_anything_gets_an_answer(data: bytes, magic: bytes) -> None:
    assert is_whole(magic + data) in (True, False)
    plain_jpeg(magic + data)


def test_other_codecs_are_left_to_the_decoder() -> None:
    for codec in ("GIF", "BMP", "TIFF"):
        assert not is_whole(saved(codec))


def test_of_the_odd_images_exactly_those_are_kept_that_decode(real_data: Path) -> None:
    for path in (real_data / "odd").iterdir():
        data = path.read_bytes()
        assert does(encode, data, KEEP) == does(moments_of, data), path.name


def test_plain_photographs_are_described_as_pillow_does(real_data: Path) -> None:
    plain = 0
    for path in [*(real_data / "odd").iterdir(), *(real_data / "coco").rglob("*.jpg")]:
        info = plain_jpeg(path.read_bytes())
        if info is not None:
            assert info == inspect(path.read_bytes()), path.name
            plain += 1
    assert plain >= 40


def does(function: Callable[..., object], *arguments: object) -> bool:
    try:
        function(*arguments)
    except DecodeError:
        return False
    return True
