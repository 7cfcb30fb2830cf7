import pytest
import torch

from hjepa_shards.base.keyed_random import derive_key
from hjepa_train.base.keyed_integers import below, draw_integers

KEY = derive_key(0, "test")


def test_the_mixer_is_splitmix64() -> None:
    """The published stream of seed 1234567, whose state grows by the golden ratio before it is mixed."""
    from hjepa_train.base import keyed_integers

    first = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    golden = 0x9E3779B97F4A7C15
    state = torch.tensor([keyed_integers._signed(1234567 + golden * i) for i in range(3)])
    assert keyed_integers.mixed(state).tolist() == [keyed_integers._signed(word) for word in first]


def test_draws_are_uniform_and_uncorrelated() -> None:
    uniform = draw_integers(KEY, torch.arange(2000), 50).double() / 2**31
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert uniform.mean().item() == pytest.approx(0.5, abs=0.005)
    assert uniform.var().item() == pytest.approx(1 / 12, rel=0.01)
    correlation = torch.corrcoef(uniform.T) - torch.eye(50)
    assert correlation.abs().max().item() < 0.12
    assert torch.corrcoef(uniform[:50]).sub(torch.eye(50)).abs().mean().item() < 0.15


def test_a_draw_depends_on_its_key_and_counter_alone() -> None:
    counters = torch.tensor([0, 1, 2**40, -5])
    together = draw_integers(KEY, counters, 7)
    for row in range(4):
        assert torch.equal(draw_integers(KEY, counters[row : row + 1], 7)[0], together[row])
    assert torch.equal(draw_integers(KEY, counters, 3), together[:, :3])
    for other in (KEY + 1, KEY + (1 << 64), derive_key(1, "test")):
        assert not torch.equal(draw_integers(other, counters, 7), together)


def test_below_fills_its_range_evenly() -> None:
    counts = torch.bincount(below(draw_integers(KEY, torch.arange(7000), 1)[:, 0], 7))
    assert counts.tolist() == pytest.approx([1000] * 7, rel=0.12)
