"""Probes go over a bank in parts: the same numbers, and no tensor of its size besides its features."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from hjepa_train.evaluation import linear_knn_probes, standardised_rows
from hjepa_train.evaluation import sgd_probe as sgd_module
from hjepa_train.evaluation.linear_knn_probes import checked, fit_linear, fit_pca, knn_probe, linear_probe, pca
from hjepa_train.evaluation.ridge_probe import fit_ridge, ridge_probe
from hjepa_train.evaluation.sgd_probe import sgd_probe
from hjepa_train.evaluation.standardised_rows import MOST_HELD, parts, standardise

Split = tuple[Tensor, Tensor, Tensor, Tensor]


class Largest(TorchDispatchMode):
    """The bytes of the largest tensor that any operation makes."""

    most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        taken = {one.untyped_storage().data_ptr() for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)}
        storages = [one.untyped_storage() for one in tree_leaves(made) if isinstance(one, Tensor)]
        self.most = max(self.most, 0, *(one.nbytes() for one in storages if one.data_ptr() not in taken))
        return made


@pytest.fixture(scope="module")
def digits() -> Split:
    data: Any = load_digits()
    images, labels = torch.from_numpy(data["data"]).float(), torch.from_numpy(data["target"]).long()
    return images[:1297], labels[:1297], images[1597:], labels[1597:]


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """64 kB in double precision."""
    monkeypatch.setattr(standardised_rows, "MOST_HELD", 2**13)
    monkeypatch.setattr(standardised_rows, "_IN_A_PART", 2**13)


def test_parts_are_all_rows_once_and_one_where_they_are_few() -> None:
    assert list(parts(10_000, 3_072)) == [slice(0, 10_000)]
    rows = MOST_HELD // 1000 + 1
    found = list(parts(rows, 1000))
    assert [row for part in found for row in range(rows)[part]] == list(range(rows))
    assert max(part.stop - part.start for part in found) * 1000 <= 2**21
    assert list(parts(3, 2**30)) == [slice(0, 1), slice(1, 2), slice(2, 3)]


@pytest.mark.parametrize("probe", [knn_probe, linear_probe, ridge_probe, sgd_probe])
def test_no_probe_makes_a_copy_of_a_large_bank(
    digits: Split,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    probe: Callable[..., tuple[float, ...]],
) -> None:
    bank, labels, test, test_labels = digits
    monkeypatch.setattr(linear_knn_probes, "NUM_ITERATIONS", 4)
    monkeypatch.setattr(linear_knn_probes, "L2_CANDIDATES", (1e-2, 1e-4))
    monkeypatch.setattr(sgd_module, "NUM_PASSES", 2)
    whole = probe(*digits)
    request.getfixturevalue("small_parts")
    with Largest() as seen:
        found = probe(
            checked("digits", "bank", bank, labels), labels, checked("digits", "test", test, test_labels), *digits[3:]
        )
    assert found == pytest.approx(whole, abs=0.51), "one image of 200 may be where rounding decides"
    assert seen.most <= 80 * 1024 < bank.numel() * bank.element_size() / 4


def test_components_and_fits_in_parts_are_those_of_the_whole(digits: Split, request: pytest.FixtureRequest) -> None:
    bank, labels, test, _ = digits
    rows, _ = standardise(bank, test)
    whole = fit_pca(bank).variance, pca(bank, test)[1].abs(), fit_linear(rows[:], labels, 10, 1e-2)
    ridge = fit_ridge(rows[:], labels, 10, [1e-2])
    request.getfixturevalue("small_parts")
    assert rows.held() is rows
    in_parts = fit_pca(bank).variance, pca(bank, test)[1].abs(), fit_linear(rows, labels, 10, 1e-2)
    torch.testing.assert_close(in_parts[:2], whole[:2], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(in_parts[2], whole[2], rtol=0, atol=2e-3)
    torch.testing.assert_close(fit_ridge(rows, labels, 10, [1e-2]), ridge, rtol=1e-8, atol=1e-8)


def test_a_thousand_classes_take_bounded_memory_evaluations_and_history(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(0)
    rows, labels = torch.randn(2000, 8, generator=draw), torch.arange(2000) % 1000
    weights, evaluations, optimizers = 1000 * 9, [], []
    honest = torch.optim.LBFGS

    def observed(*given: Any, **how: Any) -> torch.optim.LBFGS:
        optimizers.append(honest(*given, **how))
        return optimizers[-1]

    monkeypatch.setattr(torch.optim, "LBFGS", observed)
    monkeypatch.setattr(linear_knn_probes, "NUM_ITERATIONS", 8)
    monkeypatch.setattr(linear_knn_probes, "_MOST_HISTORY", 2 * weights * 3)
    monkeypatch.setattr(standardised_rows, "MOST_HELD", 2**16)
    monkeypatch.setattr(standardised_rows, "_IN_A_PART", 2**16)
    monkeypatch.setattr(linear_knn_probes, "parts", lambda *given: evaluations.append(1) or parts(*given))
    with Largest() as seen:
        fit_linear(rows, labels, 1000, 1e-5)
    assert seen.most <= 4 * 2**16 < 2000 * 1000 * 4 / 20
    assert 8 < len(evaluations) <= 2 * 8 + 25, "what one line search may go beyond the limit is 25"
    [state] = optimizers[0].state.values()
    assert len(state["old_dirs"]) == 3
