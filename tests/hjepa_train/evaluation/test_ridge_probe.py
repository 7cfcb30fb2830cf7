"""Beside scikit-learn's RidgeClassifier."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.linear_model import RidgeClassifier
from torch import Tensor

from hjepa_train.evaluation.linear_knn_probes import held_out_tenth
from hjepa_train.evaluation.ridge_probe import L2_CANDIDATES, fit_ridge, ridge_probe
from hjepa_train.evaluation.standardised_rows import standardise


@pytest.fixture(scope="module")
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    data: Any = load_digits()
    images, labels = torch.from_numpy(data["data"]).float(), torch.from_numpy(data["target"]).long()
    return images[:800], labels[:800], images[800:1500], labels[800:1500]


@pytest.mark.parametrize("rows", [800, 40])  # more and fewer rows than dimensions
@pytest.mark.parametrize("l2", [1.0, 1e-3])
def test_scores_are_those_of_scikit_learns_classifier(
    digits: tuple[Tensor, Tensor, Tensor, Tensor], rows: int, l2: float
) -> None:
    bank, labels, test, _ = digits
    bank, labels = bank[:rows].double(), labels[:rows]
    theirs = RidgeClassifier(alpha=l2 * rows).fit(bank.numpy(), labels.numpy())
    [_, (weight, bias)] = fit_ridge(bank, labels, 10, [0.5, l2])
    ours = test.double() @ weight.T + bias
    np.testing.assert_allclose(ours.numpy(), theirs.decision_function(test.numpy()), atol=1e-8)


def test_the_probe_chooses_on_the_held_out_tenth_and_fits_all_of_the_bank(
    digits: tuple[Tensor, Tensor, Tensor, Tensor],
) -> None:
    bank, labels, test, test_labels = digits
    seen, new = (rows[:] for rows in standardise(bank, test))
    held, rest = held_out_tenth(len(bank), 0, bank.device)
    scores = [
        RidgeClassifier(alpha=l2 * len(rest)).fit(seen[rest].numpy(), labels[rest].numpy()) for l2 in L2_CANDIDATES
    ]
    on_held = [one.score(seen[held].numpy(), labels[held].numpy()) for one in scores]
    best = L2_CANDIDATES[int(np.argmax(on_held))]
    assert len(set(on_held)) > 1, "candidates that differ"
    whole = RidgeClassifier(alpha=best * len(bank)).fit(seen.numpy(), labels.numpy())
    accuracy, chosen = ridge_probe(bank, labels, test, test_labels)
    assert chosen == best
    assert accuracy == pytest.approx(100 * float(whole.score(new.numpy(), test_labels.numpy())), abs=0.15)
    assert (accuracy, chosen) == ridge_probe(bank * 3 + 7, labels, test * 3 + 7, test_labels)


def test_a_class_that_the_bank_lacks_is_never_right() -> None:
    bank = torch.eye(4).repeat(5, 1)
    accuracy, _ = ridge_probe(bank, torch.arange(20) % 4, torch.eye(4), torch.tensor([0, 1, 2, 7]))
    assert accuracy == 75


def test_the_held_out_tenth_is_a_keyed_tenth_and_the_rest_has_nothing_of_it() -> None:
    held, rest = held_out_tenth(205, 0, torch.device("cpu"))
    assert len(held) == 20
    assert sorted([*held.tolist(), *rest.tolist()]) == list(range(205))
    assert held.tolist() != held_out_tenth(205, 1, torch.device("cpu"))[0].tolist()
