"""The probe protocol: what frozen features know about labels, always by the same rules.

Legend: N rows of the bank, M rows of the test, D dimensions, C classes.

Linear: softmax regression on features standardised by the bank, L-BFGS with a strong Wolfe line search, 100
iterations; L2 out of 1e-5 .. 1e-2 by the accuracy on a keyed tenth of the bank, then a fit on all of it. The
loss is the mean cross-entropy + L2 x the sum of squared weights (scikit-learn's C is 1 / (2 N L2)); biases
are free. k-NN: cosine, 20 neighbours voting exp(similarity / .07); on the features as they are, centred by
the bank, and PCA-whitened by the bank. Whitening alone lifts untrained features by 10 points, so all three
are given.

Given up: sweeps of learning rates, augmentation, several seeds: a probe must be cheap, and the same for all
rows of a table. Raw 32x32 pixels (D = 3,072, N = 10,000) are the most expensive: about 17 s of linear fits on 2
cores.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from hjepa_shards.base.keyed_random import derive_key, permutation
from hjepa_shards.errors import InputError

L2_CANDIDATES = (1e-2, 1e-3, 1e-4, 1e-5)  # of equals the first, most regularised one is taken
NUM_ITERATIONS = 100
NUM_NEIGHBOURS = 20
TEMPERATURE = 0.07


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class ProbeRow:
    """One kind of features under the protocol. Accuracies in percent."""

    features: str
    """What was probed: "online", "target", "untrained", "raw pixels", "PCA-30" ..."""
    linear: float
    knn: float
    knn_centred: float
    knn_whitened: float
    dims: int
    l2: float
    """The L2 that was chosen."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Pca:
    """Principal components of a bank, largest variance first, without those that are rounding noise."""

    mean: Tensor
    """[D]"""
    axes: Tensor
    """[D, K], orthonormal columns"""
    variance: Tensor
    """[K]"""

    def project(self, features_ND: Tensor) -> Tensor:
        return (features_ND - self.mean) @ self.axes

    def whiten(self, features_ND: Tensor) -> Tensor:
        return self.project(features_ND) / self.variance.sqrt()


def probe(
    name: str,
    bank_ND: Tensor,
    bank_labels_N: Tensor,
    test_MD: Tensor,
    test_labels_M: Tensor,
    *,
    seed: int = 0,
) -> ProbeRow:
    """The row of these features, all four tensors on one device. Images [N, 3, R, R] are flattened."""
    bank, test = checked(name, "bank", bank_ND, bank_labels_N), checked(name, "test", test_MD, test_labels_M)
    plain, centred, whitened = knn_probe(bank, bank_labels_N, test, test_labels_M)
    linear, l2 = linear_probe(bank, bank_labels_N, test, test_labels_M, seed=seed)
    return ProbeRow(
        features=name,
        linear=linear,
        knn=plain,
        knn_centred=centred,
        knn_whitened=whitened,
        dims=bank.shape[1],
        l2=l2,
    )


def knn_probe(
    bank_ND: Tensor, bank_labels_N: Tensor, test_MD: Tensor, test_labels_M: Tensor
) -> tuple[float, float, float]:
    """k-NN on features of `checked`: as they are, centred, whitened."""
    with full_precision():
        components = fit_pca(bank_ND)
        plain, centred, whitened = (
            knn_accuracy(seen, bank_labels_N, new, test_labels_M)
            for seen, new in (
                (bank_ND, test_MD),
                (bank_ND - components.mean, test_MD - components.mean),
                (components.whiten(bank_ND), components.whiten(test_MD)),
            )
        )
    return plain, centred, whitened


