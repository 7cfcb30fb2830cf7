"""SimCLR against the paper's formula in plain loops, over processes, resumed, and beside a sabotage."""

import math
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
import yaml

from hjepa_shards.errors import InputError, ResumeMismatch
from hjepa_train import evaluate, export, load_run_config, train
from hjepa_train.backbones.registry import build_backbone
from hjepa_train.backbones.vit import VitConfig
from hjepa_train.base.distributed import average_gradients, rank, world_size
from hjepa_train.base.metrics_file import read_metrics
from hjepa_train.objectives.base import Batch
from hjepa_train.objectives.contrast.simclr import Simclr, SimclrConfig, nt_xent
from tests.checks import assert_flops_are_those_counted, assert_objective_contract, signals_of
from tests.hjepa_train.test_ranks import train_ranks
from tests.hjepa_train.tiny import STEPS, tiny_run
from tests.processes import start_ranks

IMAGE_SIZE, GLOBAL_BATCH = 16, 8


def build(seed: int = 0, **changes: Any) -> Simclr:
    backbone = build_backbone("vit", VitConfig(width=24, depth=2, heads=2, patch=4), IMAGE_SIZE, seed=0)
    config = SimclrConfig.model_validate({"width": 12, **changes})
    return Simclr(backbone, config, image_size=IMAGE_SIZE, num_steps=50, seed=seed)


def batch(rows: slice, dtype: torch.dtype = torch.float32) -> Batch:
    """A slice of a global batch of pairs: noise, and the same noise a little changed."""
    generator = torch.Generator().manual_seed(0)
    shape = (GLOBAL_BATCH, 3, IMAGE_SIZE, IMAGE_SIZE)
    first, change = (torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    index = torch.arange(GLOBAL_BATCH)[rows]
    return Batch(
        images_BCHW=first[rows],
        other_views=((first + 0.5 * change)[rows],),
        labels_B=index,
        positions_B=index,
        entry_B=index * 0,
        rows=len(index),
    )


def papers_losses(first: torch.Tensor, second: torch.Tensor, temperature: float) -> list[float]:
    """Algorithm 1 of the paper, in loops: l(i, j) of both views of each image, their mean."""
    rows = [row for pair in zip(first.tolist(), second.tolist(), strict=True) for row in pair]  # 2k-1 and 2k are a pair

    def similarity(i: int, j: int) -> float:
        dot = sum(a * b for a, b in zip(rows[i], rows[j], strict=True))
        return dot / math.sqrt(sum(a * a for a in rows[i])) / math.sqrt(sum(b * b for b in rows[j]))

    def loss(i: int, j: int) -> float:
        others = (math.exp(similarity(i, k) / temperature) for k in range(len(rows)) if k != i)
        return -math.log(math.exp(similarity(i, j) / temperature) / sum(others))

    return [(loss(2 * k, 2 * k + 1) + loss(2 * k + 1, 2 * k)) / 2 for k in range(len(first))]


@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_the_loss_is_the_papers_in_loops(temperature: float) -> None:
    first, second = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    found = nt_xent(F.normalize(first, dim=1), F.normalize(second, dim=1), temperature)
    assert found.tolist() == pytest.approx(papers_losses(first, second, temperature), rel=1e-12)


def test_the_gradient_is_the_losss_as_anchor_and_as_candidate() -> None:
    pairs = torch.randn(2, 4, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64).unbind(0)
    first, second = (views.clone().requires_grad_() for views in pairs)
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(F.normalize(a), F.normalize(b), 0.3), (first, second))


