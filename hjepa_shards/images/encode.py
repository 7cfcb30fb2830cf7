"""Raw image in, stored bytes out, and the identity of what did it.

Three ways to store pixels: `keep` (original bytes where a browser could show them; arrays and all else as PNG), `png`
(lossless, for arrays and small images) and `jpeg` with a shorter side (smaller, and 3.5x faster to decode than
ImageNet's originals). Three encoders: `turbo` (libjpeg-turbo and OpenCV, see downscale.py; PNG by Pillow), `pillow`
(its draft mode and Lanczos) and `pillow-simd` (the same code, faster). Other versions write other bytes for the same
pixels, so the identity holds the versions *and* a digest of three built-in images run through the settings: workers,
resumed builds and repairs refuse another one.
"""

import contextlib
import hashlib
import importlib.metadata
import io
import math
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Literal

import cv2
import numpy as np
import PIL
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, features
from pydantic import Field, model_validator

from hjepa_shards.config import Strict
from hjepa_shards.errors import DecodeError, InputError
from hjepa_shards.images.downscale import decode_small, scaled_size, shrink
from hjepa_shards.images.image_formats import (
    DEFAULT_MAX_PIXELS,
    MAX_PIXELS,
    Codec,
    Colour,
    ImageInfo,
    codec_of,
    info_of,
    is_plain_jpeg,
    opened,
)
from hjepa_shards.images.image_integrity import is_whole, plain_jpeg
from hjepa_shards.images.rgb_pixels import shown

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
    encoder: Literal["turbo", "pillow", "pillow-simd"] = "turbo"
    """What decodes, scales and stores. The last must be installed, the others refuse it: it writes other bytes."""

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
    moments: NDArray[np.int64] | None
    """[3, 3]: pixels, sum and sum of squares of each RGB channel, of at most 64 pixels a side; None: not measured."""
    remarks: tuple[str, ...] = ()
    """What had to be assumed about its pixels (rgb_pixels.py)."""
    is_decoded: bool = True
    """False: kept as it is, and its pixels were not looked at."""


def encode(image: bytes | NDArray[np.uint8], settings: EncodeSettings) -> Encoded:
    """Store by the settings. DecodeError where no decoder can read it.

    What is kept as it is is decoded only where its parts are not all there (image_integrity.py), or it has more than
    8 bits, of which something may have to be said.

    image: an encoded file, or uint8 pixels [H, W] or [H, W, 3].
    """
    if isinstance(image, np.ndarray):
        return _store_pixels(image, PNG if settings.pixels == "keep" else settings)
    is_turbo = settings.encoder == "turbo" and settings.pixels == "jpeg"
    if (is_turbo or settings.pixels == "keep") and (info := plain_jpeg(image)) is not None:
        if settings.pixels == "keep":
            return Encoded(image, info, None, is_decoded=False)
        if (encoded := _by_turbo(image, info, settings)) is not None:
            return encoded
    with opened(image) as opened_image:
        if settings.pixels == "keep":
            return _keep(image, opened_image)
        if is_turbo:
            encoded = _by_turbo(image, info_of(image, opened_image), settings)
            if encoded is None:
                seen = shown(image, opened_image)
                encoded = replace(_store_pixels(np.asarray(seen.rgb), settings), remarks=seen.remarks)
            return encoded
        if settings.shorter_side is not None:
            opened_image.draft("RGB", scaled_size(opened_image.size, settings.shorter_side))
        seen = shown(image, opened_image)
        is_gray = opened_image.mode == "L" and settings.pixels == "png"
        return replace(_store(seen.rgb.convert("L") if is_gray else seen.rgb, settings), remarks=seen.remarks)


def _by_turbo(data: bytes, info: ImageInfo, settings: EncodeSettings) -> Encoded | None:
    """None for what libjpeg-turbo alone would get wrong, or does not read though Pillow may."""
    if not is_plain_jpeg(info):
        return None
    with contextlib.suppress(ValueError):
        return _jpeg(decode_small(data, info, settings.shorter_side), settings)
    return None


def _store_pixels(pixels: NDArray[np.uint8], settings: EncodeSettings) -> Encoded:
    if settings.encoder != "turbo" or settings.pixels != "jpeg":
        image = Image.fromarray(pixels)
        return _store(image if settings.pixels == "png" else image.convert("RGB"), settings)
    rgb = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
    return _jpeg(shrink(rgb, settings.shorter_side) if settings.shorter_side else rgb, settings)