def linear_probe(
    bank_ND: Tensor, bank_labels_N: Tensor, test_MD: Tensor, test_labels_M: Tensor, *, seed: int = 0
) -> tuple[float, float]:
    """Softmax regression on features of `checked`: percent right on the test, and the L2 chosen for it."""
    bank_ND, test_MD = standardise(bank_ND, test_MD)
    num_classes = int(torch.maximum(bank_labels_N.max(), test_labels_M.max())) + 1
    held, rest = held_out_tenth(len(bank_ND), seed, bank_ND.device)

    def accuracy(fitted: tuple[Tensor, Tensor], features: Tensor, labels: Tensor) -> float:
        return percent(F.linear(features, *fitted).argmax(dim=1) == labels, labels)

    with full_precision():
        on_held = {
            l2: accuracy(
                fit_linear(bank_ND[rest], bank_labels_N[rest], num_classes, l2),
                bank_ND[held],
                bank_labels_N[held],
            )
            for l2 in L2_CANDIDATES
        }
        best = max(on_held, key=lambda l2: on_held[l2])
        return accuracy(fit_linear(bank_ND, bank_labels_N, num_classes, best), test_MD, test_labels_M), best


def pca(bank_ND: Tensor, test_MD: Tensor, dims: int = 30) -> tuple[Tensor, Tensor]:
    """Bank [N, dims] and test [M, dims] on the bank's first principal components (or all it has)."""
    fitted = fit_pca(bank_ND.flatten(1).float(), dims)
    return (
        fitted.project(bank_ND.flatten(1).float())[:, :dims],
        fitted.project(test_MD.flatten(1).float())[:, :dims],
    )


def chance(bank_labels_N: Tensor, test_labels_M: Tensor) -> float:
    """Percent right for always answering the bank's commonest class."""
    check_labels("chance", "bank", bank_labels_N)
    return percent(test_labels_M == bank_labels_N.bincount().argmax(), test_labels_M)


def fit_pca(bank_ND: Tensor, leading: int | None = None) -> Pca:
    """All principal components, or the `leading` ones, which for images is four times as fast.

    In float64 on the CPU: not every device has it, and small variances drown in float32. From the smaller of the two
    products: [D, D], or [N, N] where there are fewer rows than dimensions.
    """
    exact_ND = bank_ND.detach().cpu().double()  # MPS converts nothing to float64
    mean_D = exact_ND.mean(dim=0)
    exact_ND = (exact_ND - mean_D) / max(len(exact_ND) - 1, 1) ** 0.5
    few_rows = exact_ND.shape[0] < exact_ND.shape[1]
    import scipy.linalg  # half a second, for those who probe

    product = exact_ND @ exact_ND.T if few_rows else exact_ND.T @ exact_ND
    first = max(len(product) - (leading or len(product)), 0)
    eigen = scipy.linalg.eigh(product.numpy(), subset_by_index=[first, len(product) - 1])
    variance_K, vectors_K = (torch.from_numpy(part).flip(-1) for part in eigen)
    real_K = variance_K > 1e-9 * variance_K[0].clamp(min=1e-30)
    variance_K, vectors_K = variance_K[real_K], vectors_K[:, real_K]
    axes_DK = exact_ND.T @ vectors_K / variance_K.sqrt() if few_rows else vectors_K
    return Pca(mean=mean_D.to(bank_ND), axes=axes_DK.to(bank_ND), variance=variance_K.to(bank_ND))


def fit_linear(features_ND: Tensor, labels_N: Tensor, num_classes: int, l2: float) -> tuple[Tensor, Tensor]:
    """Weights [C, D] and biases [C] of a softmax regression."""
    dims = features_ND.shape[1]
    flat = torch.zeros(num_classes * (dims + 1), device=features_ND.device, requires_grad=True)
    optimizer = torch.optim.LBFGS(
        [flat], max_iter=NUM_ITERATIONS, max_eval=2 * NUM_ITERATIONS, line_search_fn="strong_wolfe"
    )

    def parts() -> tuple[Tensor, Tensor]:
        return flat[: num_classes * dims].view(num_classes, dims), flat[num_classes * dims :]

    def closure() -> Tensor:
        optimizer.zero_grad()
        weight_CD, bias_C = parts()
        loss = F.cross_entropy(F.linear(features_ND, weight_CD, bias_C), labels_N) + l2 * weight_CD.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    weight_CD, bias_C = parts()
    return weight_CD.detach(), bias_C.detach()