def test_the_objective_compares_what_the_head_makes_of_both_views() -> None:
    simclr, pairs = build(temperature=0.3).double(), batch(slice(None), torch.float64)
    projected = []
    for images in (pairs.images_BCHW, *pairs.other_views):
        pooled = simclr.backbone.encode(simclr.backbone.embed(images)).tokens_BND.mean(1)
        weights = [p for name, p in simclr.head.named_parameters()]
        hidden = (pooled @ weights[0].T + weights[1]).clamp(min=0)
        projected.append((hidden @ weights[2].T + weights[3]).detach())
    expected = papers_losses(*projected, 0.3)
    loss, report = simclr(pairs)
    assert report["loss_B"].tolist() == pytest.approx(expected, rel=1e-10)
    assert loss.item() == pytest.approx(sum(expected) / GLOBAL_BATCH, rel=1e-10)
    apart = F.normalize(projected[0], dim=1) - F.normalize(projected[1], dim=1)
    found = signals_of(simclr, pairs, micro_batch=3)
    assert found["alignment"] == pytest.approx(apart.square().sum().item() / GLOBAL_BATCH, rel=1e-10)
    first = F.normalize(projected[0], dim=1)
    potentials = [(-2 * (a - b).square().sum()).exp() for i, a in enumerate(first) for b in first[:i]]
    assert found["uniformity"] == pytest.approx(torch.stack(potentials).mean().log().item(), rel=1e-10)


def test_simclr_keeps_the_contract_of_objectives() -> None:
    assert_objective_contract(build, batch(slice(None)))


def test_its_operations_are_those_that_pytorch_counts() -> None:
    assert_flops_are_those_counted(build(), batch(slice(0, 4)))


def test_the_head_is_a_function_of_the_seed_and_has_the_papers_widths() -> None:
    heads = [build(seed).head for seed in (0, 0, 1)]
    assert [tuple(p.shape) for p in heads[0].parameters()] == [(24, 24), (24,), (12, 24), (12,)]
    first, again, other = (torch.cat([p.flatten() for p in head.parameters()]) for head in heads)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert [p.shape[0] for p in build(hidden=40).head.parameters()] == [40, 40, 12, 12]
    assert SimclrConfig().width == 128


def one_step(dtype: torch.dtype, num_micro: int) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of the global batch, as the trainer makes them of this rank's part."""
    simclr = build().to(dtype)
    rows = GLOBAL_BATCH // world_size()
    size, total = rows // num_micro, torch.zeros((), dtype=torch.float64)
    for start in range(rank() * rows, (rank() + 1) * rows, size):
        loss, _ = simclr(replace(batch(slice(start, start + size), dtype), rows=rows))
        (loss * size / rows).backward()
        total += loss.detach().double() * size / rows
    average_gradients(simclr.parameters())
    if world_size() > 1:
        dist.all_reduce(total)
    return total.item() / world_size(), {name: p.grad for name, p in simclr.named_parameters() if p.grad is not None}


def rank_main(number: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=number, world_size=2)
    torch.save({dtype: one_step(dtype, 1) for dtype in (torch.float64, torch.float32)}, f"{folder}/{number}.pt")
    dist.destroy_process_group()


def test_two_processes_have_the_loss_and_the_gradients_of_one(tmp_path: Path) -> None:
    start_ranks(rank_main, tmp_path)
    found = [torch.load(tmp_path / f"{number}.pt", weights_only=False) for number in (0, 1)]
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-6)):
        loss, expected = one_step(dtype, 1)
        for number in (0, 1):
            ours, gradients = found[number][dtype]
            assert ours == pytest.approx(loss, rel=tolerance)
            assert gradients.keys() == expected.keys()
            apart = sum((gradients[name] - expected[name]).double().square().sum() for name in expected)
            size = sum(gradient.double().square().sum() for gradient in expected.values())
            assert float(apart / size) ** 0.5 < tolerance


def test_fewer_images_together_are_another_recipe() -> None:
    whole, parts = one_step(torch.float64, 1)[0], one_step(torch.float64, 2)[0]
    assert parts < 0.95 * whole, "fewer candidates to confuse it with"


def simclr_run(shards: Path, folder: Path, **changes: Any) -> Path:
    """SimCLR on real digits."""
    augmentation = {"views": 2, "crop_scale": [0.4, 1.0], "horizontal_flip": False, "color_jitter": 0.4}
    augmentation |= {"grayscale": 0.2, "blur": 0.3}
    optimizer = {"training__lr": 2e-3, "training__weight_decay": 0.05, "training__warmup_epochs": None}
    path = tiny_run(shards, folder, **{"data__augmentation": augmentation, **optimizer, **changes})
    content = yaml.safe_load(path.read_text())
    content["objective"] = {"simclr": {"temperature": 0.2, "width": 16}}
    path.write_text(yaml.safe_dump(content))
    return path


