"""What layers drop: the shares that were requested, by image, layer, view and seed, and nothing else."""

import pytest
import torch
from torch import nn

from hjepa_shards.base.keyed_random import derive_key
from hjepa_train.modules.keyed_drops import (
    Dropout,
    DropPath,
    current,
    draw_drops,
    dropping,
    joined,
    limits_of,
    number_layers,
    rising,
)

KEY = derive_key(3, "drops", 0)


def test_branches_are_dropped_at_their_rate_and_their_mean_stays() -> None:
    rates = [0.0, 0.1, 0.5]
    factors_LB = draw_drops(limits_of(rates), KEY, torch.arange(20_000)).factors_LB
    assert factors_LB.shape == (3, 20_000)
    for rate, row in zip(rates, factors_LB, strict=True):
        assert (row == 0).double().mean().item() == pytest.approx(rate, abs=4 * (0.25 / 20_000) ** 0.5)
        assert sorted(set(row.tolist())) == pytest.approx(sorted({0.0, 1 / (1 - rate)} if rate else {1.0}))
    both = (factors_LB[1:] == 0).double().mean(1)
    assert ((factors_LB[1] == 0) & (factors_LB[2] == 0)).double().mean().item() == pytest.approx(
        both.prod().item(), abs=0.01
    )


def test_single_numbers_are_dropped_at_their_rate_and_each_image_loses_others() -> None:
    layer = Dropout(0.3, 0).train()
    numbers = torch.ones(4, 50, 100)
    with dropping(draw_drops(limits_of([0.3]), KEY, torch.tensor([5, 6, 5, 2**50]))):
        out = layer(numbers)
    assert out.unique().tolist() == pytest.approx([0, 1 / 0.7])
    for row in out:
        assert (row == 0).double().mean().item() == pytest.approx(0.3, abs=4 * (0.21 / 5000) ** 0.5)
    assert torch.equal(out[0], out[2])
    for other in (1, 3):
        same = (out[0] == out[other]).double().mean().item()
        assert same == pytest.approx(0.49 + 0.09, abs=0.04)  # as independent ones


def test_layers_views_and_seeds_drop_independently() -> None:
    network = nn.Sequential(Dropout(0.5, 0), nn.Sequential(DropPath(0.5, 0)), Dropout(0.5, 0)).train()
    assert number_layers(network) == [0.5] * 3
    assert [int(part.layer_1) for part in network.modules() if isinstance(part, Dropout | DropPath)] == [0, 1, 2]
    positions = torch.arange(4000)
    drawn = [
        draw_drops(limits_of([0.5] * 3), key, positions)
        for key in (KEY, derive_key(3, "drops", 1), derive_key(4, "drops", 0))
    ]
    rows = torch.cat([one.factors_LB for one in drawn]) / 2
    assert torch.corrcoef(rows).fill_diagonal_(0).abs().max() < 0.07
    words = torch.cat([one.words_LB for one in drawn])
    assert len(words.unique()) == words.numel()


def test_what_passes_together_drops_as_alone() -> None:
    first, second = (draw_drops(limits_of([0.5, 0.2]), KEY, torch.arange(start, start + 3)) for start in (0, 9))
    both = joined([first, None, second])
    assert both is not None
    assert torch.equal(both.factors_LB, torch.cat([first.factors_LB, second.factors_LB], 1))
    assert torch.equal(both.words_LB, torch.cat([first.words_LB, second.words_LB], 1))
    assert joined([None, None]) is None


def test_nothing_is_dropped_outside_nor_in_evaluation_nor_after_an_error() -> None:
    layers = [DropPath(0.9, 0).train(), Dropout(0.9, 0).train()]
    numbers = torch.ones(8, 3)
    drops = draw_drops(limits_of([0.9]), KEY, torch.arange(8))
    with dropping(drops):
        assert all(not torch.equal(layer(numbers), numbers) for layer in layers)
        with dropping(None):
            assert all(layer(numbers) is numbers for layer in layers)
        assert current() is drops
    with pytest.raises(RuntimeError), dropping(drops):
        numbers.view(7)
    assert current() is None
    assert all(layer(numbers) is numbers for layer in layers)
    with dropping(drops):
        assert all(layer.eval()(numbers) is numbers for layer in layers)


def test_rates_rise_linearly_from_0() -> None:
    assert rising(0.3, 4) == pytest.approx([0, 0.1, 0.2, 0.3])
    assert rising(0.3, 1) == [0]


def test_layers_that_differ_in_number_and_rate_are_compiled_once() -> None:
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    rates = [0.2, 0.4, 0.6]
    layers = nn.ModuleList(DropPath(rate, 0) for rate in rates).train()
    number_layers(layers)
    numbers = torch.ones(8, 3)
    for start in (0, 8):
        drops = draw_drops(limits_of(rates), KEY, torch.arange(start, start + 8))
        with dropping(drops):
            plain = [layer(numbers) for layer in layers]
            for layer, expected in zip(layers, plain, strict=True):
                assert torch.equal(torch.compile(layer.forward, backend="eager", fullgraph=True)(numbers), expected)
        assert torch.equal(torch.stack(plain)[:, :, 0], drops.factors_LB)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
