"""Crops: torchvision's rule, drawn at once from the position."""

import numpy as np
import pytest
from pydantic import ValidationError

from hjepa_shards.base.keyed_random import derive_key, philox_words
from hjepa_shards.images.crop import AugmentationConfig, central_crops, random_crops

NUM = 20_000
RNG = np.random.Generator(np.random.Philox(11))
CONFIG = AugmentationConfig(crop_scale=(0.2, 0.9), crop_ratio=(3 / 4, 4 / 3))


def sizes(num: int, low: int = 1, high: int = 600) -> tuple[np.ndarray, np.ndarray]:
    return RNG.integers(low, high, num), RNG.integers(low, high, num)


def test_crops_are_within_their_images() -> None:
    widths, heights = sizes(NUM)
    top, left, height, width = random_crops(3, np.arange(NUM), widths, heights, CONFIG).T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (height >= 1).all()
    assert (width >= 1).all()
    assert (top + height <= heights).all()
    assert (left + width <= widths).all()


def test_area_share_ratio_and_place_are_uniform_as_torchvision_draws_them() -> None:
    side = np.full(NUM, 1000)
    top, left, height, width = random_crops(3, np.arange(NUM), side, side, CONFIG).T
    share = height * width / 1e6
    ratio = np.log(width / height)
    # every ratio fits while share * 4/3 <= 1; above that some attempts are drawn again
    assert share.min() >= 0.199
    assert share.max() <= 0.901
    small = share < 0.7
    assert abs(share[small].mean() - 0.45) < 0.01
    assert abs(ratio.mean()) < 0.01
    assert np.abs(ratio).max() <= np.log(4 / 3) + 0.01
    assert abs(ratio[small].std() - np.log(4 / 3) / np.sqrt(3)) < 0.01
    for corner, room in ((top, 1000 - height), (left, 1000 - width)):
        where = corner[room > 100] / room[room > 100]
        assert abs(where.mean() - 0.5) < 0.02
        assert (corner[room > 0] == room[room > 0]).any()  # the last location can be reached


def test_a_crop_depends_on_its_position_alone() -> None:
    widths, heights = sizes(100)
    positions = 10**12 + RNG.permutation(100)
    whole = random_crops(3, positions, widths, heights, CONFIG)
    for parts in (1, 3, 100):
        split = np.array_split(np.arange(100), parts)
        assert np.array_equal(
            whole,
            np.concatenate([random_crops(3, positions[p], widths[p], heights[p], CONFIG) for p in split]),
        )


def test_seeds_views_and_positions_give_other_crops() -> None:
    side = np.full(50, 500)
    base = random_crops(3, np.arange(50), side, side, CONFIG)
    others = [
        random_crops(4, np.arange(50), side, side, CONFIG),
        random_crops(3, np.arange(50), side, side, CONFIG, view=1),
        random_crops(3, np.arange(50, 100), side, side, CONFIG),
        random_crops(3, np.arange(1, 51), side, side, CONFIG),
    ]
    assert all((base != other).any(1).mean() > 0.95 for other in others)
    assert np.array_equal(base[1:], others[3][:-1])


def test_what_no_attempt_fits_gets_the_largest_central_crop_within_the_ratios() -> None:
    """torchvision: width / height below the least ratio keeps the width, above the largest keeps the height."""
    config = AugmentationConfig(crop_scale=(1, 1), crop_ratio=(3 / 4, 4 / 3))
    crops = random_crops(3, np.arange(2), np.array([100, 1000]), np.array([1000, 100]), config)
    assert crops.tolist() == [[433, 0, 133, 100], [0, 433, 100, 133]]
    whole = AugmentationConfig(crop_scale=(1, 1), crop_ratio=(1, 1))
    assert random_crops(3, np.arange(1), np.array([32]), np.array([32]), whole).tolist() == [[0, 0, 32, 32]]


def test_central_crops_are_central_squares() -> None:
    crops = central_crops(np.array([500, 375, 8, 1]), np.array([375, 500, 8, 1]))
    assert crops.tolist() == [[0, 62, 375, 375], [62, 0, 375, 375], [0, 0, 8, 8], [0, 0, 1, 1]]
    assert central_crops(np.array([256]), np.array([256]), share=0.875).tolist() == [[16, 16, 224, 224]]


@pytest.mark.parametrize(
    "wrong",
    [{"crop_scale": (0.5, 0.2)}, {"crop_scale": (0, 1)}, {"crop_scale": (0.5, 1.5)}, {"crop_ratio": (2, 1)},
     {"color_jitter": 1}],
)  # fmt: skip
def test_impossible_settings_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        AugmentationConfig(**wrong)  # type: ignore[arg-type]


def test_a_crop_is_drawn_from_the_words_of_its_position() -> None:
    """One image at a time, by the rule: counters 3p to 3p + 2 are position p's, whatever is drawn beside it."""
    positions, width, height = np.array([0, 7, 255, 256, 257, 300, 5000]), 341, 256
    for view in range(2):
        found = random_crops(3, positions, np.full(7, width), np.full(7, height), CONFIG, view)
        for position, crop in zip(positions.tolist(), found.tolist(), strict=True):
            words = philox_words(derive_key(3, "crop"), 12, counter=3 * position, stream=view).tolist()
            for word in words[:10]:
                share, ratio = (
                    low + (high - low) * part * 2.0**-32
                    for (low, high), part in (
                        (CONFIG.crop_scale, word & 0xFFFFFFFF),
                        (np.log(CONFIG.crop_ratio), word >> 32),
                    )
                )
                area = width * height * share
                h, w = (round(float(np.sqrt(side))) for side in (area / np.exp(ratio), area * np.exp(ratio)))
                if 0 < w <= width and 0 < h <= height:
                    break
            else:
                raise AssertionError("ten attempts fail for no image of this shape")
            assert crop == [(words[10] >> 33) * (height - h + 1) >> 31, (words[11] >> 33) * (width - w + 1) >> 31, h, w]
