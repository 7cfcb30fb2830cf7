"""Rows of a table of offsets: as timm's for a whole grid, and for any patches in any order."""

import torch

from hjepa_train.modules.relative_bias import RelativeBias, offsets_between, resampled


def filled(grid: int, *, has_prefix: bool) -> RelativeBias:
    bias = RelativeBias(grid, 2, has_prefix=has_prefix)
    with torch.no_grad():
        bias.relative_position_bias_table.copy_(torch.arange(bias.relative_position_bias_table.numel()).view(-1, 2))
    return bias


def test_a_whole_grid_has_timms_rows() -> None:
    from timm.layers.pos_embed_rel import RelPosBias

    for num_prefix in (0, 1):
        theirs = RelPosBias((3, 3), 2, prefix_tokens=num_prefix)
        bias = filled(3, has_prefix=num_prefix > 0)
        theirs.load_state_dict(bias.state_dict())
        offsets = offsets_between(torch.arange(9).expand(4, -1), 3, num_prefix)
        assert torch.equal(bias(offsets), theirs.get_bias())


def test_each_image_has_the_offsets_of_its_own_patches() -> None:
    index_BN = torch.tensor([[8, 0, 4], [2, 1, 3]])
    found = filled(3, has_prefix=True)(offsets_between(index_BN, 3, 2))
    assert found.shape == (2, 2, 5, 5)
    for image, cells in enumerate(index_BN.tolist()):
        for query, a in enumerate(cells):
            for key, b in enumerate(cells):
                row = (a // 3 - b // 3 + 2) * 5 + (a % 3 - b % 3 + 2)
                assert found[image, :, 2 + query, 2 + key].tolist() == [2 * row, 2 * row + 1]
    assert (found[:, 0, :2, 2:] == 50).all()  # from a prefix token to a cell
    assert (found[:, 0, 2:, :2] == 52).all()
    assert (found[:, 0, :2, :2] == 54).all()


def test_on_another_grid_the_same_distance_has_the_same_bias() -> None:
    """A table that is linear in the offset, away from its borders: twice the cells, half the offset."""
    bias = RelativeBias(8, 1, has_prefix=True)
    down = (torch.arange(15.0) - 7).repeat_interleave(15)
    with torch.no_grad():
        bias.relative_position_bias_table.copy_(torch.cat([down, torch.tensor([100.0, 200, 300])])[:, None])
    found = bias(offsets_between(torch.arange(256)[None], 16, 1))[0, 0]
    assert found[0, 1:].unique().tolist() == [100]
    assert found[0, 0] == 300
    inner = found[1:, 1:].view(16, 16, 16, 16)
    assert abs(inner[9, 3, 5, 3].item() - 4 * 15 / 31) < 0.02
    assert abs(inner[5, 3, 9, 12].item() + 4 * 15 / 31) < 0.02


def test_a_table_of_the_same_size_stays() -> None:
    table = torch.randn(16, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(resampled(table, 4), table)
