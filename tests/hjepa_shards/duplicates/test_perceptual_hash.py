"""The hash is the transform's signs, the mirrored hash is the mirror's hash, duplicates agree and others do not."""

import io

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_image

from hjepa_shards.duplicates.perceptual_hash import (
    MIRROR,
    gray_of,
    hashes_of,
    reduction,
    show_the_mirrored,
    show_the_same,
    small_pixels,
    squashed,
    thumbnails_of,
)
from hjepa_shards.images.image_formats import inspect

Pixels = NDArray[np.uint8]


def tile(number: int, side: int = 150) -> Pixels:
    """Square pieces of two photographs."""
    photo = load_sample_image(("china.jpg", "flower.jpg")[number % 2])
    top, left = divmod(number // 2, 3)
    return np.ascontiguousarray(photo[127 + top * 130 :, left * 200 :][:side, :side])


def encoded(pixels: Pixels, codec: str, **options: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, codec, **options)
    return buffer.getvalue()


def looked_at(data: bytes) -> tuple[int, Pixels]:
    """Hash and thumbnail of an encoded image."""
    info = inspect(data)
    small = squashed(small_pixels(data, info.width, info.height, info.colour, info.orientation))[None]
    return int(hashes_of(gray_of(small))[0]), thumbnails_of(small)


def test_the_hash_is_the_signs_of_the_lowest_frequencies() -> None:
    small = np.stack([squashed(tile(i)) for i in range(8)])
    gray = gray_of(small)
    for i, hashed in enumerate(hashes_of(gray).tolist()):
        transformed = cv2.dct(gray[i])
        bit = 0
        for diagonal in range(1, 11):
            for vertical in range(diagonal + 1):
                if bit < 64:
                    assert bool(hashed >> bit & 1) == bool(transformed[vertical, diagonal - vertical] > 0)
                    bit += 1


def test_the_mirrored_hash_is_the_hash_of_the_mirror_image() -> None:
    small = np.random.default_rng(0).integers(0, 256, (50, 32, 32, 3), dtype=np.uint8)
    assert (hashes_of(gray_of(small)) ^ MIRROR == hashes_of(gray_of(small[:, :, ::-1]))).all()


def test_a_flat_image_has_a_hash_and_is_like_nothing() -> None:
    flat = np.full((2, 32, 32, 3), 7, np.uint8)
    assert hashes_of(gray_of(flat)).tolist() == [0, 0]
    assert not show_the_same(thumbnails_of(flat), thumbnails_of(flat)).any()
    assert len(show_the_same(thumbnails_of(flat[:0]), thumbnails_of(flat[:0]))) == 0


def jpeg(quality: int) -> object:
    return lambda pixels: encoded(pixels, "JPEG", quality=quality)


def resized(side: int) -> object:
    return lambda pixels: encoded(cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA), "PNG")


DUPLICATES = {
    "jpeg 90": jpeg(90),
    "jpeg 30": jpeg(30),
    "webp": lambda pixels: encoded(pixels, "WEBP", quality=80),
    "half as large": resized(75),
    "as small as CIFAR's": resized(32),
    "twice as large": resized(300),
    "darker": lambda pixels: encoded((pixels * 0.7).astype(np.uint8), "PNG"),
    "more contrast": lambda pixels: encoded(np.clip(pixels * 1.3 - 30.0, 0, 255).astype(np.uint8), "PNG"),
    "cropped by 2%": lambda pixels: encoded(np.ascontiguousarray(pixels[3:, 3:]), "PNG"),
}


@pytest.mark.parametrize("how", DUPLICATES)
def test_copies_of_a_photograph_are_found(how: str) -> None:
    found = 0
    for number in range(8):
        pixels = tile(number)
        hashed, thumbnail = looked_at(encoded(pixels, "PNG"))
        for mirror, agree, flip in ((False, show_the_same, 0), (True, show_the_mirrored, MIRROR)):
            source = np.ascontiguousarray(pixels[:, ::-1]) if mirror else pixels
            other, other_thumbnail = looked_at(DUPLICATES[how](source))
            found += (hashed ^ flip ^ other).bit_count() <= 11 and bool(agree(thumbnail, other_thumbnail)[0])
    assert found >= 14, f"{found} of 16"


def test_different_photographs_do_not_agree() -> None:
    thumbnails = np.concatenate([looked_at(encoded(tile(i), "PNG"))[1] for i in range(12)])
    one, other = np.triu_indices(12, 1)
    assert not show_the_same(thumbnails[one], thumbnails[other]).any()
    assert not show_the_mirrored(thumbnails[one], thumbnails[other]).any()


def test_large_jpegs_are_decoded_at_a_fraction_of_their_size() -> None:
    photo = load_sample_image("china.jpg")  # 427 x 640
    data = encoded(photo, "JPEG", quality=95)
    assert reduction(data, 640, 427, 2, 1) == 4
    assert small_pixels(data, 640, 427, 2, 1).shape == (107, 160, 3)
    hashed, thumbnail = looked_at(data)
    whole, whole_thumbnail = looked_at(encoded(photo, "PNG"))
    assert (hashed ^ whole).bit_count() <= 2
    assert abs(thumbnail.astype(int) - whole_thumbnail.astype(int)).mean() < 2
    assert reduction(data, 640, 427, 2, 6) == 1  # Pillow turns it upright
    assert reduction(encoded(photo, "PNG"), 640, 427, 2, 1) == 1
    assert reduction(encoded(photo[:127], "JPEG"), 640, 127, 2, 1) == 1
