import math
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from hjepa_shards.errors import InputError
from hjepa_train.evaluation.linear_knn_probes import (
    L2_CANDIDATES,
    ProbeRow,
    chance,
    fit_linear,
    fit_pca,
    knn_predict,
    pca,
    probe,
)

Split = tuple[Tensor, Tensor, Tensor, Tensor]


@pytest.fixture(scope="module")
def digits() -> Split:
    data: Any = load_digits()
    images, labels = torch.from_numpy(data["data"]).float(), torch.from_numpy(data["target"]).long()
    return images[:1000], labels[:1000], images[1000:1500], labels[1000:1500]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small products gain nothing from more, and lose much beside other tests."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def standardised(bank: Tensor, test: Tensor) -> tuple[Tensor, Tensor]:
    deviation = bank.std(dim=0, correction=0)
    scale = torch.where(deviation > 0, 1 / deviation, 0)
    return (bank - bank.mean(dim=0)) * scale, (test - bank.mean(dim=0)) * scale


@pytest.mark.parametrize("l2", L2_CANDIDATES[:3])
def test_the_linear_probe_is_scikit_learns_logistic_regression(digits: Split, l2: float) -> None:
    bank, test = standardised(digits[0], digits[2])
    theirs = LogisticRegression(C=1 / (2 * len(bank) * l2), max_iter=5000, tol=1e-6)
    theirs.fit(bank.numpy(), digits[1].numpy())
    weight, bias = fit_linear(bank, digits[1], 10, l2)
    ours = (test @ weight.T + bias).softmax(dim=1).numpy()
    expected = theirs.predict_proba(test.numpy())
    assert np.abs(ours - expected).max() < 0.02
    assert (ours.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.998


def test_knn_is_scikit_learns_with_exponential_votes(digits: Split) -> None:
    bank, labels, test, _ = digits
    votes: Any = lambda distance: np.exp((1 - distance) / 0.07)  # noqa: E731
    theirs = KNeighborsClassifier(20, metric="cosine", algorithm="brute", weights=votes)
    expected = theirs.fit(bank.numpy(), labels.numpy()).predict(test.numpy())
    assert (knn_predict(bank, labels, test).numpy() == expected).all()


def test_knn_is_its_plain_loop_for_any_chunk() -> None:
    draw = torch.Generator().manual_seed(0)
    bank, test = torch.randn(60, 5, generator=draw), torch.randn(17, 5, generator=draw)
    labels = torch.randint(4, (60,), generator=draw)
    expected = []
    for query in test.tolist():
        similarities = [
            (sum(a * b for a, b in zip(query, row, strict=True)) / math.hypot(*query) / math.hypot(*row), label)
            for row, label in zip(bank.tolist(), labels.tolist(), strict=True)
        ]
        votes = [0.0] * 4
        for similarity, label in sorted(similarities, reverse=True)[:20]:
            votes[label] += math.exp(similarity / 0.07)
        expected.append(votes.index(max(votes)))
    for chunk in (1, 4, 17, 512):
        assert knn_predict(bank, labels, test, chunk=chunk).tolist() == expected


def test_a_bank_smaller_than_the_neighbours_votes_whole() -> None:
    bank = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert knn_predict(bank, torch.tensor([0, 1]), torch.tensor([[0.1, 3.0]])).tolist() == [1]


def test_pca_is_scikit_learns_up_to_sign(digits: Split) -> None:
    bank, _, test, _ = digits
    theirs = PCA(30, svd_solver="full").fit(bank.numpy())
    for ours, features in zip(pca(bank, test, 30), (bank, test), strict=True):
        expected = torch.from_numpy(theirs.transform(features.numpy()))
        sign = (ours * expected).sum(dim=0).sign()
        assert ours.shape == (len(features), 30)
        torch.testing.assert_close(ours * sign, expected.float(), atol=1e-3, rtol=1e-4)


def test_whitening_gives_identity_covariance_without_dead_directions(digits: Split) -> None:
    bank = torch.cat([digits[0], digits[0][:, :5] * 3, torch.full((1000, 2), 0.3)], dim=1)
    fitted = fit_pca(bank)
    whitened = fitted.whiten(bank)
    num_alive = int(np.linalg.matrix_rank(np.cov(digits[0].double().numpy().T)))
    assert whitened.shape == (1000, num_alive)
    covariance = whitened.T @ whitened / (len(whitened) - 1)
    torch.testing.assert_close(covariance, torch.eye(num_alive), atol=1e-3, rtol=0)
    assert (fitted.variance.diff() <= 0).all()


def test_whitened_neighbours_do_not_depend_on_the_basis(digits: Split) -> None:
    bank, labels, test, test_labels = digits
    draw = torch.Generator().manual_seed(0)
    mix = torch.linalg.qr(torch.randn(64, 64, generator=draw)).Q * (1 + torch.rand(64, generator=draw))
    plain = probe("digits", bank, labels, test, test_labels)
    mixed = probe("mixed", bank @ mix + 3, labels, test @ mix + 3, test_labels)
    assert abs(plain.knn_whitened - mixed.knn_whitened) < 0.4


def test_linear_and_centred_rows_do_not_depend_on_shift_and_scale(digits: Split) -> None:
    bank, labels, test, test_labels = digits
    plain = probe("digits", bank, labels, test, test_labels)
    moved = probe("moved", bank * 4 + 16, labels, test * 4 + 16, test_labels)
    assert (moved.linear, moved.l2) == (plain.linear, plain.l2)
    assert moved.knn_centred == plain.knn_centred
    assert moved.knn != plain.knn


def test_digits_are_nearly_solved_and_rows_repeat_exactly(digits: Split) -> None:
    bank, labels, test, test_labels = digits
    row = probe("raw pixels", bank.view(-1, 1, 8, 8).to(torch.uint8), labels, test.view(-1, 1, 8, 8), test_labels)
    assert row == probe("raw pixels", bank, labels, test, test_labels)
    assert row.dims == 64
    assert row.l2 in L2_CANDIDATES
    assert row.knn > 95
    assert row.knn_centred > 93
    assert row.linear > 90


def test_a_probe_may_be_called_without_gradients_and_on_shuffled_dead_features(digits: Split) -> None:
    bank, labels, test, test_labels = digits
    with torch.no_grad():
        row = probe("constant", torch.full_like(bank, 0.3), labels, torch.full_like(test, 0.3), test_labels)
    assert isinstance(row, ProbeRow)
    assert row.linear == pytest.approx(chance(labels, test_labels), abs=1)


def test_chance_answers_the_commonest_class() -> None:
    assert chance(torch.tensor([0, 1, 1, 2]), torch.tensor([1, 1, 0, 2])) == 50


def test_precision_chosen_by_the_trainer_survives_a_probe(digits: Split) -> None:
    bank, labels, test, test_labels = digits
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        probe("few", bank[:100, :8], labels[:100], test[:100, :8], test_labels[:100])
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)