def _jpeg(rgb: NDArray[np.uint8], settings: EncodeSettings) -> Encoded:
    data = simplejpeg.encode_jpeg(np.ascontiguousarray(rgb), settings.quality, colorsubsampling="420")
    height, width = rgb.shape[:2]
    info = ImageInfo(codec=Codec.JPEG, width=width, height=height, colour=Colour.RGB, orientation=1)
    return Encoded(data, info, _moments(rgb))


def _keep(data: bytes, image: Image.Image) -> Encoded:
    info = info_of(data, image)
    if info.codec not in EXTENSIONS:
        seen = shown(data, image)
        return replace(_store(seen.rgb, PNG), remarks=seen.remarks)
    if info.colour != Colour.DEEP and is_whole(data):
        return Encoded(data, info, None, is_decoded=False)
    seen = shown(data, image)  # in doubt, the decoder judges: it raises what `opened` makes a DecodeError
    return Encoded(data, info, None, seen.remarks)


def _store(rgb: Image.Image, settings: EncodeSettings) -> Encoded:
    """rgb: upright pixels, RGB or gray."""
    if settings.shorter_side is not None:
        size = scaled_size(rgb.size, settings.shorter_side)
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
    return Encoded(data, info, _moments(np.asarray(rgb)))


def moments_of(data: bytes) -> NDArray[np.int64]:
    """The moments of an image that was kept as it is. DecodeError where no decoder can read it."""
    with opened(data) as image:
        return _moments(np.asarray(shown(data, image).rgb))


def _moments(pixels: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Of every `step`-th pixel: averaging would cost more than it says about a dataset's mean."""
    step = math.ceil(max(pixels.shape[:2]) / _STATISTICS_SIDE)
    some = pixels[::step, ::step]
    channels = np.broadcast_to(some, (3, *some.shape)) if some.ndim == 2 else np.moveaxis(some, 2, 0)
    rows = channels.reshape(3, -1).astype(np.int64)
    return np.stack([np.full(3, rows.shape[1]), rows.sum(1), (rows * rows).sum(1)], axis=1)


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
    expected = "pillow-simd" if settings.encoder == "pillow-simd" else "pillow"
    if found != expected:
        advice = "`make simd` installs Pillow-SIMD" if found == "pillow" else "say --encoder pillow-simd"
        raise InputError(
            f"encoder {settings.encoder}: {expected} expected, {found} is installed; {advice}, or install the other"
        )


def encoder_identity(settings: EncodeSettings) -> dict[str, Any]:
    """Library versions and the canary: what must be equal for two builds to write equal bytes."""
    identity = {
        "encoder": settings.encoder,
        "pillow": PIL.__version__,
        "libjpeg_turbo": features.version("libjpeg_turbo"),
        "zlib": features.version("zlib"),
        "canary": _canary(settings.model_dump_json()),
    }
    if settings.encoder == "turbo":
        identity |= {"simplejpeg": simplejpeg.__version__, "opencv": cv2.__version__}
    if MAX_PIXELS != DEFAULT_MAX_PIXELS:  # which decides what is excluded
        identity |= {"max_pixels": MAX_PIXELS}
    return identity


@cache
def _canary(settings_json: str) -> str:
    """Once a process, which has its libraries for good: most of what a small build costs."""
    settings, digest = EncodeSettings.model_validate_json(settings_json), hashlib.blake2b(digest_size=16)
    for image in _canary_images():
        digest.update(encode(image, settings).data)
    return digest.hexdigest()


def _canary_images() -> list[bytes]:
    """Three images made by integer arithmetic: a gradient, noise, and stripes with text-like edges.

    Stored as BMP and as JPEGs large enough that each way of decoding and scaling is taken by one.
    """
    y, x = np.mgrid[0:311, 0:427].astype(np.int64)
    gradient = np.stack([x * 255 // 426, y * 255 // 310, (x + y) * 255 // 736], -1).astype(np.uint8)
    noise = ((x * 7919 + y * 104729) ** 2 % 65521 % 256).astype(np.uint8)[..., None].repeat(3, -1)
    stripes = np.stack([(x // 9 % 2) * 255, (y // 5 % 2) * 200, (x * y // 97 % 2) * 255], -1).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(stripes).save(buffer, "BMP")
    large = np.ascontiguousarray(noise.repeat(2, 0).repeat(2, 1)[:621])
    return [buffer.getvalue(), simplejpeg.encode_jpeg(gradient, 95), simplejpeg.encode_jpeg(large, 95)]


def reason_of(error: DecodeError) -> str:
    """One line for the manifest's list of exclusions."""
    return " ".join(str(error).split())[:200]
