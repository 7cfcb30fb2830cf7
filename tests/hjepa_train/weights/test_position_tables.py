import pytest
import torch

from hjepa_train.modules.layers import sincos_positions
from hjepa_train.modules.relative_bias import resampled
from hjepa_train.weights.position_tables import Fixed, as_fixed, fixed_table, split_prefix
from tests.hjepa_train.weights.published_nets import sincos


@pytest.mark.parametrize(("side", "extent"), [(4, 4), (8, 8), (16, 8), (8, 16), (7, 14), (14, 16)])
def test_a_fixed_table_is_known_by_its_unit_and_its_order(side: int, extent: int) -> None:
    ours = sincos_positions(side, 32, extent=extent)
    assert as_fixed(ours) == Fixed(extent=extent, column_first=False)
    assert as_fixed(ours.roll(16, 1)) == Fixed(extent=extent, column_first=True)
    assert as_fixed(ours.half()) == Fixed(extent=extent, column_first=False)


@pytest.mark.parametrize("side", [4, 14])
def test_the_published_table_is_ours_with_its_halves_exchanged(side: int) -> None:
    theirs = sincos(32, side, False)[0]
    kind = as_fixed(theirs)
    assert kind == Fixed(extent=side, column_first=True)
    assert kind is not None
    torch.testing.assert_close(fixed_table(side, 32, kind), theirs)


def test_a_learnt_table_is_none() -> None:
    ours = sincos_positions(8, 32, extent=8)
    generator = torch.Generator().manual_seed(0)
    assert as_fixed(torch.randn(64, 32, generator=generator)) is None
    assert as_fixed(torch.zeros(64, 32)) is None
    ours[5, 7] += 0.01
    assert as_fixed(ours) is None, "one that learnt began as this one"
    assert as_fixed(ours * float("nan")) is None


@pytest.mark.parametrize(("before", "side"), [(4, 8), (8, 4), (5, 7), (7, 7)])
def test_a_learnt_table_is_interpolated_as_timm_does_it(before: int, side: int) -> None:
    from timm.layers.pos_embed import resample_abs_pos_embed

    table = torch.randn(before**2, 12, generator=torch.Generator().manual_seed(1))
    expected = resample_abs_pos_embed(table[None], [side, side], num_prefix_tokens=0)[0]
    torch.testing.assert_close(resampled(table, side), expected, rtol=0, atol=0)


def test_rows_of_tokens_are_split_from_those_of_cells() -> None:
    table = torch.arange(17 * 3.0).view(1, 17, 3)
    for counts in ((1, 0), (5, 1, 0)):
        split = split_prefix(table, counts)
        assert split is not None
        assert [len(part) for part in split] == [1, 16]
        torch.testing.assert_close(torch.cat(split), table[0])
    assert split_prefix(table, (0,)) is None
    assert split_prefix(table[0], (1,)) is not None
    assert split_prefix(table[None], (1,)) is None
