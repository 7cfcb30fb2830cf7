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

Memory besides the features is bounded (standardised_rows.py): neither N x C logits nor N similarities are ever whole.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.nn import functional as F

from hjepa_shards.base.keyed_random import derive_key, permutation
from hjepa_shards.errors import InputError
from hjepa_train.evaluation.standardised_rows import Rows, dims_of, parts, standardise

L2_CANDIDATES = (1e-2, 1e-3, 1e-4, 1e-5)  # of equals the first, most regularised one is taken
NUM_ITERATIONS = 100
NUM_NEIGHBOURS = 20
TEMPERATURE = 0.07
_MOST_HISTORY = 2**28
"""Numbers that L-BFGS keeps of earlier iterations, 1 GiB: all 100 up to a million weights."""


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

    def centre(self, features_ND: Tensor) -> Tensor:
        return features_ND - self.mean

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
            knn_accuracy(bank_ND, bank_labels_N, test_MD, test_labels_M, form=form)
            for form in (_as_they_are, components.centre, components.whiten)
        )
    return plain, centred, whitened


def linear_probe(
    bank_ND: Tensor, bank_labels_N: Tensor, test_MD: Tensor, test_labels_M: Tensor, *, seed: int = 0
) -> tuple[float, float]:
    """Softmax regression on features of `checked`: percent right on the test, and the L2 chosen for it."""
    bank, test = standardise(bank_ND, test_MD)
    num_classes = int(torch.maximum(bank_labels_N.max(), test_labels_M.max())) + 1
    held, rest = held_out_tenth(len(bank), seed, bank_ND.device)
    seen, new = bank.only(rest), bank.only(held)
    with full_precision():
        on_held = {
            l2: _accuracy(fit_linear(seen, bank_labels_N[rest], num_classes, l2), new, bank_labels_N[held])
            for l2 in L2_CANDIDATES
        }
        del seen, new
        best = max(on_held, key=lambda l2: on_held[l2])
        fitted = fit_linear(bank.held(), bank_labels_N, num_classes, best)
        return _accuracy(fitted, test, test_labels_M), best


def _accuracy(fitted: tuple[Tensor, Tensor], rows: Rows, labels_N: Tensor) -> float:
    """Percent right of weights [C, D] and biases [C]."""
    return percent(predict(fitted, rows) == labels_N, labels_N)


def predict(fitted: tuple[Tensor, Tensor], rows: Rows) -> Tensor:
    """Classes [N], by weights [C, D] and biases [C] of the rows' kind of numbers."""
    weight_CD, bias_C = fitted
    logits = (F.linear(rows[part].to(weight_CD), weight_CD, bias_C) for part in parts(len(rows), max(weight_CD.shape)))
    return torch.cat([part_BC.argmax(dim=1) for part_BC in logits])


def pca(bank_ND: Tensor, test_MD: Tensor, dims: int = 30) -> tuple[Tensor, Tensor]:
    """Bank [N, dims] and test [M, dims] on the bank's first principal components (or all it has)."""
    fitted = fit_pca(bank_ND.flatten(1), dims)

    def projected(features_ND: Tensor) -> Tensor:
        rows = features_ND.flatten(1)
        return torch.cat([fitted.project(rows[part].float())[:, :dims] for part in parts(*rows.shape)])

    return projected(bank_ND), projected(test_MD)


def chance(bank_labels_N: Tensor, test_labels_M: Tensor) -> float:
    """Percent right for always answering the bank's commonest class."""
    check_labels("chance", "bank", bank_labels_N)
    return percent(test_labels_M == bank_labels_N.bincount().argmax(), test_labels_M)


def fit_pca(bank_ND: Tensor, leading: int | None = None) -> Pca:
    """All principal components, or the `leading` ones, which for images is four times as fast.

    In float64 on the CPU: not every device has it, and small variances drown in float32. From the smaller of the two
    products: [D, D], or [N, N] where there are fewer rows than dimensions.
    """
    import scipy.linalg  # half a second, for those who probe

    rows, dims = bank_ND.shape
    few_rows = rows < dims

    def exact(part: slice) -> Tensor:
        return bank_ND[part].detach().cpu().double()  # MPS converts nothing to float64

    mean_D = sum((exact(part).sum(dim=0) for part in parts(rows, dims)), torch.zeros(dims).double()) / rows

    def centred(part: slice) -> Tensor:
        return exact(part).sub_(mean_D).div_(max(rows - 1, 1) ** 0.5)

    whole_ND = centred(slice(None)) if few_rows else torch.empty(0)
    if few_rows:
        product = whole_ND @ whole_ND.T
    else:
        product = torch.zeros(dims, dims).double()
        for part in parts(rows, dims):
            part_BD = centred(part)
            product.addmm_(part_BD.T, part_BD)
    first = max(len(product) - (leading or len(product)), 0)
    eigen = scipy.linalg.eigh(product.numpy(), subset_by_index=[first, len(product) - 1])
    variance_K, vectors_K = (torch.from_numpy(part).flip(-1) for part in eigen)
    real_K = variance_K > 1e-9 * variance_K[0].clamp(min=1e-30)
    variance_K, vectors_K = variance_K[real_K], vectors_K[:, real_K]
    axes_DK = whole_ND.T @ vectors_K / variance_K.sqrt() if few_rows else vectors_K
    mean_D, axes_DK, variance_K = (found.float().to(bank_ND.device) for found in (mean_D, axes_DK, variance_K))
    return Pca(mean=mean_D, axes=axes_DK, variance=variance_K)