def test_rows_without_labels_are_refused(digits: Split) -> None:
    bank, labels, test, test_labels = digits
    unlabelled = labels.clone()
    unlabelled[3:5] = -1
    with pytest.raises(InputError, match=r"online: bank: .* 2 of 1000 found without one .*labelled split"):
        probe("online", bank, unlabelled, test, test_labels)
    with pytest.raises(InputError, match="online: test: "):
        probe("online", bank, labels, test, torch.full_like(test_labels, -1))


def test_broken_features_and_missing_labels_are_refused(digits: Split) -> None:
    bank, labels, test, test_labels = digits
    broken = test.clone()
    broken[7, 3] = float("nan")
    with pytest.raises(InputError, match="target: test: finite features expected, NaN or infinity found in 1"):
        probe("target", bank, labels, broken, test_labels)
    with pytest.raises(InputError, match="1000 rows and 5 labels"):
        probe("target", bank, labels[:5], test, test_labels)


@pytest.mark.slow
def test_cifar10_baselines_are_the_published_ones() -> None:
    """k-NN of raw pixels and PCA-30, bank 2,000, test 1,000; published on the full split: 33.9 and 41.8."""
    if "HJEPA_TEST_DATA" not in os.environ:
        pytest.skip("HJEPA_TEST_DATA is unset: no real CIFAR-10")
    folder = Path(os.environ["HJEPA_TEST_DATA"]) / "cifar10/cifar-10-batches-py"
    bank, test = (
        pickle.loads((folder / name).read_bytes(), encoding="bytes") for name in ("data_batch_1", "test_batch")
    )
    images, test_images = torch.from_numpy(bank[b"data"][:2000]).float(), torch.from_numpy(test[b"data"][:1000]).float()
    labels, test_labels = torch.tensor(bank[b"labels"][:2000]), torch.tensor(test[b"labels"][:1000])
    few_bank, few_test = pca(images, test_images)

    def percent(bank: torch.Tensor, test: torch.Tensor) -> float:
        return 100 * (knn_predict(bank, labels, test) == test_labels).double().mean().item()

    assert 24 < percent(images, test_images) < 28
    assert 32 < percent(images - images.mean(0), test_images - images.mean(0)) < 36
    assert 33.5 < percent(few_bank, few_test) < 38
    assert 31.5 < probe("PCA-30", few_bank, labels, few_test, test_labels).linear < 36


class LargeMemory(TorchDispatchMode):
    """The memory of tensors of at least so many numbers that operations make."""

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.numbers, self.made = numbers, dict[int, torch.UntypedStorage]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor) and found.numel() >= self.numbers:
            self.made[found.untyped_storage().data_ptr()] = found.untyped_storage()  # held, or it would be used again
        return found


def test_iterations_of_the_linear_fit_take_no_more_memory_for_logits() -> None:
    """What L-BFGS keeps of each would lie between them, and the process would grow by hundreds of megabytes."""
    rows, labels = torch.randn(300, 4, generator=torch.Generator().manual_seed(0)), torch.arange(300) % 20
    with LargeMemory(300 * 20) as large:
        fit_linear(rows, labels, 20, 1e-5)
    assert len(large.made) <= 3
