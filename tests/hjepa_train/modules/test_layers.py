"""Attention in half precision on a CPU: our gradients beside PyTorch's in float64; positions beside MAE's."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hjepa_train.modules.layers import Attention, sincos_positions

HALVES = [torch.bfloat16, torch.float16]


def gradients(attention: Attention, tokens: Tensor, visible: Tensor | None, wanted: int) -> list[Tensor]:
    """Of the tokens and of the parameters, in float64."""
    attention.zero_grad()
    tokens = tokens.detach().requires_grad_()
    attention(tokens, visible, wanted).square().sum().backward()
    found = [tokens.grad, *(parameter.grad for parameter in attention.parameters())]
    return [gradient.double() for gradient in found if gradient is not None]


@pytest.mark.parametrize("half", HALVES)
@pytest.mark.parametrize("wanted", [0, 3])
@pytest.mark.parametrize("hides", [False, True], ids=["all visible", "some hidden"])
def test_gradients_in_half_precision_are_those_of_float64(half: torch.dtype, wanted: int, hides: bool) -> None:
    torch.manual_seed(0)
    attention, tokens = Attention(24, 2).to(half), torch.randn(5, 17, 24).to(half)
    visible = torch.arange(17).expand(5, -1) < torch.arange(11, 16)[:, None] if hides else None
    found = gradients(attention, tokens, visible, wanted)
    same = Attention(24, 2).double()
    same.load_state_dict(attention.state_dict())
    for ours, theirs in zip(found, gradients(same, tokens.double(), visible, wanted), strict=True):
        assert (ours - theirs).norm() < 0.02 * theirs.norm()


@pytest.mark.parametrize("half", HALVES)
def test_hidden_tokens_are_keys_for_nothing(half: torch.dtype) -> None:
    torch.manual_seed(0)
    attention = Attention(24, 2).to(half)
    tokens = torch.randn(2, 9, 24).to(half).requires_grad_()
    visible = (torch.arange(9) < 6).expand(2, -1)
    attention(tokens, visible)[:, :6].sum().backward()
    assert tokens.grad is not None
    assert tokens.grad[:, :6].abs().amin() > 0
    assert tokens.grad[:, 6:].eq(0).all()


class Called(TorchDispatchMode):
    """The names of PyTorch's operations."""

    def __init__(self) -> None:
        super().__init__()
        self.names = set[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(str(func))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("dtype", "is_theirs"), [(torch.bfloat16, False), (torch.float16, False), (torch.float32, True)]
)
def test_the_slow_backward_pass_is_used_where_it_is_not_slow(dtype: torch.dtype, is_theirs: bool) -> None:
    attention, tokens = Attention(24, 2).to(dtype), torch.randn(2, 9, 24).to(dtype)
    with Called() as called:
        attention(tokens).sum().backward()
    assert any("scaled_dot_product" in name and "backward" in name for name in called.names) is is_theirs


@pytest.mark.parametrize("half", HALVES)
def test_no_probabilities_are_kept_for_the_backward_pass(half: torch.dtype) -> None:
    kept = list[tuple[int, ...]]()

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    attention, tokens = Attention(24, 2).to(half), torch.randn(2, 17, 24).to(half)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        attention(tokens)
    assert (2, 2, 17, 12) in kept
    assert not any(shape[-2:] == (17, 17) for shape in kept)


def test_positions_are_maes_with_the_halves_swapped() -> None:
    """MAE and I-JEPA: `meshgrid(w, h)`, so that the first half is of the column; sines before cosines in both."""
    ours = sincos_positions(3, 8, extent=3)
    for row in range(3):
        for column in range(3):
            theirs = []
            for centre in (column, row):
                angles = [centre / 10000 ** (k / 2) for k in range(2)]
                theirs += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
            assert ours[3 * row + column].tolist() == pytest.approx(theirs[4:] + theirs[:4], abs=1e-7)
