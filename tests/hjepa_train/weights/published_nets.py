"""The networks of published repositories in plain code, with the names that their checkpoints have, and random weights.

Written after facebookresearch/ijepa, mae, dino and dinov2 and microsoft/SimMIM, as far as a forward pass goes. Nothing
of the product is used here.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

WIDTH, DEPTH, HEADS, PATCH, SIDE = 16, 2, 4, 4, 16
GRID = SIDE // PATCH
Net = TypeVar("Net", bound=nn.Module)


def filled(net: Net, seed: int = 0) -> Net:
    """With random numbers in all that is learnt: norms and biases are not 1 and 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return net.eval()


def sincos(width: int, side: int, has_class: bool) -> Tensor:
    """[1, N, D] as mae/util/pos_embed.py and ijepa/src/models/vision_transformer.py make it."""

    def one_axis(half: int, positions: np.ndarray) -> np.ndarray:
        omega = 1.0 / 10000 ** (np.arange(half // 2, dtype=float) / (half / 2.0))
        out = np.einsum("m,d->md", positions.reshape(-1), omega)
        return np.concatenate([np.sin(out), np.cos(out)], axis=1)

    grid = np.stack(np.meshgrid(np.arange(side, dtype=float), np.arange(side, dtype=float)), axis=0)  # w goes first
    table = np.concatenate([one_axis(width // 2, grid[0]), one_axis(width // 2, grid[1])], axis=1)
    if has_class:
        table = np.concatenate([np.zeros([1, width]), table], axis=0)
    return torch.from_numpy(table).float()[None]


class PatchEmbed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, WIDTH, PATCH, stride=PATCH)

    def forward(self, images: Tensor) -> Tensor:
        return self.proj(images).flatten(2).transpose(1, 2)


class Mlp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, HEADS, C // HEADS).permute(2, 0, 3, 1, 4)
        attn = ((q @ k.transpose(-2, -1)) * (C // HEADS) ** -0.5).softmax(dim=-1)
        return self.proj((attn @ v).transpose(1, 2).reshape(B, N, C))


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    def __init__(self, has_scale: bool = False) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, eps=1e-6), nn.LayerNorm(WIDTH, eps=1e-6)
        self.attn, self.mlp = Attention(), Mlp()
        if has_scale:
            self.ls1, self.ls2 = Scale(), Scale()
        self.has_scale = has_scale

    def forward(self, x: Tensor) -> Tensor:
        first, second = self.attn(self.norm1(x)), None
        x = x + (self.ls1(first) if self.has_scale else first)
        second = self.mlp(self.norm2(x))
        return x + (self.ls2(second) if self.has_scale else second)


class Ijepa(nn.Module):
    """[B, N, D]; no class token, a fixed table."""

    def __init__(self) -> None:
        super().__init__()
        self.pos_embed = nn.Parameter(sincos(WIDTH, GRID, False), requires_grad=False)
        self.patch_embed = PatchEmbed()
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embed(images) + self.pos_embed
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Mae(nn.Module):
    """[B, 1 + N, D]; a fixed table whose class row is 0, and a decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(sincos(WIDTH, GRID, True), requires_grad=False)
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)
        self.decoder_embed = nn.Linear(WIDTH, 8)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, 8))
        self.decoder_pos_embed = nn.Parameter(sincos(8, GRID, True), requires_grad=False)
        self.decoder_blocks = nn.ModuleList([nn.Linear(8, 8)])
        self.decoder_norm = nn.LayerNorm(8)
        self.decoder_pred = nn.Linear(8, 3 * PATCH**2)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embed(images) + self.pos_embed[:, 1:]
        x = torch.cat([(self.cls_token + self.pos_embed[:, :1]).expand(len(x), -1, -1), x], 1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class Dino(nn.Module):
    """[B, 1 + N, D]; a class token and a learnt table; DINOv2 with layer scale, a mask token and registers."""

    def __init__(self, *, is_second: bool = False, num_registers: int = 0, side: int = GRID) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + side**2, WIDTH))
        if is_second:
            self.mask_token = nn.Parameter(torch.zeros(1, WIDTH))
        if num_registers:
            self.register_tokens = nn.Parameter(torch.zeros(1, num_registers, WIDTH))
        self.num_registers = num_registers
        self.patch_embed = PatchEmbed()
        self.blocks = nn.ModuleList(Block(is_second) for _ in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embed(images)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        if self.num_registers:
            x = torch.cat([x[:, :1], self.register_tokens.expand(len(x), -1, -1), x[:, 1:]], 1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class BeitAttention(nn.Module):
    """With biases of q and v alone, and a relative bias whose last rows are of the class token."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH, bias=False), nn.Linear(WIDTH, WIDTH)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(WIDTH)), nn.Parameter(torch.zeros(WIDTH))
        count = (2 * GRID - 1) ** 2
        self.relative_position_bias_table = nn.Parameter(torch.zeros(count + 3, HEADS))
        coords = torch.stack(torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij")).flatten(1)
        relative = (coords[:, :, None] - coords[:, None, :]).permute(1, 2, 0) + GRID - 1
        index = torch.zeros(GRID**2 + 1, GRID**2 + 1, dtype=torch.int64)
        index[1:, 1:] = relative[..., 0] * (2 * GRID - 1) + relative[..., 1]
        index[0, 0:], index[0:, 0], index[0, 0] = count, count + 1, count + 2
        self.register_buffer("relative_position_index", index)

    relative_position_index: Tensor

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        bias = torch.cat([self.q_bias, torch.zeros_like(self.v_bias), self.v_bias])
        q, k, v = F.linear(x, self.qkv.weight, bias).reshape(B, N, 3, HEADS, C // HEADS).permute(2, 0, 3, 1, 4)
        attn = (q * (C // HEADS) ** -0.5) @ k.transpose(-2, -1)
        attn = attn + self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        return self.proj((attn.softmax(dim=-1) @ v).transpose(1, 2).reshape(B, N, C))


class BeitBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH, eps=1e-6), nn.LayerNorm(WIDTH, eps=1e-6)
        self.attn, self.mlp = BeitAttention(), Mlp()
        self.gamma_1, self.gamma_2 = (nn.Parameter(torch.full((WIDTH,), 0.1)) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.gamma_1 * self.attn(self.norm1(x))
        return x + self.gamma_2 * self.mlp(self.norm2(x))


class SimmimVit(nn.Module):
    """[B, 1 + N, D]; no absolute positions."""

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = PatchEmbed()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.mask_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.blocks = nn.ModuleList(BeitBlock() for _ in range(DEPTH))
        self.norm = nn.LayerNorm(WIDTH, eps=1e-6)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patch_embed(images)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def under(prefix: str, net: nn.Module, without: Sequence[str] = ()) -> dict[str, Tensor]:
    """A state_dict() with something before each name."""
    return {f"{prefix}{name}": value for name, value in net.state_dict().items() if name not in without}
