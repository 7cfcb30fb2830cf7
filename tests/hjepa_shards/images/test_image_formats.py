"""What an image is, by its own bytes, and that every odd one becomes upright RGB or a DecodeError."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hjepa_shards.errors import DecodeError, InputError
from hjepa_shards.images import image_formats
from hjepa_shards.images.image_formats import Codec, Colour, codec_of, inspect, opened
from hjepa_shards.images.rgb_pixels import to_rgb

WIDTH, HEIGHT = 40, 24


def scene() -> Image.Image:
    """Red at the top left, green at the top right, blue below: no two orientations look alike."""
    pixels = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    pixels[: HEIGHT // 2, : WIDTH // 2, 0] = 250
    pixels[: HEIGHT // 2, WIDTH // 2 :, 1] = 250
    pixels[HEIGHT // 2 :, :, 2] = 250
    return Image.fromarray(pixels)


def saved(image: Image.Image, codec: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, codec, **options)
    return buffer.getvalue()


def stored_as(orientation: int) -> np.ndarray:
    """Pixels that show the scene when a viewer follows the EXIF orientation: by its definition, row 0 and column 0."""
    upright = np.asarray(scene())
    return {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: upright.transpose(1, 0, 2)[::-1],
        7: upright.transpose(1, 0, 2)[::-1, ::-1],
        8: upright.transpose(1, 0, 2)[:, ::-1],
    }[orientation]


def turned(orientation: int, codec: str = "PNG", **options: object) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(Image.fromarray(stored_as(orientation)), codec, exif=exif, **options)


@pytest.mark.parametrize(
    ("codec", "expected"),
    [("JPEG", Codec.JPEG), ("PNG", Codec.PNG), ("WEBP", Codec.WEBP), ("GIF", Codec.GIF), ("BMP", Codec.BMP),
     ("TIFF", Codec.TIFF), ("TGA", Codec.UNKNOWN)],
)  # fmt: skip
def test_the_codec_is_read_from_the_bytes(codec: str, expected: Codec) -> None:
    assert codec_of(saved(scene(), codec)) == expected


@pytest.mark.parametrize(
    ("image", "codec", "colour"),
    [
        (scene(), "PNG", Colour.RGB),
        (scene().convert("L"), "JPEG", Colour.GRAY),
        (scene().convert("1"), "PNG", Colour.GRAY),
        (scene().convert("P"), "PNG", Colour.PALETTE),
        (scene().convert("RGBA"), "PNG", Colour.ALPHA),
        (scene().convert("LA"), "PNG", Colour.ALPHA),
        (scene().convert("CMYK"), "JPEG", Colour.CMYK),
        (Image.fromarray(np.zeros((4, 4), np.uint16)), "PNG", Colour.DEEP),
    ],
)
def test_the_colour_of_each_mode(image: Image.Image, codec: str, colour: Colour) -> None:
    assert inspect(saved(image, codec)).colour == colour


def test_sixteen_bits_keep_their_upper_eight() -> None:
    deep = np.array([[0, 255, 256, 0x1234], [0x7FFF, 0x8000, 0xFF00, 0xFFFF]], np.uint16)
    with opened(saved(Image.fromarray(deep), "PNG")) as image:
        rgb = np.asarray(to_rgb(image))
    assert rgb[..., 0].tolist() == [[0, 0, 1, 0x12], [0x7F, 0x80, 0xFF, 0xFF]]
    assert np.array_equal(rgb[..., 0], rgb[..., 2])


def test_alpha_is_dropped_and_not_blended() -> None:
    pixels = np.full((2, 2, 4), [10, 20, 30, 0], np.uint8)
    with opened(saved(Image.fromarray(pixels), "PNG")) as image:
        assert np.asarray(to_rgb(image))[0, 0].tolist() == [10, 20, 30]


@pytest.mark.parametrize("data", [b"", b"text", b"\xff\xd8\xff", saved(scene(), "PNG")[:60]])
def test_what_is_no_image_is_a_decode_error_without_an_address_in_it(data: bytes) -> None:
    with pytest.raises(DecodeError) as caught, opened(data) as image:
        to_rgb(image)
    assert "0x" not in str(caught.value)  # a manifest quotes it, and is the same on every machine


def test_a_decompression_bomb_is_refused_before_a_pixel_is_read() -> None:
    data = bytearray(saved(Image.new("1", (16, 16)), "BMP"))
    data[18:26] = (20000).to_bytes(4, "little") * 2
    with pytest.raises(DecodeError, match=r"[Dd]ecompression ?[Bb]omb"):
        inspect(bytes(data))


def test_the_largest_cameras_images_are_no_bombs_unless_the_limit_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = io.BytesIO()
    Image.new("1", (11_648, 8_736)).save(buffer, "PNG")  # 102 megapixels, of a medium format camera
    assert inspect(buffer.getvalue()).width == 11_648
    monkeypatch.setattr(image_formats, "MAX_PIXELS", 100_000_000)
    with pytest.raises(DecodeError, match=r"11648 x 8736 pixels, more than 100,000,000 \(HJEPA_MAX_PIXELS\)"):
        inspect(buffer.getvalue())


def test_the_limit_is_an_environment_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HJEPA_MAX_PIXELS", raising=False)
    assert image_formats._max_pixels() == image_formats.DEFAULT_MAX_PIXELS
    monkeypatch.setenv("HJEPA_MAX_PIXELS", "300000000")
    assert image_formats._max_pixels() == 300_000_000
    for wrong in ("0", "999999", "-1", "many", "1e9", "9" * 30, "\u0663"):
        monkeypatch.setenv("HJEPA_MAX_PIXELS", wrong)
        with pytest.raises(InputError, match="HJEPA_MAX_PIXELS: a number of pixels from 1,000,000 to 4,294,967,295"):
            image_formats._max_pixels()


def test_every_odd_image_becomes_rgb_or_a_decode_error(real_data: Path) -> None:
    turned_right = 0
    for path in sorted((real_data / "odd").iterdir()):
        data = path.read_bytes()
        try:
            info = inspect(data)
            with opened(data) as image:
                rgb = to_rgb(image)
        except DecodeError:
            continue
        assert (rgb.mode, rgb.size) == ("RGB", (info.width, info.height)), path.name
        turned_right += info.orientation > 1
    assert turned_right >= 14


def test_hoppers_of_all_orientations_look_like_the_upright_one(real_data: Path) -> None:
    upright = inspect((real_data / "odd" / "hopper_orientation_2.jpg").read_bytes())
    shown = []
    for orientation in range(2, 9):
        for codec in ("jpg", "webp"):
            with opened((real_data / "odd" / f"hopper_orientation_{orientation}.{codec}").read_bytes()) as image:
                assert image.getexif()[0x0112] == orientation
                shown.append(np.asarray(to_rgb(image)).astype(int))
    assert shown[0].shape == (upright.height, upright.width, 3)
    assert all(np.abs(pixels - shown[0]).mean() < 8 for pixels in shown)
