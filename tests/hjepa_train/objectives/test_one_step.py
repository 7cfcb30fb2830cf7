"""One definition of a step: the same loss, gradient and signals for every split over ranks and micro-batches."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from hjepa_train.backbones.registry import build_backbone
from hjepa_train.backbones.vit import VitConfig
from hjepa_train.base.distributed import average_gradients, rank, world_size
from hjepa_train.objectives.base import Batch
from hjepa_train.objectives.joint.hjepa import HJepa, HJepaConfig
from hjepa_train.objectives.joint.predictor import PredictorConfig
from hjepa_train.parallel.layout import ScaleConfig, lay_out
from hjepa_train.training import diagnosis
from hjepa_train.training.optimizer import OptimConfig, build_optimizer
from tests.checks import loaded_of
from tests.processes import start_ranks

IMAGE_SIZE, GLOBAL_BATCH, NUM_STEPS = 24, 8, 20
TERMS = [("none", "micro"), ("vicreg", "micro"), ("sigreg", "micro"), ("vicreg", "exact"), ("sigreg", "exact")]
Parallel = Literal["ddp", "fsdp"]
DTYPES = [torch.float64, torch.float32]
SPLITS: dict[torch.dtype, list[tuple[int, Parallel]]] = {
    torch.float64: [(1, "ddp"), (2, "ddp"), (1, "fsdp"), (2, "fsdp")],
    torch.float32: [(1, "ddp"), (2, "fsdp")],
}
"""Micro-batches of a rank and how ranks share the model: all of them in the numbers that show the most."""
LOOKED_AT: list[tuple[int, int, Parallel]] = [(1, 256, "ddp"), (4, 256, "fsdp"), (2, 5, "fsdp")]
"""Micro-batches of a rank, images to look at: of 5 rank 0 has 2, in one call, the other 3, in two."""


def build(anticollapse: str, statistics: str, dtype: torch.dtype) -> HJepa:
    config = HJepaConfig.model_validate(
        {
            "levels": 2,
            "strides": (1, 2),
            "predictor": PredictorConfig(width=16, depth=2, heads=2),
            "momentum": 0.7,
            "anticollapse": anticollapse,
            "statistics": statistics,
            "sigreg_weight": 0.5,
        }
    )
    backbone = build_backbone("vit", VitConfig(width=16, depth=2, heads=2, patch=4), IMAGE_SIZE, seed=0)
    return HJepa(backbone, config, image_size=IMAGE_SIZE, num_steps=NUM_STEPS, seed=0).to(dtype)


def micro_batches(dtype: torch.dtype, step: int, num_micro: int, number: int | None = None) -> list[Batch]:
    """This rank's consecutive slice of the global batch, or slice `number`, in `num_micro` parts."""
    number = rank() if number is None else number
    generator = torch.Generator().manual_seed(step)
    images = torch.randn(GLOBAL_BATCH, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator, dtype=torch.float64).to(dtype)
    positions = torch.arange(GLOBAL_BATCH) + step * GLOBAL_BATCH
    rows = GLOBAL_BATCH // world_size()
    size = rows // num_micro
    starts = [number * rows + part * size for part in range(num_micro)]
    return [
        Batch(
            images_BCHW=images[start : start + size],
            labels_B=positions[start : start + size],
            positions_B=positions[start : start + size],
            entry_B=positions[start : start + size] * 0,
            rows=rows,
        )
        for start in starts
    ]


def backward(hjepa: HJepa, batches: list[Batch]) -> float:
    """Leave the step's gradient in the parameters, as a trainer does; the global loss."""
    total = torch.zeros((), dtype=torch.float64)
    hjepa.zero_grad()
    hjepa.before_step(batches)
    for batch in batches:
        loss, _ = hjepa(batch)
        loss = loss * (len(batch.labels_B) / batch.rows)
        loss.backward()
        total += loss.detach().double()
    average_gradients(hjepa.parameters())
    if world_size() > 1:
        dist.all_reduce(total)
    return total.item() / world_size()


def gradients(hjepa: HJepa) -> dict[str, torch.Tensor]:
    found = {name: p.grad.clone() for name, p in hjepa.named_parameters() if p.grad is not None}
    return {name: value.full_tensor() if isinstance(value, DTensor) else value for name, value in found.items()}


def assert_same_step(found, expected, dtype: torch.dtype) -> None:
    (loss, ours), (reference, theirs) = found, expected
    assert loss == pytest.approx(reference, rel=1e-10 if dtype == torch.float64 else 1e-6)
    apart, size = 0.0, 0.0
    for name, gradient in theirs.items():
        apart += (ours[name] - gradient).double().square().sum().item()
        size += gradient.double().square().sum().item()
    assert (apart / size) ** 0.5 <= (1e-10 if dtype == torch.float64 else 1e-6)


