"""Mixup and CutMix against their formulas in loops over pixels."""

import pytest
import torch
from scipy.stats import beta, kstest

from hjepa_train.objectives.supervised.mixed_pairs import MixConfig, mix_pairs, quantiles_of

SIDE, PAIRS = 12, 64


def mixed(config: MixConfig, labelled: torch.Tensor | None = None, positions: torch.Tensor | None = None):
    """(images, mixed images, shares) of constant images: 1 for the first of a pair, 0 for the second."""
    images = torch.tensor([1.0, 0.0]).repeat(PAIRS)[:, None, None, None].expand(-1, 3, SIDE, SIDE)
    positions = torch.arange(2 * PAIRS) if positions is None else positions
    labelled = torch.ones(2 * PAIRS, dtype=torch.bool) if labelled is None else labelled
    return images, *mix_pairs(images, labelled, positions, config, quantiles_of(config), seed=3)


def test_mixup_is_the_weighted_mean_of_both_images_with_shares_of_a_beta() -> None:
    config = MixConfig(mixup=0.8)
    _, found, share_B = mixed(config)
    assert torch.equal(share_B[::2], share_B[1::2])
    for number in range(2 * PAIRS):
        own, other = (1.0, 0.0) if number % 2 == 0 else (0.0, 1.0)
        expected = share_B[number] * own + (1 - share_B[number]) * other
        assert found[number].flatten().tolist() == pytest.approx([float(expected)] * (3 * SIDE**2), abs=1e-6)
    assert kstest(share_B[::2].numpy(), beta(0.8, 0.8).cdf).pvalue > 0.01


def test_cutmix_takes_a_rectangle_of_the_partner_and_its_area_is_the_share() -> None:
    _, found, share_B = mixed(MixConfig(cutmix=1))
    for number in range(0, 2 * PAIRS, 2):
        own = found[number, 0]
        assert torch.equal(found[number + 1, 0], 1 - own), "both take the same rectangle of one another"
        assert float(share_B[number]) == pytest.approx(float(own.mean()), abs=1e-6)
        rows, columns = (own == 0).any(1), (own == 0).any(0)
        assert torch.equal(own == 0, rows[:, None] & columns[None]), "one rectangle"
        for line in (rows, columns):
            assert (line.int().diff() == 1).sum() + line[0] <= 1, "without a gap"


def test_both_take_their_share_of_the_pairs() -> None:
    _, found, share_B = mixed(MixConfig(mixup=0.8, cutmix=1, switch=0.5))
    is_whole = (share_B == 1)[::2]
    is_cut = torch.tensor([bool(((one == 0) | (one == 1)).all()) for one in found[::2]]) & ~is_whole
    assert 0.3 < float(is_cut.float().mean()) < 0.7
    _, found, share_B = mixed(MixConfig(mixup=0.8, share=0.25))
    assert 0.1 < float((share_B[::2] < 1).float().mean()) < 0.4


def test_pairs_with_an_unlabelled_image_stay_as_they_are() -> None:
    labelled = torch.arange(2 * PAIRS) % 4 != 3
    images, found, share_B = mixed(MixConfig(mixup=0.8, cutmix=1), labelled)
    alone = torch.arange(2 * PAIRS) % 4 >= 2
    assert torch.equal(found[alone], images[alone])
    assert (share_B[alone] == 1).all()
    assert (share_B[~alone] < 1).float().mean() > 0.9


def test_a_pair_is_drawn_by_its_positions_whatever_else_is_in_the_batch() -> None:
    config = MixConfig(mixup=0.8, cutmix=1)
    images = torch.rand(8, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    positions, labelled = torch.tensor([40, 7, 3, 99, 12, 13, 5, 4]), torch.ones(8, dtype=torch.bool)
    whole, shares = mix_pairs(images, labelled, positions, config, quantiles_of(config), seed=1)
    for rows in (slice(0, 2), slice(2, 6), slice(6, 8)):
        part = mix_pairs(images[rows], labelled[rows], positions[rows], config, quantiles_of(config), seed=1)
        assert torch.equal(part[0], whole[rows])
        assert torch.equal(part[1], shares[rows])
    other, _ = mix_pairs(images, labelled, positions, config, quantiles_of(config), seed=2)
    assert not torch.equal(other, whole)