@torch.no_grad()
def fit_linear(rows: Rows, labels_N: Tensor, num_classes: int, l2: float) -> tuple[Tensor, Tensor]:
    """Weights [C, D] and biases [C] of a softmax regression on standardised rows.

    At most 100 iterations of at most 200 evaluations in all. Logits are those of a part of the rows at a time, in
    memory that is taken once: what L-BFGS keeps of each iteration would else come to lie between them.
    """
    dims, num = dims_of(rows), len(rows)
    flat = torch.zeros(num_classes * (dims + 1), device=labels_N.device)
    flat.grad = gradient = torch.zeros_like(flat)
    weight_CD, bias_C = _weights_in(flat, num_classes)
    weight_gradient_CD, bias_gradient_C = _weights_in(gradient, num_classes)
    most = next(parts(num, max(num_classes, dims))).stop
    logits_NC, log_share_NC = (torch.empty(most, num_classes, device=flat.device) for _ in range(2))
    one_more = torch.full((most, 1), -1 / num, device=flat.device)
    optimizer = torch.optim.LBFGS(
        [flat],
        max_iter=NUM_ITERATIONS,
        max_eval=2 * NUM_ITERATIONS,
        history_size=max(1, min(NUM_ITERATIONS, _MOST_HISTORY // (2 * len(flat)))),
        line_search_fn="strong_wolfe",
    )

    @torch.no_grad()
    def closure() -> Tensor:
        """The loss; `gradient` becomes its own."""
        total = l2 * weight_CD.square().sum()
        gradient.zero_()
        for part in parts(num, max(num_classes, dims)):
            row_BD, label_B = rows[part], labels_N[part]
            logits_BC, log_share_BC = logits_NC[: len(row_BD)], log_share_NC[: len(row_BD)]
            torch.addmm(bias_C, row_BD, weight_CD.T, out=logits_BC)
            torch.log_softmax(logits_BC, 1, out=log_share_BC)
            total += F.nll_loss(log_share_BC, label_B) * (len(row_BD) / num)
            torch.exp(log_share_BC, out=logits_BC).mul_(1 / num)
            logits_BC.scatter_add_(1, label_B[:, None], one_more[: len(row_BD)])
            weight_gradient_CD.addmm_(logits_BC.T, row_BD)
            bias_gradient_C.add_(logits_BC.sum(0))
        weight_gradient_CD.add_(weight_CD * (2 * l2))
        return total

    optimizer.step(closure)
    return weight_CD, bias_C


def _weights_in(flat: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Weights [C, D] and biases [C], as views."""
    return flat[:-num_classes].view(num_classes, -1), flat[-num_classes:]


def _as_they_are(features_ND: Tensor) -> Tensor:
    return features_ND


def knn_predict(
    bank_ND: Tensor,
    bank_labels_N: Tensor,
    test_MD: Tensor,
    chunk: int = 512,
    *,
    form: Callable[[Tensor], Tensor] = _as_they_are,
) -> Tensor:
    """Classes [M] by cosine k-NN; equal votes go to the smaller class. A bank below 20 rows votes whole.

    chunk: rows of the test that are compared at once.  form: what is made of a part of the rows before.
    """
    num_classes, dims = int(bank_labels_N.max()) + 1, bank_ND.shape[1]
    nearest: list[tuple[Tensor, Tensor]] = []
    """Of each chunk, similarities and labels [B, K] of the nearest rows of the parts so far."""
    for number, part in enumerate(parts(len(bank_ND), max(dims, chunk))):
        bank_DN = F.normalize(form(bank_ND[part]), dim=1).T
        found = [
            _nearest(chunk_BD, bank_DN, bank_labels_N[part])
            for test_part in parts(len(test_MD), dims)
            for chunk_BD in F.normalize(form(test_MD[test_part]), dim=1).split(chunk)
        ]
        nearest = [_merged(*both) for both in zip(nearest, found, strict=True)] if number else found
    predicted: list[Tensor] = []
    for similarity_BK, labels_BK in nearest:
        votes_BC = similarity_BK.new_zeros(len(similarity_BK), num_classes)
        votes_BC.scatter_add_(1, labels_BK, (similarity_BK / TEMPERATURE).exp())
        predicted.append(votes_BC.argmax(dim=1))
    return torch.cat(predicted)


def _nearest(test_BD: Tensor, bank_DN: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
    """Similarities [B, K], the largest first, and labels [B, K]."""
    similarity_BK, index_BK = (test_BD @ bank_DN).topk(min(NUM_NEIGHBOURS, bank_DN.shape[1]))
    return similarity_BK, labels_N[index_BK]


def _merged(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """The nearest of two parts of the bank."""
    similarity_BK, labels_BK = (torch.cat(both, dim=1) for both in zip(one, other, strict=True))
    similarity_BK, index_BK = similarity_BK.topk(min(NUM_NEIGHBOURS, similarity_BK.shape[1]))
    return similarity_BK, labels_BK.gather(1, index_BK)


def knn_accuracy(
    bank_ND: Tensor,
    bank_labels_N: Tensor,
    test_MD: Tensor,
    test_labels_M: Tensor,
    *,
    form: Callable[[Tensor], Tensor] = _as_they_are,
) -> float:
    """Percent right of cosine k-NN."""
    return percent(knn_predict(bank_ND, bank_labels_N, test_MD, form=form) == test_labels_M, test_labels_M)


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
    num_broken = sum(int((~flat_ND[part].isfinite().all(dim=1)).sum()) for part in parts(*flat_ND.shape))
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