def knn_predict(bank_ND: Tensor, bank_labels_N: Tensor, test_MD: Tensor, chunk: int = 512) -> Tensor:
    """Classes [M] by cosine k-NN; equal votes go to the smaller class. A bank below 20 rows votes whole."""
    bank_DN = F.normalize(bank_ND, dim=1).T
    num_classes = int(bank_labels_N.max()) + 1
    predicted: list[Tensor] = []
    for part_BD in F.normalize(test_MD, dim=1).split(chunk):
        similarity_BK, nearest_BK = (part_BD @ bank_DN).topk(min(NUM_NEIGHBOURS, len(bank_ND)))
        votes_BC = similarity_BK.new_zeros(len(part_BD), num_classes)
        votes_BC.scatter_add_(1, bank_labels_N[nearest_BK], (similarity_BK / TEMPERATURE).exp())
        predicted.append(votes_BC.argmax(dim=1))
    return torch.cat(predicted)


def knn_accuracy(bank_ND: Tensor, bank_labels_N: Tensor, test_MD: Tensor, test_labels_M: Tensor) -> float:
    """Percent right of cosine k-NN."""
    return percent(knn_predict(bank_ND, bank_labels_N, test_MD) == test_labels_M, test_labels_M)


def standardise(bank_ND: Tensor, test_MD: Tensor) -> tuple[Tensor, Tensor]:
    """Mean 0 and deviation 1 over the bank; a dimension that is constant there says nothing and becomes 0."""
    deviation_D, mean_D = torch.std_mean(bank_ND, dim=0, correction=0)
    says_nothing_D = deviation_D <= 1e-6 * mean_D.abs()  # rounding makes it differ a little from 0
    scale_D = deviation_D.reciprocal().masked_fill(says_nothing_D, 0)
    return (bank_ND - mean_D) * scale_D, (test_MD - mean_D) * scale_D


def held_out_tenth(num_rows: int, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """(a keyed tenth of the bank's rows, by which settings are chosen; the rest), as indices."""
    order = torch.from_numpy(permutation(derive_key(seed, "probe", "held-out tenth"), num_rows))
    held, rest = order.to(device).tensor_split([max(num_rows // 10, 1)])
    return held, rest


def percent(right: Tensor, rows: Tensor) -> float:
    """Of rows that are right."""
    return 100 * int(right.sum()) / len(rows)


def checked(name: str, part: str, features: Tensor, labels_N: Tensor) -> Tensor:
    """Features as float32 [N, D]; InputError where nothing can be learnt from them."""
    flat_ND = features.detach().flatten(1).float()
    if len(flat_ND) != len(labels_N) or len(flat_ND) < 2:
        raise InputError(
            f"{name}: {part}: at least 2 rows and a label for each expected, "
            f"{len(flat_ND)} rows and {len(labels_N)} labels found"
        )
    check_labels(name, part, labels_N)
    num_broken = int((~flat_ND.isfinite().all(dim=1)).sum())
    if num_broken:
        raise InputError(
            f"{name}: {part}: finite features expected, NaN or infinity found in {num_broken} of "
            f"{len(flat_ND)} rows; the run diverged: probe an earlier checkpoint"
        )
    return flat_ND


def check_labels(name: str, part: str, labels_N: Tensor) -> None:
    num_unlabelled = int((labels_N < 0).sum())
    if num_unlabelled:
        raise InputError(
            f"{name}: {part}: a label for each row expected, {num_unlabelled} of {len(labels_N)} found "
            "without one (-1); probe a labelled split"
        )


@contextmanager
def full_precision() -> Iterator[None]:
    """float32 products as such, whatever a trainer chose for speed (TF32 keeps 10 bits)."""
    chosen = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(chosen)
