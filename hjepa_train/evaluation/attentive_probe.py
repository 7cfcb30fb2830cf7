"""The attentive probe: one learnt query looks at an image's tokens, a linear head at what it saw (arXiv 2404.08471).

For features whose label sits in some of the tokens, which an average drowns. Tokens are the frozen encoder's last,
after a LayerNorm without parameters; multi-head cross-attention of one query; AdamW with weight decay .01, batches of
256, 20 passes and at least 500 steps, a tenth of it warm-up, then a half cosine to 0; each pass in a keyed order. Nine
tenths of the bank are learnt from, the keyed tenth (linear_knn_probes.py) chooses the learning rate, and the chosen
head is tested as it is.

All learning rates are trained at once on the same batches, at little more than the price of one: with a single query
the product of tokens and keys is tokens x (keys' weights x query), and values commute with the weighted mean, so that
no token is ever projected (B N D instead of B N D D a head).

Omitted from V-JEPA's block: the projection after the attention, which the linear head makes superfluous, and the MLP.

Legend: B images, N tokens, D width, C classes, K learning rates, H attention heads, E = D / H.
"""

import math
from collections.abc import Callable, Sequence
from typing import final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hjepa_shards.base.keyed_random import derive_key, permutation
from hjepa_train.evaluation.linear_knn_probes import full_precision, held_out_tenth, percent

LEARNING_RATES = (3e-4, 1e-3, 3e-3, 1e-2)  # of equals the first, smallest one is taken
NUM_PASSES = 20
LEAST_STEPS = 500
BATCH = 256
WEIGHT_DECAY = 0.01

Tokens = Callable[[Tensor], Tensor]
"""Tokens [B, N, D] of the images at these indices [B]."""


@final
class AttentiveHead(nn.Module):
    """A query, the weights of keys and values, and a linear head. A bias of keys would move all scores alike."""

    def __init__(self, width: int, num_classes: int, generator: torch.Generator) -> None:
        super().__init__()
        self.num_heads = max((h for h in range(1, 17) if width % h == 0 and width // h >= 32), default=1)
        self.query_D = nn.Parameter(torch.empty(width))
        self.key_DD = nn.Parameter(torch.empty(width, width))
        self.value_DD = nn.Parameter(torch.empty(width, width))
        self.value_D = nn.Parameter(torch.zeros(width))
        self.head_CD = nn.Parameter(torch.zeros(num_classes, width))
        self.head_C = nn.Parameter(torch.zeros(num_classes))
        nn.init.trunc_normal_(self.query_D, std=0.02, generator=generator)
        for weight in (self.key_DD, self.value_DD):
            nn.init.xavier_uniform_(weight, generator=generator)


def forward(heads: Sequence[AttentiveHead], tokens_BND: Tensor) -> Tensor:
    """Logits [B, K, C] of all heads."""
    B, _, D = tokens_BND.shape
    K, H = len(heads), heads[0].num_heads
    E = D // H
    query_KHE = torch.stack([head.query_D for head in heads]).view(K, H, E)
    key_KHED = torch.stack([head.key_DD for head in heads]).view(K, H, E, D)
    value_KHED = torch.stack([head.value_DD for head in heads]).view(K, H, E, D)
    query_SD = torch.einsum("khe,khed->khd", query_KHE, key_KHED).reshape(K * H, D) / math.sqrt(E)
    share_BSN = F.linear(tokens_BND, query_SD).transpose(1, 2).softmax(2)
    seen_BKHD = (share_BSN @ tokens_BND).view(B, K, H, D)
    pooled_BKD = torch.einsum("bkhd,khed->bkhe", seen_BKHD, value_KHED).reshape(B, K, D)
    pooled_BKD = pooled_BKD + torch.stack([head.value_D for head in heads])
    logits_BKC = torch.einsum("bkd,kcd->bkc", pooled_BKD, torch.stack([head.head_CD for head in heads]))
    return logits_BKC + torch.stack([head.head_C for head in heads])


def attentive_probe(
    bank: Tokens, bank_labels_N: Tensor, test: Tokens, test_labels_M: Tensor, *, seed: int = 0
) -> tuple[float, float]:
    """Percent right on the test, and the learning rate chosen for it. Labels and tokens on one device."""
    device = bank_labels_N.device
    num_classes = int(torch.maximum(bank_labels_N.max(), test_labels_M.max())) + 1
    held, rest = held_out_tenth(len(bank_labels_N), seed, device)
    with full_precision():
        heads = fit_heads(bank, bank_labels_N, rest, num_classes, LEARNING_RATES, seed=seed)
        on_held = _accuracies(heads, bank, bank_labels_N, held)
        best = on_held.index(max(on_held))
        every = torch.arange(len(test_labels_M), device=device)
        return _accuracies([heads[best]], test, test_labels_M, every)[0], LEARNING_RATES[best]


def fit_heads(
    tokens: Tokens,
    labels_N: Tensor,
    rows: Tensor,
    num_classes: int,
    learning_rates: Sequence[float],
    *,
    seed: int = 0,
) -> list[AttentiveHead]:
    """A head for each learning rate, from the same initial weights, each what it would have become alone.

    rows: indices of the images to learn from.
    """
    width = tokens(rows[:1]).shape[-1]
    heads = [
        AttentiveHead(width, num_classes, torch.Generator().manual_seed(derive_key(seed, "probe", "head") >> 65))
        for _ in learning_rates
    ]
    with torch.enable_grad():
        for head in heads:
            head.to(rows.device)
        optimizer = torch.optim.AdamW(
            [{"params": list(head.parameters()), "lr": lr} for head, lr in zip(heads, learning_rates, strict=True)],
            weight_decay=WEIGHT_DECAY,
        )
        batches, order = math.ceil(len(rows) / BATCH), rows
        steps = batches * max(NUM_PASSES, math.ceil(LEAST_STEPS / batches))
        for step in range(steps):
            number, batch = divmod(step, batches)
            if batch == 0:
                shuffled = permutation(derive_key(seed, "probe", "attentive", number), len(rows))
                order = rows[torch.from_numpy(shuffled).to(rows.device)]
            for group, lr in zip(optimizer.param_groups, learning_rates, strict=True):
                group["lr"] = lr * _share(step, steps)
            chosen = order[batch * BATCH : (batch + 1) * BATCH]
            logits_BKC = forward(heads, _normed(tokens(chosen)))
            every_BK = labels_N[chosen].repeat_interleave(len(heads))
            loss = F.cross_entropy(logits_BKC.flatten(0, 1), every_BK) * len(heads)  # the heads' means, summed
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return heads


@torch.no_grad()
def _accuracies(heads: Sequence[AttentiveHead], tokens: Tokens, labels_N: Tensor, rows: Tensor) -> list[float]:
    predicted = torch.cat([forward(heads, _normed(tokens(part))).argmax(2) for part in rows.split(BATCH)])
    return [percent(column == labels_N[rows], rows) for column in predicted.unbind(1)]


def _normed(tokens_BND: Tensor) -> Tensor:
    return F.layer_norm(tokens_BND.float(), tokens_BND.shape[-1:])


def _share(step: int, steps: int) -> float:
    """Of the peak learning rate."""
    warmup = max(1, steps // 10)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))
