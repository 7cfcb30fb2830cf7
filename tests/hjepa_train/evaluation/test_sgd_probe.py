"""Many learning rates in one pass are each what they would be alone, and reach what L-BFGS reaches."""

from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn import functional as F

from hjepa_shards.base.keyed_random import derive_key, permutation
from hjepa_train.evaluation.linear_knn_probes import linear_probe
from hjepa_train.evaluation.sgd_probe import LEARNING_RATES, NUM_PASSES, fit_heads, sgd_probe
from hjepa_train.evaluation.standardised_rows import standardise

Split = tuple[Tensor, Tensor, Tensor, Tensor]


@pytest.fixture(scope="module")
def digits() -> Split:
    data: Any = load_digits()
    images, labels = torch.from_numpy(data["data"]).float(), torch.from_numpy(data["target"]).long()
    return images[:1000], labels[:1000], images[1000:1500], labels[1000:1500]


def test_each_head_is_a_plain_loop_of_sgd_with_its_own_learning_rate() -> None:
    draw = torch.Generator().manual_seed(0)
    features, labels = torch.randn(300, 6, generator=draw), torch.randint(3, (300,), generator=draw)
    weights, biases = fit_heads(features, labels, 3, (0.01, 0.5), seed=5)
    for head, lr in enumerate((0.01, 0.5)):
        weight, bias = torch.zeros(3, 6), torch.zeros(3)
        moment_w, moment_b = torch.zeros(3, 6), torch.zeros(3)
        for step in range(NUM_PASSES * 2):
            order = torch.from_numpy(permutation(derive_key(5, "probe", "sgd", step // 2), 300))
            rows = order[:256] if step % 2 == 0 else order[256:]
            wrong = (features[rows] @ weight.T + bias).softmax(1) - F.one_hot(labels[rows], 3)
            moment_w = 0.9 * moment_w + wrong.T @ features[rows] / len(rows)
            moment_b = 0.9 * moment_b + wrong.mean(0)
            now = lr * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * step / (NUM_PASSES * 2))))
            weight, bias = weight - now * moment_w, bias - now * moment_b
        torch.testing.assert_close(weights[head], weight, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(biases[head], bias, atol=1e-5, rtol=1e-4)


def test_it_reaches_lbfgs_on_separable_features() -> None:
    draw = torch.Generator().manual_seed(0)
    centres = 3 * torch.randn(5, 16, generator=draw)
    labels = torch.randint(5, (1500,), generator=draw)
    features = centres[labels] + 0.5 * torch.randn(1500, 16, generator=draw)
    split = (features[:1000], labels[:1000], features[1000:], labels[1000:])
    assert linear_probe(*split)[0] == 100
    assert sgd_probe(*split)[0] == 100


def test_on_digits_it_comes_near_lbfgs_on_nine_tenths_of_the_images(digits: Split) -> None:
    accuracy, lr = sgd_probe(*digits)
    assert accuracy > linear_probe(*digits)[0] - 2.5
    assert lr in LEARNING_RATES[1:]
    assert (accuracy, lr) == sgd_probe(*digits)


def test_the_learning_rate_is_chosen_on_images_that_no_head_learnt_from(digits: Split) -> None:
    """Labels of the bank that say nothing: an accuracy far above chance would be one of seen images."""
    bank, labels, test, test_labels = digits
    bank, test = (rows[:] for rows in standardise(bank, test))
    shuffled = labels[torch.randperm(1000, generator=torch.Generator().manual_seed(0))]
    accuracy, _ = sgd_probe(bank, shuffled, test, test_labels)
    assert accuracy < 20


def test_a_probe_may_be_called_without_gradients(digits: Split) -> None:
    bank, labels, test, test_labels = digits
    with torch.no_grad():
        assert sgd_probe(bank[:100], labels[:100], test, test_labels)[0] > 50
