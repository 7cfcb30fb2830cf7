"""The ridge probe: least squares in closed form, cheap enough for a number during a run.

One column a class, +1 where a row is of it and -1 elsewhere, the largest wins, as scikit-learn's RidgeClassifier has
it. Features are standardised by the bank, biases are free; the penalty is `l2` x N x the sum of squared weights
(scikit-learn's alpha is N x `l2`), out of 1 .. 1e-4 by the accuracy on the keyed tenth that the linear probe holds out
too (linear_knn_probes.py), then a fit on all of the bank. In float64, on the CPU where the device has none.

Legend: N rows of the bank, M rows of the test, D dimensions, C classes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from hjepa_train.evaluation.linear_knn_probes import held_out_tenth, percent, standardise

L2_CANDIDATES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4)  # of equals the first, most regularised one is taken


def ridge_probe(
    bank_ND: Tensor, bank_labels_N: Tensor, test_MD: Tensor, test_labels_M: Tensor, *, seed: int = 0
) -> tuple[float, float]:
    """Percent right on the test, and the `l2` chosen for it, of features of `checked`."""
    device = torch.device("cpu") if bank_ND.device.type == "mps" else bank_ND.device
    bank_ND, test_MD = (features.to(device).double() for features in standardise(bank_ND, test_MD))
    bank_labels_N, test_labels_M = bank_labels_N.to(device), test_labels_M.to(device)
    num_classes = int(torch.maximum(bank_labels_N.max(), test_labels_M.max())) + 1
    held, rest = held_out_tenth(len(bank_ND), seed, device)
    fits = fit_ridge(bank_ND[rest], bank_labels_N[rest], num_classes, L2_CANDIDATES)
    on_held = [_accuracy(fitted, bank_ND[held], bank_labels_N[held]) for fitted in fits]
    best = L2_CANDIDATES[on_held.index(max(on_held))]
    [fitted] = fit_ridge(bank_ND, bank_labels_N, num_classes, [best])
    return _accuracy(fitted, test_MD, test_labels_M), best


def fit_ridge(
    features_ND: Tensor, labels_N: Tensor, num_classes: int, l2s: Sequence[float]
) -> list[tuple[Tensor, Tensor]]:
    """Weights [C, D] and biases [C] for each l2; float64 features.

    From the smaller of the two products: [D, D], or [N, N] where there are fewer rows than dimensions.
    """
    rows, dims = features_ND.shape
    wanted_NC = torch.full((rows, num_classes), -1.0, dtype=features_ND.dtype, device=features_ND.device)
    wanted_NC.scatter_(1, labels_N[:, None], 1)
    mean_D, mean_C = features_ND.mean(0), wanted_NC.mean(0)
    centred_ND, wanted_NC = features_ND - mean_D, wanted_NC - mean_C
    few_rows = rows < dims
    product = centred_ND @ centred_ND.T if few_rows else centred_ND.T @ centred_ND
    right = wanted_NC if few_rows else centred_ND.T @ wanted_NC
    fits = []
    for l2 in l2s:
        penalty = torch.full((len(product),), l2 * rows, dtype=product.dtype, device=product.device)
        solved = torch.cholesky_solve(right, torch.linalg.cholesky(product + penalty.diag()))
        weight_CD = (centred_ND.T @ solved if few_rows else solved).T
        fits.append((weight_CD, mean_C - weight_CD @ mean_D))
    return fits


def _accuracy(fitted: tuple[Tensor, Tensor], features: Tensor, labels: Tensor) -> float:
    weight_CD, bias_C = fitted
    return percent((features @ weight_CD.T + bias_C).argmax(1) == labels, labels)
