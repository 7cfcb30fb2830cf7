import math
from statistics import mean

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from hjepa_train.modules.learning_signals import (
    Alarms,
    alignment,
    at_cells,
    gap_to_others,
    loss_of_position,
    parameter_distance,
    positional_share,
    rank_me,
    sum_by_position,
    uniformity,
    within_position_sd,
)


def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def targets_and_cells() -> tuple[Tensor, Tensor, Tensor]:
    targets = torch.randn(6, 9, 5, generator=generator())
    index = torch.stack([torch.tensor([[0, 4], [8, 2]])] * 6)
    share = torch.tensor([0.75, 0.25]).expand(6, 2, 2)
    return targets, index, share


SIX = torch.tensor(6.0)


def test_at_cells_takes_each_images_own_cells() -> None:
    targets, index, _ = targets_and_cells()
    assert torch.equal(at_cells(targets, index)[3, 1, 0], targets[3, 8])


def test_the_loss_of_a_position_is_that_of_the_others_mean() -> None:
    targets, index, share = targets_and_cells()
    found = loss_of_position(targets, targets.sum(0), SIX, index, share)
    for b in range(6):
        others = torch.cat([targets[:b], targets[b + 1 :]]).mean(0)
        loss = F.smooth_l1_loss(others[index[b]], targets[b][index[b]], reduction="none").mean(-1)
        assert found[b].item() == pytest.approx((loss * share[b]).sum().item(), rel=1e-5)


def test_the_gap_is_the_mean_over_all_other_images() -> None:
    targets, index, share = targets_and_cells()
    predicted, direction = at_cells(targets, index), F.normalize(targets, dim=-1).sum(0)
    found = gap_to_others(predicted, targets, direction, SIX, index, share)
    for b in range(6):
        expected = 0.0
        for m in range(2):
            for c in range(2):
                cell = index[b, m, c]
                cosine = [torch.cosine_similarity(predicted[b, m, c], targets[o, cell], dim=0) for o in range(6)]
                to_others = sum(cosine[other] for other in range(6) if other != b) / 5
                expected += ((cosine[b] - to_others) * share[b, m, c]).item() / 2
        assert found[b].item() == pytest.approx(expected, abs=1e-6)


def test_a_prediction_that_no_image_has_a_part_in_has_no_gap_on_average() -> None:
    targets, index, share = targets_and_cells()
    code = torch.randn(9, 5, generator=generator())[index]
    direction = F.normalize(targets, dim=-1).sum(0)
    assert gap_to_others(code, targets, direction, SIX, index, share).mean().item() == pytest.approx(0, abs=1e-6)


def share_of_position(targets: Tensor) -> float:
    within = (targets - targets.mean(0)).square().sum((1, 2))
    return positional_share(within, (targets - targets.mean((0, 1))).square().sum((1, 2)), targets.shape[1]).item()


def test_positional_share_is_zero_for_noise_and_one_for_a_position_code() -> None:
    noise = torch.randn(400, 9, 4, generator=generator())
    assert share_of_position(noise) == pytest.approx(0, abs=0.005)
    assert mean(share_of_position(few) for few in noise.split(2)) == pytest.approx(0, abs=0.02), "of two images too"
    assert share_of_position(noise[:1].expand(50, -1, -1)) == pytest.approx(1.0, rel=1e-5)


def test_within_position_sd_ignores_the_position_and_the_number_of_images() -> None:
    index = torch.stack([torch.randperm(10, generator=generator().manual_seed(b))[:4] for b in range(3000)])
    tokens = 5 * torch.randn(10, 3, generator=generator())[index] + 0.3 * torch.randn(3000, 4, 3, generator=generator())
    for num in (6, 3000):
        found = []
        for first in range(0, min(3000, 500 * num), num):
            cells, own = index[first : first + num], tokens[first : first + num]
            sum_ND, count_N = sum_by_position(own, cells, 10)
            assert count_N.tolist() == cells.flatten().bincount(minlength=10).tolist()
            seen = count_N.clamp(min=1)
            squares = (own - (sum_ND / seen[:, None])[cells]).square().sum(1)
            found.append(within_position_sd(squares, (1 - 1 / seen[cells]).sum(1)).item() ** 2)
        assert mean(found) ** 0.5 == pytest.approx(0.3, rel=0.03)


def test_rank_me_is_the_number_of_equal_directions_and_ignores_the_mean() -> None:
    signs = torch.cat([torch.eye(4), -torch.eye(4)])
    features = torch.cat([signs, torch.zeros(8, 3)], 1)
    assert rank_me(features).item() == pytest.approx(4.0, rel=1e-5)
    assert rank_me(features + 100).item() == pytest.approx(4.0, rel=1e-4)
    assert math.isfinite(rank_me(torch.zeros(5, 3)).item())


