"""Raw image in, stored bytes out, and the identity of what did it.

Three ways to store pixels: `keep` (original bytes where a browser could show them; arrays and all else as PNG), `png`
(lossless, for arrays and small images) and `jpeg` with a shorter side (smaller, and 3.5x faster to decode than
ImageNet's originals). Two Pillows write different bytes for the same pixels, so the identity holds the versions *and* a
digest of three built-in images run through the settings: workers, resumed builds and repairs refuse another one.
"""

import hashlib
import importlib.metadata
import io
import math
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import PIL
from numpy.typing import NDArray
from PIL import Image, features
from pydantic import Field, model_validator

from hjepa_shards.config import Strict
from hjepa_shards.errors import DecodeError, InputError
from hjepa_shards.images import Codec, Colour, ImageInfo, codec_of, info_of, opened, to_rgb

EXTENSIONS = {Codec.JPEG: "jpg", Codec.PNG: "png", Codec.WEBP: "webp"}
"""Codecs that are stored; `keep` turns every other one into PNG."""

_STATISTICS_SIDE = 64


class EncodeSettings(Strict):
    """How pixels are stored."""

    pixels: Literal["keep", "png", "jpeg"]
    shorter_side: int | None = Field(default=None, ge=8, le=65500)
    """Larger images are scaled down to this many pixels on their shorter side; None: never."""
    quality: int = Field(default=90, ge=1, le=100)
    """JPEG quality."""
    encoder: Literal["pillow", "pillow-simd"] = "pillow"
    """Which of the two must be installed; Pillow-SIMD writes other bytes, so it is never picked up silently."""

    @model_validator(mode="after")
    def _keep_is_keep(self) -> "EncodeSettings":
        if self.pixels == "keep" and self.shorter_side is not None:
            raise ValueError("pixels: keep stores the original bytes; leave shorter_side out or choose png or jpeg")
        return self


KEEP = EncodeSettings(pixels="keep")
PNG = EncodeSettings(pixels="png")
JPEG_256 = EncodeSettings(pixels="jpeg", shorter_side=256)


@dataclass(frozen=True, slots=True)
class Encoded:
    """One image as it is stored."""

    data: bytes
    info: ImageInfo
    moments: NDArray[np.int64]
    """[3, 3]: pixels, sum and sum of squares of each RGB channel, of at most 64 pixels a side."""


def encode(image: bytes | NDArray[np.uint8], settings: EncodeSettings) -> Encoded:
    """Decode fully and store by the settings. DecodeError where no decoder can read it.

    image: an encoded file, or uint8 pixels [H, W] or [H, W, 3].
    """
    if isinstance(image, np.ndarray):
        return _store(Image.fromarray(image), PNG if settings.pixels == "keep" else settings)
    with opened(image) as opened_image:
        if settings.pixels == "keep":
            return _keep(image, opened_image)
        if settings.shorter_side is not None:
            opened_image.draft("RGB", _scaled(opened_image.size, settings.shorter_side))
        return _store(opened_image, settings)


def _keep(data: bytes, image: Image.Image) -> Encoded:
    info = info_of(data, image)
    rgb = to_rgb(image)  # reads every pixel: what cannot be decoded is not kept
    if info.codec not in EXTENSIONS:
        return _store(rgb, PNG)
    return Encoded(data, info, _moments(rgb))


def _store(image: Image.Image, settings: EncodeSettings) -> Encoded:
    rgb = to_rgb(image)
    if image.mode == "L" and settings.pixels == "png":
        rgb = rgb.convert("L")
    if settings.shorter_side is not None:
        size = _scaled(rgb.size, settings.shorter_side)
        if size != rgb.size:
            rgb = rgb.resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0)
    rgb.info.clear()  # pixels only: Pillow would carry comments, profiles and transparency over
    buffer = io.BytesIO()
    if settings.pixels == "jpeg":
        rgb.save(buffer, "JPEG", quality=settings.quality)
    else:
        rgb.save(buffer, "PNG")
    data = buffer.getvalue()
    info = ImageInfo(
        codec=codec_of(data),
        width=rgb.width,
        height=rgb.height,
        colour=Colour.GRAY if rgb.mode == "L" else Colour.RGB,
        orientation=1,
    )
    return Encoded(data, info, _moments(rgb))


def _scaled(size: tuple[int, int], shorter_side: int) -> tuple[int, int]:
    """Width and height with the shorter side at most `shorter_side`, the aspect kept; never enlarged."""
    width, height = size
    shorter = min(width, height)
    if shorter <= shorter_side:
        return size
    return round(width * shorter_side / shorter), round(height * shorter_side / shorter)


def _moments(rgb: Image.Image) -> NDArray[np.int64]:
    factor = math.ceil(max(rgb.size) / _STATISTICS_SIDE)
    small = (rgb.reduce(factor) if factor > 1 else rgb).convert("RGB")
    counts = np.array(small.histogram(), dtype=np.int64).reshape(3, 256)
    levels = np.arange(256)
    return np.stack([counts.sum(1), counts @ levels, counts @ levels**2], axis=1)


def installed_encoder() -> str:
    """`pillow` or `pillow-simd`: both are imported as PIL."""
    try:
        importlib.metadata.version("pillow-simd")
    except importlib.metadata.PackageNotFoundError:
        return "pillow"
    return "pillow-simd"


def require_encoder(settings: EncodeSettings) -> None:
    """InputError where the encoder of the settings is not the one that is installed."""
    found = installed_encoder()
    if found != settings.encoder:
        advice = "`make simd` installs Pillow-SIMD" if found == "pillow" else "say --encoder pillow-simd"
        raise InputError(f"encoder {settings.encoder} expected, {found} is installed; {advice}, or install the other")


def encoder_identity(settings: EncodeSettings) -> dict[str, Any]:
    """Library versions and the canary: what must be equal for two builds to write equal bytes."""
    digest = hashlib.blake2b(digest_size=16)
    for image in _canary_images():
        digest.update(encode(image, settings).data)
    return {
        "pillow": PIL.__version__,
        "encoder": installed_encoder(),
        "libjpeg_turbo": features.version("libjpeg_turbo"),
        "zlib": features.version("zlib"),
        "canary": digest.hexdigest(),
    }


def _canary_images() -> list[bytes]:
    """Three images made by integer arithmetic: a gradient, noise, and stripes with text-like edges; stored as BMP."""
    y, x = np.mgrid[0:311, 0:427].astype(np.int64)
    gradient = np.stack([x * 255 // 426, y * 255 // 310, (x + y) * 255 // 736], -1)
    noise = ((x * 7919 + y * 104729) ** 2 % 65521 % 256)[..., None].repeat(3, -1)
    stripes = np.stack([(x // 9 % 2) * 255, (y // 5 % 2) * 200, (x * y // 97 % 2) * 255], -1)
    files = []
    for pixels in (gradient, noise, stripes):
        buffer = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(buffer, "BMP")
        files.append(buffer.getvalue())
    return files


def reason_of(error: DecodeError) -> str:
    """One line for the manifest's list of exclusions."""
    return " ".join(str(error).split())[:200]
