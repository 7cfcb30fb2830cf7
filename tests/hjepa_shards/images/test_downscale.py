"""Scaled-down images are as near to Lanczos as area averaging is, in the right place, at every size."""

import io

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_images

from hjepa_shards.images.downscale import decode_small, scaled_size, shrink
from hjepa_shards.images.image_formats import inspect

PHOTOGRAPHS: list[NDArray[np.uint8]] = [np.ascontiguousarray(image) for image in load_sample_images().images]


def decibels(pixels: NDArray[np.uint8], reference: NDArray[np.uint8]) -> float:
    return float(10 * np.log10(255**2 / np.mean((pixels.astype(float) - reference) ** 2)))


def lanczos(pixels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.LANCZOS))


def jpeg(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


def shrunk_jpeg(data: bytes, shorter_side: int) -> NDArray[np.uint8]:
    return decode_small(data, inspect(data), shorter_side)


@pytest.mark.parametrize("shorter_side", [400, 340, 290, 256, 230, 216])
@pytest.mark.parametrize("photograph", PHOTOGRAPHS)
def test_up_to_a_factor_of_two_it_is_as_near_to_lanczos_as_area_averaging(
    photograph: NDArray[np.uint8], shorter_side: int
) -> None:
    small = shrink(photograph, shorter_side)
    size = (small.shape[1], small.shape[0])
    reference = lanczos(photograph, size)
    area = np.asarray(cv2.resize(photograph, size, interpolation=cv2.INTER_AREA))
    assert decibels(small, reference) > decibels(area, reference) - 0.1


@pytest.mark.parametrize("cut", [(427, 640), (425, 639), (421, 631)])
@pytest.mark.parametrize("shorter_side", [200, 150, 105, 70, 40])
def test_jpegs_scaled_through_their_dct_stay_in_place(cut: tuple[int, int], shorter_side: int) -> None:
    for photograph in PHOTOGRAPHS:
        data = jpeg(np.ascontiguousarray(photograph[: cut[0], : cut[1]]))
        full = np.asarray(Image.open(io.BytesIO(data)))
        small = shrunk_jpeg(data, shorter_side)
        size = scaled_size((cut[1], cut[0]), shorter_side)
        assert small.shape == (size[1], size[0], 3)
        drafted = Image.open(io.BytesIO(data))
        drafted.draft("RGB", size)
        reference = lanczos(full, size)
        assert decibels(small, reference) > 31
        if cut[0] % 8 and cut[1] % 8:
            draft = np.asarray(drafted.resize(size, Image.Resampling.LANCZOS))
            assert decibels(small, reference) > decibels(draft, reference)


def test_an_image_that_is_small_enough_is_left_alone() -> None:
    photograph = PHOTOGRAPHS[0]
    assert shrink(photograph, 427) is photograph
    assert shrink(photograph, 1000) is photograph


@pytest.mark.parametrize(("factor", "size"), [(2.5, (256, 171)), (6.1, (105, 70))])
def test_pixels_scaled_down_by_more_than_two_are_averaged(factor: float, size: tuple[int, int]) -> None:
    photograph = PHOTOGRAPHS[0]
    small = shrink(photograph, round(427 / factor))
    assert small.shape == (size[1], size[0], 3)
    assert decibels(small, lanczos(photograph, size)) > 33


def test_gray_jpegs_become_rgb() -> None:
    gray = np.ascontiguousarray(PHOTOGRAPHS[0][..., 0])
    small = shrunk_jpeg(jpeg(gray), 128)
    assert small.shape[2] == 3
    assert (small == small[..., :1]).all()
