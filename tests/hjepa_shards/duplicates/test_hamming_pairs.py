"""The pairs that looking at all of them would find."""

import numpy as np
import pytest
from numpy.typing import NDArray

from hjepa_shards.duplicates.hamming_pairs import MAX_KEPT, near_pairs

NO_FLIP, FLIP = 0, 0xAAAA_0F0F_3333_8001


def all_pairs(hashes: list[int], flip: int, max_distance: int) -> list[tuple[int, int, int]]:
    return [
        (i, j, (hashes[i] ^ hashes[j] ^ flip).bit_count())
        for i in range(len(hashes))
        for j in range(i + 1, len(hashes))
        if (hashes[i] ^ hashes[j] ^ flip).bit_count() <= max_distance
    ]


def hashes_with_neighbours(flip: int, seed: int) -> list[int]:
    """Random hashes, each with one at a distance of 0 to 18 from it or from its flip."""
    dice = np.random.default_rng(seed)
    hashes = []
    for _ in range(130):
        one = int(dice.integers(0, 2**64, dtype=np.uint64))
        bits = dice.choice(64, size=dice.integers(0, 19), replace=False)
        hashes += [one, one ^ flip ^ sum(1 << int(bit) for bit in bits)]
    return [hashes[i] for i in dice.permutation(len(hashes))]


def array(hashes: list[int]) -> NDArray[np.uint64]:
    return np.array(hashes, np.uint64)


@pytest.mark.parametrize("flip", [NO_FLIP, FLIP, 2**64 - 1])
@pytest.mark.parametrize("max_distance", [0, 4, 15])
def test_no_pair_is_missed_and_none_invented(flip: int, max_distance: int) -> None:
    hashes = hashes_with_neighbours(flip, seed=max_distance)
    expected = all_pairs(hashes, flip, max_distance)
    assert len(expected) >= 2 * max_distance
    for workers in (1, 3):
        found = near_pairs(array(hashes), flip, max_distance, workers)
        assert list(zip(found.first, found.second, found.distance, strict=True)) == expected
        assert found.cut == 0


def test_errors_gathered_in_one_band_are_found_too() -> None:
    base = 0x0123_4567_89AB_CDEF
    for band in range(4):
        for pattern in (0x7FF, 0xFFE0, 0x5555):  # 11, 11 and 8 bits of one band
            found = near_pairs(array([base, base ^ pattern << 16 * band]), 0, 11)
            assert found.distance.tolist() == [pattern.bit_count()]


def test_none_and_one_have_no_pairs() -> None:
    for hashes in ([], [5]):
        assert len(near_pairs(array(hashes), 0, 11).first) == 0


def test_a_picture_that_is_its_own_mirror_image_is_no_pair() -> None:
    assert len(near_pairs(array([7, 2**40]), 0, 0).first) == 0


def test_progress_ends_with_all() -> None:
    seen: list[tuple[int, int]] = []
    near_pairs(array(hashes_with_neighbours(0, 1)), 0, 7, 2, lambda done, total: seen.append((done, total)))
    assert seen == sorted(seen)
    assert seen[-1] == (260, 260)


def test_a_hash_that_thousands_share_costs_a_bounded_amount_and_says_so() -> None:
    dice = np.random.default_rng(0)
    others = dice.integers(0, 2**64, 1000, dtype=np.uint64)
    hashes = np.concatenate([np.full(1500, 0xFFFF, np.uint64), others, others[:10] ^ np.uint64(3)])
    found = near_pairs(hashes, 0, 3, 2)
    assert found.cut > 0
    assert len(found.first) <= 1500 * MAX_KEPT + 10
    neighbours = found.second[np.searchsorted(found.first, 0) : np.searchsorted(found.first, 1)]
    assert neighbours.tolist() == list(range(1, 1 + MAX_KEPT))
    rare = found.first >= 1500
    assert (found.second - found.first)[rare].tolist() == [1000] * 10