def column(run: Path) -> list[tuple[Any, ...]]:
    names = ("step", "loss", "alignment", "uniformity", "rankme", "grad_norm", "proof")
    return [tuple(row[name] for name in names) for row in read_metrics(run / "metrics.jsonl")]


def test_a_run_is_resumed_to_the_bit_evaluated_and_exported(shards: Path, tmp_path: Path) -> None:
    whole = train(load_run_config(simclr_run(shards, tmp_path / "whole")))
    pieces = load_run_config(simclr_run(shards, tmp_path / "pieces"))
    train(pieces, stop_after=13)
    run = train(pieces, resume="auto")
    assert column(run) == column(whole)
    assert len(column(run)) == STEPS
    files = [sorted((f / "checkpoints").glob("step-*/model.safetensors"))[-1] for f in (whole, run)]
    assert files[0].read_bytes() == files[1].read_bytes()
    losses = [row["sources"]["digits"]["loss"] for row in read_metrics(run / "metrics.jsonl")]
    assert losses[-1] < losses[0]
    features = [row["features"] for row in evaluate(run, probes=("knn",))["rows"]]
    assert features == ["raw pixels", "PCA-30", "untrained", "encoder"]
    assert (export(run, "timm") / "model.safetensors").exists()


def test_it_learns_and_learns_nothing_where_the_views_are_of_different_images(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def rows(folder: Path) -> dict[str, list[float]]:
        longer = {"training__epochs": 8, "logging__every_steps": 4}
        table = read_metrics(train(load_run_config(simclr_run(shards, folder, **longer))) / "metrics.jsonl")
        return {name: [row[name] for row in table] for name in ("loss", "uniformity")}

    honest = rows(tmp_path / "honest")
    forward = Simclr.forward

    def unpaired(self: Simclr, one: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        return forward(self, replace(one, other_views=tuple(view.roll(1, 0) for view in one.other_views)))

    monkeypatch.setattr(Simclr, "forward", unpaired)
    sabotage = rows(tmp_path / "sabotage")
    by_chance = math.log(2 * 16 - 1)
    assert mean(honest["loss"][-10:]) < mean(honest["loss"][:5]) - 0.2
    assert mean(honest["loss"][-10:]) < by_chance - 0.6
    assert mean(sabotage["loss"][-10:]) == pytest.approx(by_chance, abs=0.02)
    assert mean(honest["uniformity"][-10:]) < mean(honest["uniformity"][:5]) - 0.1
    assert mean(sabotage["uniformity"][-10:]) > -0.1, "where no view is told from another all become one"


def test_ranks_have_the_losses_of_one_process_and_other_statistics_are_refused(shards: Path, tmp_path: Path) -> None:
    alone = train(load_run_config(simclr_run(shards, tmp_path / "alone")), stop_after=16)
    config = simclr_run(shards, tmp_path / "ranks")
    assert train_ranks(config, 2, stop_after=9) == []
    run = train(load_run_config(config), resume="auto", stop_after=16)
    expected, found = (read_metrics(folder / "metrics.jsonl") for folder in (alone, run))
    assert [row["proof"] for row in found] == [row["proof"] for row in expected]
    for name in ("loss", "grad_norm", "alignment", "uniformity", "rankme"):
        assert [row[name] for row in found] == pytest.approx([row[name] for row in expected], rel=1e-5)
    with pytest.raises(ResumeMismatch, match=r"those of 16 images .* 4 here; set `training.micro_batch: 16`"):
        train(load_run_config(config, ["training.micro_batch=4"]), resume="auto")


def test_another_number_of_views_is_refused_by_name(shards: Path, tmp_path: Path) -> None:
    config = load_run_config(simclr_run(shards, tmp_path, data__augmentation={"views": 1}))
    with pytest.raises(InputError, match=r"data.augmentation.views: 2 expected, for simclr .* 1 found"):
        train(config)
    assert not (tmp_path / "tiny").exists()


def test_a_full_memory_says_that_a_smaller_micro_batch_is_another_recipe(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(Simclr, "forward", run_out)
    with pytest.raises(InputError, match=r"micro_batch: 8`, another recipe, in which fewer images meet in the loss"):
        train(load_run_config(simclr_run(shards, tmp_path)))