def test_parameter_distance_is_relative() -> None:
    a, b = torch.nn.Linear(3, 3), torch.nn.Linear(3, 3)
    b.load_state_dict({name: 1.5 * value for name, value in a.state_dict().items()})
    assert parameter_distance(b, a).item() == pytest.approx(0.5, rel=1e-6)
    assert parameter_distance(a, a).item() == 0


HEALTHY = {"rho_l0": 0.7, "gap_l0": 0.2, "sd": 0.5, "rankme": 20.0}


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"gap_l0": 0.02}, "predicts the position, not the image"),
        ({"rho_l0": 1.0}, "predicts the position, not the image"),
        ({"sd": 0.09}, "features shrink"),
        ({"rankme": 13.9}, "dimensions collapse"),
    ],
)
def test_an_alarm_is_on_after_three_bad_log_points_in_a_row(changed, name) -> None:
    alarms = Alarms(warmup_steps=10)
    bad = HEALTHY | changed
    assert alarms.judge(0, HEALTHY) == ()
    for step in (2, 4, 6, 8):
        assert alarms.judge(step, bad) == ()  # warm-up does not count
    assert [alarms.judge(step, bad) for step in (10, 12)] == [(), ()]
    assert alarms.judge(14, HEALTHY) == ()
    assert [alarms.judge(step, bad) for step in (16, 18, 20, 22)] == [(), (), (name,), (name,)]
    assert alarms.judge(24, HEALTHY) == ()


def test_thresholds_themselves_are_healthy() -> None:
    alarms = Alarms(warmup_steps=0)
    alarms.judge(0, HEALTHY)
    edge = {"rho_l0": 0.999, "gap_l0": 0.03, "sd": 0.1, "rankme": 14.0}
    assert [alarms.judge(step, edge) for step in range(1, 5)] == [()] * 4


def test_alarms_continue_after_a_restart() -> None:
    bad = HEALTHY | {"sd": 0.05}
    alarms = Alarms(warmup_steps=0)
    for step, values in enumerate([HEALTHY, bad, bad]):
        alarms.judge(step, values)
    resumed = Alarms(warmup_steps=0)
    assert resumed.load_state_dict(alarms.state_dict())
    assert resumed.judge(3, bad) == ("features shrink",)


def test_a_reference_by_another_rule_is_replaced() -> None:
    before = {"reference": {"sd": 5.0, "rankme": 200.0}, "in_a_row": {"features shrink": 2}}
    alarms = Alarms(warmup_steps=0)
    assert not alarms.load_state_dict(before)
    assert [alarms.judge(step, HEALTHY) for step in range(5)] == [()] * 5
    assert alarms.state_dict()["reference"] == {"sd": 0.5, "rankme": 20.0}
    assert [alarms.judge(step, HEALTHY | {"sd": 0.05}) for step in range(3)] == [(), (), ("features shrink",)]


def test_objectives_without_these_numbers_raise_no_alarm() -> None:
    alarms = Alarms(warmup_steps=0)
    assert [alarms.judge(step, {"loss": 1.0}) for step in range(5)] == [()] * 5


def test_numbers_that_are_not_finite_are_not_healthy() -> None:
    alarms = Alarms(warmup_steps=0)
    broken = dict.fromkeys(HEALTHY, math.nan)
    alarms.judge(0, HEALTHY)
    for step in (1, 2):
        alarms.judge(step, broken)
    assert len(alarms.judge(3, broken)) == 3


def test_alignment_and_uniformity_are_those_of_the_paper_in_loops() -> None:
    first, second = F.normalize(torch.randn(2, 7, 5, generator=generator()), dim=2)
    views = zip(first.tolist(), second.tolist(), strict=True)
    apart = [sum((a - b) ** 2 for a, b in zip(*pair, strict=True)) for pair in views]
    assert alignment(first, second).item() == pytest.approx(sum(apart) / 7, rel=1e-5)
    assert alignment(first, first).item() == 0
    rows = first.tolist()
    pairs = [
        math.exp(-2 * sum((a - b) ** 2 for a, b in zip(rows[i], rows[j], strict=True)))
        for i in range(7)
        for j in range(i)
    ]
    assert uniformity(first).item() == pytest.approx(math.log(sum(pairs) / len(pairs)), rel=1e-5)
    assert uniformity(first[:1].expand(4, -1)).item() == 0
