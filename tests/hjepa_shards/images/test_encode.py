"""How pixels are stored: losslessly, as they were, or smaller; and who stored them."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image
from pydantic import ValidationError
from sklearn.datasets import load_sample_images

from hjepa_shards.errors import DecodeError
from hjepa_shards.images import encode as encode_module
from hjepa_shards.images.encode import JPEG_256, KEEP, PNG, Encoded, EncodeSettings, encode, encoder_identity
from hjepa_shards.images.image_formats import Codec, Colour, inspect
from tests.hjepa_shards.images.test_image_formats import HEIGHT, WIDTH, saved, scene, turned

RNG = np.random.Generator(np.random.Philox(5))


def pixels_of(encoded: Encoded) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(encoded.data)))


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3)])
@pytest.mark.parametrize("settings", [PNG, KEEP])
def test_arrays_are_stored_without_loss(shape: tuple[int, ...], settings: EncodeSettings) -> None:
    pixels = RNG.integers(0, 256, shape, dtype=np.uint8)
    encoded = encode(pixels, settings)
    assert np.array_equal(pixels_of(encoded), pixels)
    assert encoded.info == inspect(encoded.data)


@pytest.mark.parametrize("codec", ["JPEG", "PNG", "WEBP"])
def test_keep_stores_the_very_bytes(codec: str) -> None:
    data = turned(6, codec)
    encoded = encode(data, KEEP)
    assert encoded.data == data
    assert (encoded.info.width, encoded.info.height, encoded.info.orientation) == (WIDTH, HEIGHT, 6)


@pytest.mark.parametrize("codec", ["GIF", "BMP", "TIFF", "TGA"])
def test_keep_turns_what_no_browser_shows_into_png(codec: str) -> None:
    encoded = encode(saved(scene(), codec), KEEP)
    assert encoded.info.codec == Codec.PNG
    assert np.abs(pixels_of(encoded).astype(int) - np.asarray(scene())).mean() < 3


@pytest.mark.parametrize("size", [(500, 375), (375, 500), (2000, 1500), (257, 900), (1001, 3001)])
def test_the_shorter_side_becomes_the_requested_one(size: tuple[int, int]) -> None:
    image = scene().resize(size)
    for codec in ("JPEG", "PNG"):
        encoded = encode(saved(image, codec), JPEG_256)
        assert min(encoded.info.width, encoded.info.height) == 256
        assert abs(encoded.info.width / encoded.info.height / (size[0] / size[1]) - 1) < 0.01
        assert encoded.info == inspect(encoded.data)
        assert encoded.info.codec == Codec.JPEG


def test_small_images_are_never_enlarged() -> None:
    encoded = encode(saved(scene(), "PNG"), JPEG_256)
    assert (encoded.info.width, encoded.info.height) == (WIDTH, HEIGHT)


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("settings", [PNG, JPEG_256])
def test_stored_images_are_upright_and_say_so(mode: str, settings: EncodeSettings) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    sideways = scene().convert(mode).transpose(Image.Transpose.ROTATE_90)  # 6: shown after a turn to the right
    encoded = encode(saved(sideways, "PNG", exif=exif), settings)
    shown = inspect(encoded.data)
    assert (shown.width, shown.height, shown.orientation) == (WIDTH, HEIGHT, 1)
    expected = np.asarray(scene().convert(mode).convert("RGB")).astype(int)
    assert np.abs(np.asarray(Image.open(io.BytesIO(encoded.data)).convert("RGB")) - expected).mean() < 6


@pytest.mark.parametrize("mode", ["L", "RGB", "P"])
def test_only_pixels_are_stored(mode: str) -> None:
    image = scene().convert(mode)
    key = (0, 0, 0) if mode == "RGB" else 0
    data = saved(image, "PNG", transparency=key, icc_profile=b"profile" * 20, dpi=(300, 300))
    encoded = encode(data, PNG)
    assert encoded.info == inspect(encoded.data)
    assert Image.open(io.BytesIO(encoded.data)).info == {}
    commented = saved(scene(), "JPEG", comment=b"a secret", icc_profile=b"profile" * 20)
    assert b"secret" not in encode(commented, JPEG_256).data


def test_moments_are_those_of_the_pixels() -> None:
    pixels = RNG.integers(0, 256, (32, 64, 3), dtype=np.uint8)
    flat = pixels.reshape(-1, 3).astype(np.int64)
    expected = np.stack([np.full(3, len(flat)), flat.sum(0), (flat**2).sum(0)], 1)
    assert np.array_equal(encode(pixels, PNG).moments, expected)


@pytest.mark.parametrize("settings", [KEEP, PNG, JPEG_256])
def test_truncated_images_are_refused_by_every_setting(settings: EncodeSettings) -> None:
    for codec in ("JPEG", "PNG", "WEBP"):
        data = saved(Image.fromarray(RNG.integers(0, 256, (200, 300, 3), dtype=np.uint8)), codec)
        with pytest.raises(DecodeError):
            encode(data[: len(data) // 2], settings)


@pytest.mark.parametrize("settings", [KEEP, PNG, JPEG_256])
def test_odd_images_are_stored_or_refused_and_nothing_else(real_data: Path, settings: EncodeSettings) -> None:
    stored = 0
    for path in sorted((real_data / "odd").iterdir()):
        try:
            encoded = encode(path.read_bytes(), settings)
        except DecodeError:
            continue
        assert encoded.info == inspect(encoded.data), path.name
        stored += 1
    assert stored >= 40


def test_the_identity_names_versions_and_changes_with_the_settings() -> None:
    identity = encoder_identity(PNG)
    encode_module._canary.cache_clear()
    assert identity == encoder_identity(PNG)
    assert re.fullmatch(r"[0-9a-f]{32}", identity["canary"])
    others = [JPEG_256, EncodeSettings(pixels="jpeg", shorter_side=256, quality=89)]
    assert len({encoder_identity(settings)["canary"] for settings in [PNG, *others]}) == 3


def test_another_limit_of_pixels_is_another_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it excludes differs: parts and workers of one build must agree."""
    before = encoder_identity(KEEP)
    monkeypatch.setattr(encode_module, "MAX_PIXELS", 1000)
    assert encoder_identity(KEEP) == before | {"max_pixels": 1000}


def test_settings_that_contradict_themselves_are_refused() -> None:
    for wrong in ({"pixels": "keep", "shorter_side": 256}, {"pixels": "jpeg", "quality": 0}, {"pixels": "gif"}):
        with pytest.raises(ValidationError):
            EncodeSettings(**wrong)  # type: ignore[arg-type]


def test_colours_are_known_after_storing() -> None:
    assert encode(saved(scene().convert("L"), "PNG"), PNG).info.colour == Colour.GRAY
    assert encode(saved(scene().convert("L"), "PNG"), JPEG_256).info.colour == Colour.RGB


def test_jpegs_that_libjpeg_turbo_alone_gets_wrong_or_refuses_are_read_all_the_same() -> None:
    photograph = Image.fromarray(load_sample_images().images[0])
    plain = as_jpeg(photograph)
    scan = plain.index(b"\xff\xda")
    stray = plain[:scan] + b"\0\0\0" + plain[scan:]
    with pytest.raises(ValueError, match="extraneous"):
        simplejpeg.decode_jpeg(stray)
    expected = pixels_of(encode(plain, JPEG_256)).astype(int)
    for data in (stray, as_jpeg(photograph.convert("CMYK"))):
        assert np.abs(pixels_of(encode(data, JPEG_256)) - expected).mean() < 5


def as_jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95)
    return buffer.getvalue()
