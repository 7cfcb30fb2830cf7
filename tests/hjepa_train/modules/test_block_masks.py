import json
from pathlib import Path

import pytest
import torch

from hjepa_shards.base.keyed_random import derive_key
from hjepa_shards.errors import InputError
from hjepa_train.modules.block_masks import Masking, Masks, block_shapes
from tests.golden.make_masks import STRIDES, golden_masks

GOLDEN = Path(__file__).parents[2] / "golden" / "masks_v1.json"
GRIDS = range(6, 29)


def masking(grid: int, **changed) -> Masking:
    settings = {"seed": 3, "num_blocks": 4, "num_context": round(grid * grid / 4)} | changed
    return Masking(grid, **settings)


def assert_same(a: Masks, b: Masks) -> None:
    assert torch.equal(a.context_BK, b.context_BK)
    assert torch.equal(a.block_BMN, b.block_BMN)
    assert torch.equal(a.tier1_B, b.tier1_B)
    assert torch.equal(a.tier2_B, b.tier2_B)
    for ours, theirs in zip(a.levels, b.levels, strict=True):
        assert torch.equal(ours.index_BMC, theirs.index_BMC)
        assert torch.equal(ours.weight_BMC, theirs.weight_BMC)


def loop_draw(grid: int, seed: int, position: int, num_blocks: int, num_context: int):
    """(context, blocks) of one image, from the rule in words, with Python's integers and no tensor."""
    word = (1 << 64) - 1

    def mix(z: int) -> int:
        z = (z + 0x9E3779B97F4A7C15) & word
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & word
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & word
        return z ^ (z >> 31)

    key = derive_key(seed, "mask")
    state = mix(mix(position ^ (key & word)) ^ (key >> 64))
    column = 0

    def draw() -> int:
        nonlocal column
        column += 1
        return mix(state ^ mix(2 * column - 1)) >> 33

    def many(count: int) -> list[int]:
        return [draw() for _ in range(count)]

    shapes, tops, lefts = many(num_blocks), many(num_blocks), many(num_blocks)
    edge_draw, corner_top, corner_left = many(3)
    ranks = many(grid * grid)
    legal = block_shapes(grid)
    blocks = []
    for shape, top, left in zip(shapes, tops, lefts, strict=True):
        h, w = legal[shape * len(legal) >> 31]
        t, s = top * (grid - h + 1) >> 31, left * (grid - w + 1) >> 31
        blocks.append({r * grid + c for r in range(t, t + h) for c in range(s, s + w)})
    smallest = round(grid * 0.85**0.5)
    edge = smallest + (edge_draw * (grid - smallest + 1) >> 31)
    t, s = corner_top * (grid - edge + 1) >> 31, corner_left * (grid - edge + 1) >> 31
    square = {r * grid + c for r in range(t, t + edge) for c in range(s, s + edge)}
    kept = {min(block, key=lambda cell: (ranks[cell], cell)) for block in blocks}

    def tier(cell: int) -> int:
        if cell in kept:
            return num_blocks + 2
        num = sum(cell in block for block in blocks)
        return num + 1 if num else (0 if cell in square else 1)

    order = sorted(range(grid * grid), key=lambda cell: (tier(cell), ranks[cell], cell))
    context = set(order[:num_context])
    return sorted(context), [block - context for block in blocks]


@pytest.mark.parametrize("is_large", [False, True], ids=["usual context", "all but the cells that blocks keep"])
@pytest.mark.parametrize("grid", GRIDS)
def test_masks_follow_the_rule_written_with_loops(grid: int, is_large: bool) -> None:
    positions = [0, 7, 10**12 + grid]
    num_context = grid * grid - 4 if is_large else round(grid * grid / 4)
    masks = masking(grid, num_context=num_context)(torch.tensor(positions))
    for row, position in enumerate(positions):
        context, blocks = loop_draw(grid, 3, position, 4, num_context)
        assert all(blocks)
        assert masks.context_BK[row].tolist() == context
        for number, block in enumerate(blocks):
            assert set(masks.block_BMN[row, number].nonzero().flatten().tolist()) == block


@pytest.mark.parametrize("grid", GRIDS)
def test_context_is_full_and_disjoint_and_every_block_keeps_a_cell(grid: int) -> None:
    B, K = 200, round(grid * grid / 4)
    masks = masking(grid)(torch.arange(B) * 977)
    visible = torch.zeros(B, grid * grid, dtype=torch.bool).scatter(1, masks.context_BK, True)
    assert (visible.sum(1) == K).all()
    assert (masks.context_BK.diff(dim=1) > 0).all()
    assert not (visible[:, None] & masks.block_BMN).any()
    assert masks.block_BMN.any(-1).all()
    cells = masks.levels[0]
    assert cells.index_BMC.shape[-1] == max(h * w for h, w in block_shapes(grid))
    own = cells.weight_BMC > 0
    assert torch.equal(own, masks.block_BMN.gather(-1, cells.index_BMC))
    assert torch.equal(own.sum(-1), masks.block_BMN.sum(-1))
    assert (own.long().diff(dim=-1) <= 0).all()
    assert (cells.index_BMC.diff(dim=-1)[own[..., 1:]] > 0).all()


