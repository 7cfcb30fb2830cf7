"""Gray levels of more than 8 bits: none comes out black or white without a note, and what was right stays as it was."""

import struct
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from hjepa_shards.building.build import BuildOptions, build
from hjepa_shards.building.index_tars import index_tars
from hjepa_shards.images.decode import decode
from hjepa_shards.images.encode import JPEG_256, KEEP, PNG, EncodeSettings, encode
from hjepa_shards.images.image_formats import inspect
from hjepa_shards.loader.split_view import SplitView
from tests.hjepa_shards.building.test_index_tars import write_tar
from tests.hjepa_shards.images.test_image_formats import saved

LEVELS = np.arange(256, dtype=np.int64).reshape(16, 16)


def tiff(values: np.ndarray, **tags: int) -> bytes:
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    for name, value in tags.items():
        directory[{"photometric": 262}[name]] = value
    return saved(Image.fromarray(values), "TIFF", tiffinfo=directory)


def signed_tiff(values: np.ndarray) -> bytes:
    """Pillow writes no TIFF of signed 16 bits: an unsigned one that says otherwise."""
    directory = TiffImagePlugin.ImageFileDirectory_v2()
    directory[339] = 2
    return saved(Image.fromarray(values.astype(np.int16).view(np.uint16)), "TIFF", tiffinfo=directory)


def unsigned_tiff(values: np.ndarray) -> bytes:
    """Nor of unsigned 32 bits."""
    data = tiff(values.astype(np.uint32).view(np.int32))
    entry = struct.pack("<HHIHH", 339, 3, 1, 2, 0)
    assert entry in data
    return data.replace(entry, struct.pack("<HHIHH", 339, 3, 1, 1, 0))


CASES = {
    "16 bits": (saved(Image.fromarray((LEVELS * 257).astype(np.uint16)), "PNG"), ""),
    "12 bits in 16": (saved(Image.fromarray((LEVELS * 4095 // 255).astype(np.uint16)), "PNG"), "integers up to 4,095"),
    "8 bits in 16": (saved(Image.fromarray(LEVELS.astype(np.uint16)), "PNG"), "integers up to 255"),
    "12 bits in 16, tiff": (tiff((LEVELS * 4095 // 255).astype(np.uint16)), "integers up to 4,095"),
    "8 bits in 32": (tiff(LEVELS.astype(np.int32)), "integers up to 255"),
    "16 bits in 32": (tiff((LEVELS * 257).astype(np.int32)), ""),
    "32 bits": (unsigned_tiff(LEVELS * 16843009), "integers below 0 or above 65,535"),
    "signed": (signed_tiff(LEVELS * 16 - 1024), "integers below 0 or above 65,535"),
    "from 0 to 1": (tiff((LEVELS / 255).astype(np.float32)), "floating point from 0 to 1"),
    "floats up to 255": (tiff(LEVELS.astype(np.float32)), ""),
    "floats up to 65535": (tiff((LEVELS * 257).astype(np.float32)), "floating point up to 65,535"),
    "floats from -1 to 1": (tiff((LEVELS / 127.5 - 1).astype(np.float32)), "floating point below 0 or above"),
    "white is zero": (tiff((65535 - LEVELS * 257).astype(np.uint16), photometric=0), ""),
}


@pytest.mark.parametrize("name", CASES)
def test_deep_grays_are_scaled_alike_by_every_build_and_reader(name: str) -> None:
    data, remark = CASES[name]
    info = inspect(data)
    assert_are_the_levels(decode(data, info.colour, info.orientation))
    for settings in (KEEP, PNG, JPEG_256, EncodeSettings(pixels="jpeg", quality=95, encoder="pillow")):
        encoded = encode(data, settings)
        assert [found[: len(remark)] for found in encoded.remarks] == [remark] * bool(remark), settings
        shown = decode(encoded.data, encoded.info.colour, encoded.info.orientation)
        assert_are_the_levels(shown, 1 if settings.pixels != "jpeg" else 12)


def assert_are_the_levels(pixels: np.ndarray, most: int = 1) -> None:
    assert np.abs(pixels.astype(int) - LEVELS[..., None]).max() <= most


def test_what_was_no_number_is_black_and_moves_nothing_else() -> None:
    values = (LEVELS / 255).astype(np.float32)
    values[0, :3] = np.nan, np.inf, -np.inf
    data = tiff(values)
    expected = LEVELS.copy()
    expected[0, :3] = 0
    assert np.array_equal(decode(data, inspect(data).colour, 1)[..., 0], expected)


def test_notes_count_what_was_assumed_and_what_has_one_value_only(tmp_path: Path) -> None:
    flat = saved(Image.fromarray(np.full((16, 16), 30001, np.uint16)), "PNG")
    files = {"a.png": CASES["12 bits in 16"][0], "b.png": CASES["12 bits in 16"][0], "c.png": flat}
    files["d.png"] = CASES["16 bits"][0]
    files["e.png"] = saved(Image.fromarray(np.zeros((9, 9), np.uint8)), "PNG")
    raw = tmp_path / "raw"
    raw.mkdir()
    for name, data in files.items():
        (raw / name).write_bytes(data)
    write_tar(tmp_path / "tars" / "a.tar", files)
    expected = [
        "1 images of more than 8 bits: a single gray level is left",
        "2 images of more than 8 bits: integers up to 4,095, read as 12 bits",
    ]
    for settings in (KEEP, PNG):
        options = BuildOptions(settings=settings, samples_per_shard=2)
        [manifest] = build("folder", raw=raw, out=tmp_path / settings.pixels, options=options)
        assert list(manifest.notes) == expected
    assert list(index_tars(tmp_path / "tars").notes) == expected
    of_third = {sample.image.tobytes() for sample in SplitView(tmp_path / "tars")}
    assert of_third == {sample.image.tobytes() for sample in SplitView(tmp_path / "png" / "folder" / "train")}


def test_without_such_images_there_is_no_note(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "a.png").write_bytes(CASES["16 bits"][0])
    for settings in (KEEP, PNG):
        [manifest] = build("folder", raw=raw, out=tmp_path / settings.pixels, options=BuildOptions(settings=settings))
        assert manifest.notes == []


def test_nearly_black_colours_of_sixteen_bits_are_named() -> None:
    for most, remarks in ((4095, 1), (65535, 0)):
        deep = np.linspace(0, most, 8 * 8 * 3).reshape(8, 8, 3).astype(np.uint16)
        data = cv2.imencode(".png", deep)[1].tobytes()
        assert len(encode(data, PNG).remarks) == remarks
