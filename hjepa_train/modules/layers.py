"""What backbones and predictors share: attention, MLP, block, 2-D sin-cos positions, initialisation.

Parameter names are timm's, so a state_dict() made of these loads there.

Axes: B sequences, S tokens, Q the last of them, D width, H heads.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, final

import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hjepa_shards.config import Strict
from hjepa_train.modules.keyed_drops import Dropout, DropPath, Drops, current, dropping
from hjepa_train.modules.offered_memory import computing_again
from hjepa_train.modules.relative_bias import Offsets, RelativeBias

_HALVES = (torch.bfloat16, torch.float16)


class StackConfig(Strict):
    """Size of a stack of blocks."""

    width: int = Field(gt=0, le=2**16)
    """of a token"""
    depth: int = Field(gt=0, le=256)
    """number of blocks"""
    heads: int = Field(gt=0)
    """attention heads"""

    @model_validator(mode="after")
    def _divisible(self) -> "StackConfig":
        if self.width % self.heads or self.width % 4:
            raise ValueError(f"width must be divisible by 4 and by heads; {self.width} with {self.heads} heads found")
        return self


@final
class _HalvesOnCpu(torch.autograd.Function):
    """Attention of bfloat16 or float16 on a CPU, where the backward pass of PyTorch's takes two to seven times as long.

    As much is kept for it: queries, keys and values; no probabilities.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        ctx.save_for_backward(q, k, v, mask)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        q, k, v, mask = ctx.saved_tensors
        (gradient,), scaled = gradients, q * q.shape[-1] ** -0.5
        logits = scaled @ k.mT
        shares = (logits if mask is None else logits.masked_fill(~mask, -torch.inf)).softmax(-1)
        wanted = gradient @ v.mT
        to_logits = shares * (wanted - (wanted * shares).sum(-1, keepdim=True))
        return (to_logits @ k) * q.shape[-1] ** -0.5, to_logits.mT @ scaled, shares.mT @ gradient, None


@final
class Attention(nn.Module):
    """Multi-head self-attention with biased qkv."""

    def __init__(
        self, width: int, num_heads: int, *, dropout: float = 0.0, relative: RelativeBias | None = None
    ) -> None:
        """dropout: of what it puts out.  relative: what is added to logits."""
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.proj_drop = _dropout(dropout)
        self.rel_pos = relative

    def forward(
        self,
        tokens_BSD: Tensor,
        visible_BS: Tensor | None = None,
        wanted: int = 0,
        offsets: Offsets | None = None,
    ) -> Tensor:
        """visible_BS, wanted, offsets: as in `Block`."""
        B, S, D = tokens_BSD.shape
        if wanted:
            weight, bias = self.qkv.weight, self.qkv.bias
            q_BQD = F.linear(tokens_BSD[:, -wanted:], weight[:D], bias[:D])
            k_BSD, v_BSD = F.linear(tokens_BSD, weight[D:], bias[D:]).view(B, S, 2, D).unbind(2)
        else:
            q_BQD, k_BSD, v_BSD = self.qkv(tokens_BSD).view(B, S, 3, D).unbind(2)
        q, k, v = (x.unflatten(2, (self.num_heads, -1)).transpose(1, 2) for x in (q_BQD, k_BSD, v_BSD))
        mask = None if visible_BS is None else visible_BS[:, None, None, :]
        if self.rel_pos is not None:
            assert mask is None
            assert not wanted
            assert offsets is not None
            mask = self.rel_pos(offsets).to(q.dtype)
        slow_backward = q.device.type == "cpu" and q.dtype in _HALVES and q.requires_grad and self.rel_pos is None
        attend = _HalvesOnCpu.apply if slow_backward else F.scaled_dot_product_attention
        mixed: Tensor = attend(q, k, v, mask)
        return self.proj_drop(self.proj(mixed.transpose(1, 2).flatten(2)))


@final
class Mlp(nn.Module):
    """Linear, exact GELU, Linear."""

    def __init__(self, width: int, hidden: int, *, dropout: float = 0.0) -> None:
        """dropout: of what both matrices put out."""
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.drop1 = _dropout(dropout)
        self.fc2 = nn.Linear(hidden, width)
        self.drop2 = _dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.drop2(self.fc2(self.drop1(F.gelu(self.fc1(tokens)))))