def test_legal_shapes_are_those_of_the_paper_ranges() -> None:
    assert block_shapes(8) == [(3, 4), (4, 3)]
    assert block_shapes(14) == [(5, 6), (6, 5), (6, 6), (7, 5)]
    assert block_shapes(16) == [(6, 7), (6, 8), (7, 6), (7, 7), (8, 6)]
    assert block_shapes(4) == [(2, 2)]  # none is legal: the one nearest to .175 of the grid


@pytest.mark.parametrize(("grid", "strides", "counts"), [(14, (1, 2, 7), (36, 16, 4)), (8, (1, 2, 4), (12, 6, 4))])
def test_coarse_cells_count_all_hidden_patches_within_their_caps(grid, strides, counts) -> None:
    masks = masking(grid, strides=strides)(torch.arange(300))
    for stride, count, cells in zip(strides, counts, masks.levels, strict=True):
        assert cells.index_BMC.shape[-1] == count
        assert torch.equal(cells.weight_BMC.sum(-1), masks.block_BMN.sum(-1))
        patch = masks.block_BMN[5, 2].nonzero().flatten()
        cell = (patch // grid // stride) * (grid // stride) + patch % grid // stride
        expected = dict(zip(*[part.tolist() for part in cell.unique(return_counts=True)], strict=True))
        pairs = zip(cells.index_BMC[5, 2].tolist(), cells.weight_BMC[5, 2].tolist(), strict=True)
        assert {index: weight for index, weight in pairs if weight} == expected


def test_every_border_is_reached() -> None:
    masks = masking(14)(torch.arange(500))
    reached = masks.block_BMN.any(1).any(0).view(14, 14)
    assert reached.all()


def test_masks_are_the_golden_ones() -> None:
    golden = json.loads(GOLDEN.read_text())
    assert {str(grid): golden_masks(grid) for grid in STRIDES} == golden


def test_one_image_at_a_time_draws_the_batch_for_any_number_of_threads() -> None:
    draw = masking(14, strides=(1, 2, 7))
    positions = torch.tensor([5, 123_456_789_012, 0, 64])
    together = draw(positions)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1 if num_threads > 1 else 2)
    try:
        for row in range(4):
            alone = draw(positions[row : row + 1])
            assert torch.equal(alone.context_BK[0], together.context_BK[row])
            assert torch.equal(alone.block_BMN[0], together.block_BMN[row])
            for one, all_ in zip(alone.levels, together.levels, strict=True):
                assert torch.equal(one.index_BMC[0], all_.index_BMC[row])
                assert torch.equal(one.weight_BMC[0], all_.weight_BMC[row])
    finally:
        torch.set_num_threads(num_threads)


def test_seed_and_position_both_change_the_masks() -> None:
    positions = torch.arange(50)
    first = masking(8)(positions)
    assert_same(first, masking(8)(positions))
    assert not torch.equal(first.context_BK, masking(8, seed=4)(positions).context_BK)
    assert not torch.equal(first.context_BK, masking(8)(positions + 50_000).context_BK)


def test_padding_only_adds_cells_of_weight_zero() -> None:
    positions = torch.arange(100)
    plain, padded = masking(8)(positions), masking(8, num_padding=5)(positions)
    assert torch.equal(plain.context_BK, padded.context_BK)
    assert torch.equal(plain.levels[0].index_BMC, padded.levels[0].index_BMC[..., :12])
    assert torch.equal(plain.levels[0].weight_BMC, padded.levels[0].weight_BMC[..., :12])
    assert padded.levels[0].index_BMC.shape[-1] == 17
    assert (padded.levels[0].weight_BMC[..., 12:] == 0).all()


def test_tiers_are_reported() -> None:
    positions = torch.arange(400)
    generous = masking(14)(positions)
    assert generous.tier1_B.float().mean() < 0.1
    assert not generous.tier2_B.any()
    greedy = masking(8, num_context=60)(positions)
    assert greedy.tier1_B.any()
    assert greedy.tier2_B.all()


@pytest.mark.parametrize(
    ("grid", "changed", "advice"),
    [
        (4, {}, "a grid of 8 x 8"),
        (4, {}, "num_blocks: 2"),
        (8, {"num_context": 61}, "num_context <= 60"),
        (8, {"num_blocks": 6}, "num_blocks: 2"),
        (8, {"num_blocks": 0}, "at least 1 block"),
        (8, {"num_context": 0}, "at least 1 block"),
    ],
)
def test_impossible_masks_are_refused_with_advice(grid, changed, advice) -> None:
    with pytest.raises(InputError, match=advice):
        masking(grid, **changed)
    masking(4, num_blocks=2)
