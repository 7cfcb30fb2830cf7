import math

import numpy as np
import pytest
import torch

from hjepa_shards.base.keyed_random import derive_key
from hjepa_train.modules.anticollapse import NUM_SLICES, _directions, sigreg, vicreg

B, K, N, D = 9, 4, 10, 6


def tokens_and_index(scale: float = 0.4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    index = torch.stack([torch.randperm(N, generator=generator)[:K].sort().values for _ in range(B)])
    positional = 3 * torch.randn(N, D, generator=generator, dtype=torch.float64)
    return positional[index] + scale * torch.randn(B, K, D, generator=generator, dtype=torch.float64), index


def loop_residuals(tokens: torch.Tensor, index: torch.Tensor) -> tuple[np.ndarray, int]:
    z, where = tokens.detach().numpy(), index.numpy()
    residuals, freedom = np.zeros_like(z), 0
    for position in range(N):
        seen = [(b, k) for b in range(B) for k in range(K) if where[b, k] == position]
        if seen:
            mean = sum(z[b, k] for b, k in seen) / len(seen)
            freedom += len(seen) - 1
            for b, k in seen:
                residuals[b, k] = z[b, k] - mean
    return residuals, freedom


def test_vicreg_equals_the_formula_written_with_loops() -> None:
    tokens, index = tokens_and_index()
    residuals, freedom = loop_residuals(tokens, index)
    images = residuals.mean(1)
    images = images - images.mean(0)
    variance = covariance = 0.0
    sets = [(residuals.reshape(-1, D), freedom, 0.7), (images, B - 1, 0.5)]
    for rows, degrees, gamma in sets:
        for i in range(D):
            for j in range(D):
                cov = sum(row[i] * row[j] for row in rows) / degrees
                if i == j:
                    variance += max(0.0, gamma - math.sqrt(cov + 1e-4)) / D
                else:
                    covariance += cov**2 / D
    found = vicreg(tokens, index, N)
    assert found[0].item() == pytest.approx(variance, abs=1e-12)
    assert found[1].item() == pytest.approx(covariance, abs=1e-12)
    assert variance > 0.05


def test_a_position_code_does_not_satisfy_the_variance() -> None:
    tokens, index = tokens_and_index(scale=0.0)
    variance, covariance = vicreg(tokens, index, N)
    assert variance.item() == pytest.approx(0.7 + 0.5 - 2 * 0.01, abs=1e-9)
    assert covariance.item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("batch", [1, 2])
def test_tiny_batches_stay_finite(batch: int) -> None:
    tokens, index = tokens_and_index()
    tokens = tokens[:batch].clone().requires_grad_()
    variance, covariance = vicreg(tokens, index[:batch], N)
    (variance + covariance).backward()
    assert torch.isfinite(tokens.grad).all()


def test_sigreg_equals_the_statistic_written_with_loops() -> None:
    tokens, index = tokens_and_index()
    key, step = derive_key(0, "sigreg"), torch.tensor([3])
    residuals, _ = loop_residuals(tokens, index)
    images = residuals.mean(1) / 0.5
    directions = _directions(D, key, step).double().numpy()
    points = np.linspace(0, 3, 17)
    total = 0.0
    for s in range(NUM_SLICES):
        heights = []
        for t in points:
            phi = sum(np.exp(1j * t * (row @ directions[:, s])) for row in images) / B
            heights.append(abs(phi - math.exp(-t * t / 2)) ** 2 * math.exp(-t * t / 2))
        total += 2 * np.trapezoid(heights, points) * B / NUM_SLICES
    assert sigreg(tokens, index, N, key, step).item() == pytest.approx(total, rel=1e-6)


def test_sigreg_is_smallest_for_normal_features_of_its_spread() -> None:
    generator = torch.Generator().manual_seed(2)
    index = torch.zeros(4000, 1, dtype=torch.int64)
    normal = torch.randn(4000, 1, 8, generator=generator)
    key, step = derive_key(0, "sigreg"), torch.zeros(1, dtype=torch.int64)

    def value(features: torch.Tensor) -> float:
        return sigreg(features, index, 1, key, step).item()

    good = value(0.5 * normal)
    assert good < 2
    for bad in (0.1 * normal, 1.5 * normal, normal[..., :1].expand(-1, -1, 8) * 0.5, 0.5 * normal.sign()):
        assert value(bad) > 5 * good


def test_directions_are_unit_isotropic_and_change_with_the_step() -> None:
    key = derive_key(0, "sigreg")
    first, second = (_directions(32, key, torch.tensor([step])) for step in (0, 1))
    torch.testing.assert_close(first.norm(dim=0), torch.ones(NUM_SLICES))
    assert not torch.allclose(first, second)
    assert (first @ first.T * 32 / NUM_SLICES).diagonal().std().item() < 0.2
    assert abs(first.mean().item()) < 0.01