def _dropout(rate: float) -> nn.Module:
    return Dropout(rate, 0) if rate else nn.Identity()


@final
class LayerScale(nn.Module):
    """A factor for each number of a branch, learnt (arXiv 2103.17239)."""

    def __init__(self, width: int, start: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((width,), start))

    def forward(self, branch: Tensor) -> Tensor:
        return branch * self.gamma


@final
class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(
        self,
        width: int,
        num_heads: int,
        *,
        drop_path: float = 0.0,
        dropout: float = 0.0,
        layer_scale: float | None = None,
        relative: RelativeBias | None = None,
    ) -> None:
        """drop_path: rate at which an image loses a branch.  dropout: of single numbers in both.

        layer_scale: what the factors of branches begin with; None for no factors.  relative: of the attention.
        """
        super().__init__()
        self.norm1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, num_heads, dropout=dropout, relative=relative)
        self.norm2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = Mlp(width, 4 * width, dropout=dropout)
        self.ls1, self.ls2 = (
            nn.Identity() if layer_scale is None else LayerScale(width, layer_scale) for _ in range(2)
        )
        self.drop_path1, self.drop_path2 = (DropPath(drop_path, 0) if drop_path else nn.Identity() for _ in range(2))

    def forward(
        self,
        tokens_BSD: Tensor,
        visible_BS: Tensor | None = None,
        wanted: int = 0,
        offsets: Offsets | None = None,
    ) -> Tensor:
        """visible_BS: True for tokens that may be attended to; all without it.

        wanted: only that many of the last tokens are returned, and only their part is computed; 0 for all.
        offsets: of the tokens, where the attention has a relative bias; then without the two others.
        """
        attended = self.attn(self.norm1(tokens_BSD), visible_BS, wanted, offsets)
        tokens_BSD = tokens_BSD[:, -wanted:] + self.drop_path1(self.ls1(attended))
        return tokens_BSD + self.drop_path2(self.ls2(self.mlp(self.norm2(tokens_BSD))))


@final
class ComputedAgain:
    """A block's forward that keeps its inputs alone: the backward pass computes the rest again, and drops the same."""

    def __init__(self, forward: Callable[..., Tensor]) -> None:
        self.forward = forward

    def __call__(self, *inputs: Any, **named: Any) -> Tensor:
        if not torch.is_grad_enabled():
            return self.forward(*inputs, **named)
        return checkpoint(
            self.forward, *inputs, use_reentrant=False, preserve_rng_state=False, context_fn=_first_and_again, **named
        )


def _first_and_again() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _again(current())


@contextmanager
def _again(drops: Drops | None) -> Iterator[None]:
    with dropping(drops), computing_again():
        yield


def sincos_positions(side: int, width: int, *, extent: int) -> Tensor:
    """[side * side, width] sines and cosines of the centres of cells, in units of a grid of extent x extent.

    A table for another resolution or a coarser level is this table on other centres, so both share one
    geometry. The first half of a row is of the cell's row, the second of its column; MAE and I-JEPA have them the other
    way round (docs/decisions.md).
    """
    assert width % 4 == 0
    scale = extent / side
    centre = torch.arange(side, dtype=torch.float64) * scale + (scale - 1) / 2
    frequency = 10000.0 ** (-torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angle = centre[:, None] * frequency
    wave = torch.cat([angle.sin(), angle.cos()], 1)
    down, across = wave[:, None].expand(-1, side, -1), wave[None].expand(side, -1, -1)
    return torch.cat([down, across], -1).flatten(0, 1).float()


@torch.no_grad()
def initialise(module: nn.Module, generator: torch.Generator) -> None:
    """Xavier-uniform matrices, zero biases; a patch embedding with standard deviation 1/sqrt(fan-in).

    The last makes content and position start at equal size. With the usual 0.02 a patch of 4 pixels is
    drowned by its position and learnt nothing in 200 steps.
    """
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight, generator=generator)
        elif isinstance(part, nn.Conv2d):
            nn.init.normal_(part.weight, std=part.weight[0].numel() ** -0.5, generator=generator)
        if isinstance(part, nn.Linear | nn.Conv2d) and part.bias is not None:
            nn.init.zeros_(part.bias)