def one_step(anticollapse: str, statistics: str, dtype: torch.dtype, num_micro: int, parallel: Parallel = "ddp"):
    hjepa = build(anticollapse, statistics, dtype)
    lay_out(hjepa, ScaleConfig(parallel=parallel))
    loss = backward(hjepa, micro_batches(dtype, 0, num_micro))
    return loss, gradients(hjepa)


def signals(dtype: torch.dtype, num_micro: int, most: int, parallel: Parallel = "ddp") -> dict[str, float]:
    """Of weights as after some training.  most: images that are looked at."""
    hjepa = build("none", "micro", dtype)
    with torch.no_grad():
        for parameter in hjepa.target.parameters():
            parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    lay_out(hjepa, ScaleConfig(parallel=parallel))
    batches = micro_batches(dtype, 1, num_micro, world_size() - 1 - rank())  # slices rotate among ranks
    positions_B = torch.cat([batch.positions_B for batch in batches])
    whole = replace(batches[0], positions_B=positions_B)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diagnosis, "MOST_IMAGES", most)
        return diagnosis.diagnosis(hjepa, batches, loaded_of(whole, GLOBAL_BATCH, 2 * GLOBAL_BATCH))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("anticollapse", "statistics"), [t for t in TERMS if t[0] == "none" or t[1] == "exact"])
def test_accumulation_makes_the_same_step(anticollapse, statistics, dtype) -> None:
    whole = one_step(anticollapse, "micro", dtype, 1)
    for num_micro in (1, 2, 4):
        assert_same_step(one_step(anticollapse, statistics, dtype, num_micro), whole, dtype)


@pytest.mark.parametrize("anticollapse", ["vicreg", "sigreg"])
def test_accumulation_with_statistics_of_the_micro_batch_is_another_recipe(anticollapse) -> None:
    whole = one_step(anticollapse, "micro", torch.float64, 1)
    with pytest.raises(AssertionError):
        assert_same_step(one_step(anticollapse, "micro", torch.float64, 2), whole, torch.float64)


def rank_main(number: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=number,
        world_size=2,
        timeout=timedelta(seconds=60),
    )
    found, seen = {}, {}
    for dtype in DTYPES:
        for anticollapse, statistics in TERMS:
            for num_micro, parallel in SPLITS[dtype]:
                recipe = anticollapse, statistics, dtype, num_micro, parallel
                found[recipe] = one_step(*recipe)
        for num_micro, most, parallel in LOOKED_AT:
            seen[dtype, num_micro, most, parallel] = signals(dtype, num_micro, most, parallel)
    torch.save((found, seen), f"{folder}/{number}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    """What each of two ranks found."""
    folder: Path = tmp_path_factory.mktemp("ranks")
    start_ranks(rank_main, folder)
    return [torch.load(folder / f"{number}.pt", weights_only=False) for number in (0, 1)]


def test_two_ranks_show_the_signals_of_one(two_ranks: list[Any]) -> None:
    (_, seen), (_, other) = two_ranks
    assert seen == other
    alone = {(dtype, most): signals(dtype, 1, most) for dtype in DTYPES for most in (256, 5)}
    for (dtype, _, most, _), found in seen.items():
        assert found["rankme_cap"] == min(most, GLOBAL_BATCH) - 1
        tolerance, expected = 1e-10 if dtype == torch.float64 else 1e-6, dict(alone[dtype, most])
        assert found.pop("target_distance") == pytest.approx(expected.pop("target_distance"), rel=1e-6)  # in float32
        assert found == pytest.approx(expected, rel=tolerance, abs=tolerance)


def test_two_ranks_make_the_same_step_as_one(two_ranks: list[Any]) -> None:
    found = [steps for steps, _ in two_ranks]
    for (anticollapse, statistics, dtype, num_micro, parallel), (loss, ours) in found[0].items():
        other_loss, other = found[1][anticollapse, statistics, dtype, num_micro, parallel]
        assert loss == other_loss
        assert all(torch.equal(ours[name], other[name]) for name in ours)
        if num_micro == 1 or statistics == "exact" or anticollapse == "none":
            assert_same_step((loss, ours), one_step(anticollapse, "micro", dtype, 1), dtype)


def test_twenty_steps_of_accumulation_stay_together() -> None:
    curves = []
    for num_micro in (1, 4):
        hjepa = build("vicreg", "exact", torch.float32)
        optimizer = build_optimizer(hjepa, OptimConfig(lr=1e-3))
        losses = []
        for step in range(NUM_STEPS):
            losses.append(backward(hjepa, micro_batches(torch.float32, step, num_micro)))
            optimizer.step()
            hjepa.after_step(step, torch.tensor(True))
        curves.append(losses)
    assert curves[0] == pytest.approx(curves[1], rel=1e-5)
    assert curves[0][-1] < curves[0][0]
