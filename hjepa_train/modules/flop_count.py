"""Floating-point operations of what models are made of: a multiplication and its addition are two.

Matrix products and attention are counted, as they are computed: with the tokens that a run really has, padding
included. Norms, softmax, GELU, losses and the optimizer are not counted; together they are below 2% of a step. What a
kernel computes again in its backward pass (flash attention) is no work of the model, and is not counted either.

Everything is of one image, forward. Backward is twice that (gradients of input and weights), or once where the input
wants none: `trained`.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def matrix(num_tokens: int, width_in: int, width_out: int) -> int:
    """A linear map of tokens."""
    return 2 * num_tokens * width_in * width_out


def block(num_tokens: int, width: int, *, wanted: int = 0) -> int:
    """A transformer block (layers.Block) whose MLP is four times as wide; wanted: as there."""
    queries = wanted or num_tokens
    attention = 2 * matrix(queries, width, num_tokens)  # queries with keys, and what they find with values
    keys_and_values = matrix(num_tokens, width, 2 * width)
    return keys_and_values + attention + matrix(queries, width, (1 + 1 + 4 + 4) * width)


def stack(num_tokens: int, width: int, depth: int, *, wanted: int = 0) -> int:
    """This many blocks; wanted: of the last one."""
    return (depth - 1) * block(num_tokens, width) + block(num_tokens, width, wanted=wanted)


def trained(forward: int, *, first: int = 0) -> int:
    """Forward and backward of what has gradients.

    first: what works on the images themselves, forward; nothing needs a gradient of theirs.
    """
    return 3 * forward + 2 * first


def counted(network: nn.Module, run: Callable[[], object]) -> int:
    """Of a call of `network`, as PyTorch counts its operations one by one; nothing is computed.

    run: calls it, with inputs on the meta device.
    """
    tensors = dict(network.named_parameters()) | dict(network.named_buffers())
    empty = {f"network.{name}": torch.empty_like(tensor, device="meta") for name, tensor in tensors.items()}
    training = [part for part in network.modules() if part.training]
    network.eval()
    try:
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            torch.func.functional_call(_Call(network, run), empty, ())
    finally:
        for part in training:
            part.training = True
    return counter.get_total_flops()


class _Call(nn.Module):
    def __init__(self, network: nn.Module, run: Callable[[], object]) -> None:
        super().__init__()
        self.network, self.run = network, run

    def forward(self) -> object:
        return self.run()
