"""Linear probes by SGD as papers train them: several learning rates in one pass, the best by a held-out tenth.

Heads that see the same batches share one matrix product, so ten learning rates cost little more than one. Features are
frozen, standardised by the bank (MAE's BatchNorm without parameters, over all rows instead of a batch's); SGD with
momentum .9, no weight decay, batches of 256, a half cosine to 0 over 50 passes, heads that start at zero; the order of
each pass is keyed. Nine tenths of the bank are learnt from, the keyed tenth (linear_knn_probes.py) chooses, and the
chosen head is tested as it is. Learning rates are for batches of 256, which is what papers quote them for.

Given up: augmentation (every image would have to be encoded again in each pass), and so a point or two.

Legend: N rows of the bank, M rows of the test, D dimensions, C classes, H heads, B a batch.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from hjepa_shards.base.keyed_random import derive_key, permutation
from hjepa_train.evaluation.linear_knn_probes import full_precision, held_out_tenth, percent, predict
from hjepa_train.evaluation.standardised_rows import Rows, dims_of, standardise

LEARNING_RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # of equals the first, smallest one is taken
NUM_PASSES = 50
BATCH = 256
MOMENTUM = 0.9


def sgd_probe(
    bank_ND: Tensor, bank_labels_N: Tensor, test_MD: Tensor, test_labels_M: Tensor, *, seed: int = 0
) -> tuple[float, float]:
    """Percent right on the test, and the learning rate chosen for it, of features of `checked`."""
    bank, test = standardise(bank_ND, test_MD)
    num_classes = int(torch.maximum(bank_labels_N.max(), test_labels_M.max())) + 1
    held, rest = held_out_tenth(len(bank), seed, bank_ND.device)
    with full_precision():
        heads = zip(
            *fit_heads(bank.only(rest), bank_labels_N[rest], num_classes, LEARNING_RATES, seed=seed), strict=True
        )
        heads, new = list(heads), bank.only(held)
        on_held = [percent(predict(head, new) == bank_labels_N[held], held) for head in heads]
        best = on_held.index(max(on_held))
        return percent(predict(heads[best], test) == test_labels_M, test_labels_M), LEARNING_RATES[best]


def fit_heads(
    rows: Rows, labels_N: Tensor, num_classes: int, learning_rates: tuple[float, ...], *, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Weights [H, C, D] and biases [H, C], a head for each learning rate, each what it would have become alone."""
    dims, device = dims_of(rows), labels_N.device
    with torch.enable_grad():
        heads = [
            (
                torch.zeros(num_classes, dims, device=device, requires_grad=True),
                torch.zeros(num_classes, device=device, requires_grad=True),
            )
            for _ in learning_rates
        ]
        optimizer = torch.optim.SGD(
            [{"params": head, "lr": lr} for head, lr in zip(heads, learning_rates, strict=True)], momentum=MOMENTUM
        )
        batches, order = math.ceil(len(rows) / BATCH), torch.empty(0)
        for step in range(NUM_PASSES * batches):
            number, batch = divmod(step, batches)
            if batch == 0:
                order = torch.from_numpy(permutation(derive_key(seed, "probe", "sgd", number), len(rows)))
                order = order.to(device)
            share = 0.5 * (1 + math.cos(math.pi * step / (NUM_PASSES * batches)))
            for group, lr in zip(optimizer.param_groups, learning_rates, strict=True):
                group["lr"] = lr * share
            chosen = order[batch * BATCH : (batch + 1) * BATCH]
            logits = F.linear(
                rows[chosen], torch.cat([weight for weight, _ in heads]), torch.cat([bias for _, bias in heads])
            )
            every_BH = labels_N[chosen].repeat_interleave(len(heads))
            loss = F.cross_entropy(logits.view(-1, num_classes), every_BH) * len(heads)  # the heads' means, summed
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return (
        torch.stack([weight.detach() for weight, _ in heads]),
        torch.stack([bias.detach() for _, bias in heads]),
    )
