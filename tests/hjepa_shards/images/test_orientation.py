"""Every image comes upright exactly once, whatever its format, its encoder and its reader."""

from pathlib import Path

import numpy as np
import pytest
from PIL import features

from hjepa_shards.building.index_tars import index_tars
from hjepa_shards.images.decode import decode
from hjepa_shards.images.encode import KEEP, PNG, EncodeSettings, encode
from hjepa_shards.images.image_formats import inspect
from hjepa_shards.loader.split_view import SplitView
from tests.hjepa_shards.building.test_index_tars import write_tar
from tests.hjepa_shards.images.test_image_formats import HEIGHT, WIDTH, scene, turned

FORMATS = {
    "PNG": {},
    "JPEG": {"quality": 95},
    "WEBP": {"lossless": True},
    "TIFF": {},
    "TIFF by libtiff": {"compression": "tiff_lzw"},
    "AVIF": {"quality": 95},
}
SETTINGS = (KEEP, PNG, *(EncodeSettings(pixels="jpeg", quality=95, encoder=name) for name in ("turbo", "pillow")))


def stored(name: str, orientation: int) -> bytes:
    return turned(orientation, name.split()[0], **FORMATS[name])


@pytest.mark.parametrize("name", FORMATS)
def test_every_orientation_of_every_format_is_stored_and_read_upright(name: str) -> None:
    if name == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow reads no AVIF")
    for orientation in range(1, 9):
        data = stored(name, orientation)
        info = inspect(data)
        assert (info.width, info.height, info.orientation) == (WIDTH, HEIGHT, orientation)
        assert_is_the_scene(decode(data, info.colour, info.orientation))
        for settings in SETTINGS:
            encoded = encode(data, settings)
            assert (encoded.info.width, encoded.info.height) == (WIDTH, HEIGHT), (orientation, settings)
            assert_is_the_scene(decode(encoded.data, encoded.info.colour, encoded.info.orientation))


def assert_is_the_scene(pixels: np.ndarray) -> None:
    assert pixels.shape == (HEIGHT, WIDTH, 3)
    assert np.abs(pixels.astype(int) - np.asarray(scene())).mean() < 12


def test_turned_tiffs_in_third_party_tars_are_read_upright(tmp_path: Path) -> None:
    write_tar(tmp_path / "a.tar", {f"{turn}.tif": stored("TIFF", turn) for turn in range(1, 9)})
    index_tars(tmp_path)
    view = SplitView(tmp_path)
    assert len(view) == 8
    for sample in view:
        assert np.array_equal(sample.image, np.asarray(scene()))
