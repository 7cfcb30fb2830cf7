"""The ridge probe: least squares in closed form, cheap enough for a number during a run.

One column a class, +1 where a row is of it and -1 elsewhere, the largest wins, as scikit-learn's RidgeClassifier has
it. Features are standardised by the bank, biases are free; the penalty is `l2` x N x the sum of squared weights
(scikit-learn's alpha is N x `l2`), out of 1 .. 1e-4 by the accuracy on the keyed tenth that the linear probe holds out
too (linear_knn_probes.py), then a fit on all of the bank. In float64, on the CPU where the device has none.

Legend: N rows of the bank, M rows of the test, D dimensions, C classes.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from hjepa_train.evaluation.linear_knn_probes import held_out_tenth, percent, predict
from hjepa_train.evaluation.standardised_rows import Rows, dims_of, parts, standardise

L2_CANDIDATES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)  # of equals the first, most regularised one is taken


def ridge_probe(
    bank_ND: Tensor, bank_labels_N: Tensor, test_MD: Tensor, test_labels_M: Tensor, *, seed: int = 0
) -> tuple[float, float]:
    """Percent right on the test, and the `l2` chosen for it, of features of `checked`."""
    device = torch.device("cpu") if bank_ND.device.type == "mps" else bank_ND.device
    bank, test = standardise(bank_ND, test_MD)
    bank_labels_N, test_labels_M = bank_labels_N.to(device), test_labels_M.to(device)
    num_classes = int(torch.maximum(bank_labels_N.max(), test_labels_M.max())) + 1
    held, rest = held_out_tenth(len(bank), seed, bank_ND.device)
    new, its_labels = bank.only(held), bank_labels_N[held.to(device)]
    fits = fit_ridge(bank.only(rest), bank_labels_N[rest.to(device)], num_classes, L2_CANDIDATES)
    on_held = [percent(predict(fitted, new) == its_labels, its_labels) for fitted in fits]
    best = L2_CANDIDATES[on_held.index(max(on_held))]
    [fitted] = fit_ridge(bank, bank_labels_N, num_classes, [best])
    return percent(predict(fitted, test) == test_labels_M, test_labels_M), best


def fit_ridge(rows: Rows, labels_N: Tensor, num_classes: int, l2s: Sequence[float]) -> list[tuple[Tensor, Tensor]]:
    """Weights [C, D] and biases [C] for each l2, in float64 on the labels' device.

    From the smaller of the two products: [D, D], or [N, N] where there are fewer rows than dimensions. Sums over rows
    are made a part at a time. LinAlgError where the product with its penalty cannot be inverted.
    """
    dims, device = dims_of(rows), labels_N.device
    few_rows = len(rows) < dims
    every = [slice(0, len(rows))] if few_rows else list(parts(len(rows), max(dims, num_classes)))
    mean_D = sum((rows[part].to(device).double().sum(0) for part in every), torch.zeros(dims, device=device).double())
    mean_D /= len(rows)
    mean_C = 2 * labels_N.bincount(minlength=num_classes).double() / len(rows) - 1

    def centred() -> Iterator[tuple[Tensor, Tensor]]:
        for part in every:
            wanted_BC = torch.full((part.stop - part.start, num_classes), -1.0, dtype=torch.float64, device=device)
            wanted_BC.scatter_(1, labels_N[part, None], 1)
            yield rows[part].to(device).double() - mean_D, wanted_BC - mean_C

    centred_ND = torch.empty(0)
    if few_rows:
        [(centred_ND, right)] = centred()
        product = centred_ND @ centred_ND.T
    else:
        product = torch.zeros(dims, dims, dtype=torch.float64, device=device)
        right = torch.zeros(dims, num_classes, dtype=torch.float64, device=device)
        for part_BD, wanted_BC in centred():
            product.addmm_(part_BD.T, part_BD)
            right.addmm_(part_BD.T, wanted_BC)
    fits = []
    for l2 in l2s:
        penalty = torch.full((len(product),), l2 * len(rows), dtype=product.dtype, device=device)
        solved = torch.cholesky_solve(right, torch.linalg.cholesky(product + penalty.diag()))
        weight_CD = (centred_ND.T @ solved if few_rows else solved).T
        fits.append((weight_CD, mean_C - weight_CD @ mean_D))
    return fits
