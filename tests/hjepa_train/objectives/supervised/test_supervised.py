"""Supervised learning against its formula in plain loops, over micro-batches and processes, and as a run."""

import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import yaml

from hjepa_shards.errors import InputError
from hjepa_train import evaluate, export, load_run_config, train
from hjepa_train.backbones.registry import build_backbone
from hjepa_train.backbones.vit import VitConfig
from hjepa_train.base.distributed import average_gradients, rank, world_size
from hjepa_train.base.metrics_file import read_metrics
from hjepa_train.base.mixture_facts import EntryFacts, Facts
from hjepa_train.objectives.base import Batch, rows_of
from hjepa_train.objectives.supervised.supervised import Supervised, SupervisedConfig
from hjepa_train.parallel.layout import recompute
from tests.checks import assert_flops_are_those_counted, assert_objective_contract
from tests.hjepa_train.tiny import STEPS, tiny_run
from tests.processes import start_ranks

IMAGE_SIZE, GLOBAL_BATCH = 16, 16


def entry(name: str, *class_names: str, has_labels: bool = True) -> EntryFacts:
    return EntryFacts(name=name, class_names=class_names, has_labels=has_labels, has_captions=False)


TWO_SOURCES = Facts(
    entries=(entry("pets", "cat", "dog"), entry("zoo", "ant", "cat", "elk"), entry("web", has_labels=False))
)
MIXED = {"mix": {"mixup": 0.8, "cutmix": 1.0}}


def build(facts: Facts = TWO_SOURCES, dropping: dict[str, float] | None = None, **changes: Any) -> Supervised:
    vit = VitConfig(width=24, depth=2, heads=2, patch=4, **(dropping or {}))
    backbone = build_backbone("vit", vit, IMAGE_SIZE, seed=0)
    config = SupervisedConfig.model_validate(changes)
    return Supervised(backbone, config, image_size=IMAGE_SIZE, num_steps=50, seed=0, facts=facts)


def batch(rows: slice = slice(None), dtype: torch.dtype = torch.float32) -> Batch:
    """A slice of a global batch from both sources, of which some images have no label."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(GLOBAL_BATCH, 3, IMAGE_SIZE, IMAGE_SIZE, generator=generator, dtype=torch.float64)
    index = torch.arange(GLOBAL_BATCH)
    labels = torch.where(index % 5 == 4, -1, index % 2)
    return Batch(
        images_BCHW=images[rows].to(dtype),
        labels_B=labels[rows],
        positions_B=index[rows] + 100,
        entry_B=(index // 2 % 2)[rows],
        rows=len(index[rows]),
    )


def test_classes_of_several_sources_meet_by_their_names() -> None:
    supervised = build()
    assert supervised.class_names == ("cat", "dog", "ant", "elk")
    rows = batch()
    known = [("cat", "dog"), ("ant", "cat", "elk")]
    for label, number, source in zip(rows.labels_B, supervised.labels(rows), rows.entry_B, strict=True):
        assert number == (-1 if label < 0 else supervised.class_names.index(known[source][label]))
    composed = Facts(entries=(entry("one", "caf\u00e9", "x"), entry("two", "x", "cafe\u0301")))
    assert build(composed).class_names == ("caf\u00e9", "x")


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_the_loss_is_cross_entropy_in_loops_over_the_labelled_images(smoothing: float) -> None:
    supervised, rows = build(smoothing=smoothing).double(), batch(dtype=torch.float64)
    supervised.before_step([rows])
    loss, report = supervised(rows)
    logits = supervised.classify(rows.images_BCHW)["encoder"].tolist()
    expected = []
    for scores, label in zip(logits, supervised.labels(rows).tolist(), strict=True):
        total = sum(math.exp(score) for score in scores)
        shares = [(1 - smoothing) * (number == label) + smoothing / len(scores) for number in range(len(scores))]
        terms = (share * -math.log(math.exp(s) / total) for share, s in zip(shares, scores, strict=True))
        expected.append(sum(terms) if label >= 0 else 0.0)
    labelled = (rows.labels_B >= 0).sum().item()
    assert report["loss_B"].tolist() == pytest.approx(expected, rel=1e-10)
    assert loss.item() == pytest.approx(sum(expected) / labelled, rel=1e-10)
    right = sum(
        max(scores) == scores[label]
        for scores, label in zip(logits, supervised.labels(rows), strict=True)
        if label >= 0
    )
    assert report["accuracy"].item() == pytest.approx(100 * right / labelled)


def test_a_mixed_image_has_the_labels_of_both_by_their_shares() -> None:
    supervised, rows = build(smoothing=0, **MIXED).double(), batch(dtype=torch.float64)
    plain = build(smoothing=0).double()
    plain.load_state_dict(supervised.state_dict())
    seen: list[torch.Tensor] = []
    embed = supervised.backbone.embed
    supervised.backbone.embed = lambda images: (seen.append(images), embed(images))[1]
    supervised.before_step([rows])
    _, report = supervised(rows)
    share_B = torch.ones(GLOBAL_BATCH, dtype=torch.float64)
    first, second = rows.images_BCHW[::2], rows.images_BCHW[1::2]
    apart = (second - first).flatten(1)
    share_B[::2] = 1 - ((seen[0][::2] - first).flatten(1) * apart).sum(1) / apart.square().sum(1)  # by projection
    losses = []
    for labels in (rows.labels_B, rows.labels_B.view(-1, 2).flip(1).flatten()):
        entries = rows.entry_B
        part = replace(rows, images_BCHW=seen[0], labels_B=labels, entry_B=entries)
        plain.before_step([part])
        losses.append(plain(part)[1]["loss_B"])
    share_B[1::2] = share_B[::2]
    mixup = torch.tensor([len(one.unique()) for one in ((seen[0][::2] - first) != 0).flatten(1).long()]) == 1
    assert 1 <= mixup.sum() < GLOBAL_BATCH / 2
    for pair in mixup.nonzero().flatten().tolist():
        for row in (2 * pair, 2 * pair + 1):
            expected = share_B[row] * losses[0][row] + (1 - share_B[row]) * losses[1][row]
            assert report["loss_B"][row].item() == pytest.approx(expected.item(), rel=1e-5)


def test_supervised_learning_keeps_the_contract_of_objectives() -> None:
    assert_objective_contract(lambda: build(average=0.9, **MIXED), batch())


def test_its_operations_are_those_that_pytorch_counts() -> None:
    assert_flops_are_those_counted(build(), batch(slice(0, 4)))


def test_the_average_follows_the_weights_slower_later_and_no_step_that_is_not_finite() -> None:
    supervised = build(average=0.9)
    began = supervised.average["head"].weight.clone()
    with torch.no_grad():
        supervised.head.weight += 1
    supervised.after_step(0, torch.tensor(False))
    assert torch.equal(supervised.average["head"].weight, began)
    supervised.after_step(0, torch.tensor(True))
    torch.testing.assert_close(supervised.average["head"].weight, began + 0.9)
    supervised.after_step(1000, torch.tensor(True))
    torch.testing.assert_close(supervised.average["head"].weight, began + 0.91)
    assert not any(p.requires_grad for p in supervised.average.parameters())
    names = {name: logits.shape for name, logits in supervised.classify(batch().images_BCHW).items()}
    assert names == dict.fromkeys(supervised.encoders(), (GLOBAL_BATCH, 4))


def one_step(dtype: torch.dtype, num_micro: int, recomputed: bool = False) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of the global batch, as the trainer makes them of this rank's part, with drop path and all."""
    supervised = build(average=0.9, dropping={"drop_path": 0.3, "dropout": 0.1}, **MIXED).to(dtype)
    if recomputed:
        recompute(supervised)
    share = GLOBAL_BATCH // world_size()
    rows = batch(slice(rank() * share, (rank() + 1) * share), dtype)
    size, total = share // num_micro, torch.zeros((), dtype=torch.float64)
    parts = [replace(rows_of([rows], range(first, first + size)), rows=share) for first in range(0, share, size)]
    supervised.before_step(parts)
    for part in parts:
        loss, _ = supervised(part)
        (loss * size / share).backward()
        total += loss.detach().double() * size / share
    average_gradients(supervised.parameters())
    if world_size() > 1:
        dist.all_reduce(total)
    gradients = {name: p.grad for name, p in supervised.named_parameters() if p.grad is not None}
    return total.item() / world_size(), gradients


def rank_main(number: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=number, world_size=4)
    torch.save({dtype: one_step(dtype, 2) for dtype in (torch.float64, torch.float32)}, f"{folder}/{number}.pt")
    dist.destroy_process_group()


def test_micro_batches_and_processes_have_the_loss_and_the_gradients_of_one_batch(tmp_path: Path) -> None:
    start_ranks(rank_main, tmp_path, 4)
    ranks = [torch.load(tmp_path / f"{number}.pt", weights_only=False) for number in range(4)]
    for dtype, tolerance in ((torch.float64, 1e-10), (torch.float32, 1e-6)):
        loss, expected = one_step(dtype, 1)
        splits = [one_step(dtype, num) for num in (2, 4, 8)]
        for ours, gradients in [*splits, *(found[dtype] for found in ranks)]:
            assert ours == pytest.approx(loss, rel=tolerance)
            apart = sum((gradients[name] - expected[name]).double().square().sum() for name in expected)
            size = sum(gradient.double().square().sum() for gradient in expected.values())
            assert float(apart / size) ** 0.5 < tolerance


def test_what_is_computed_again_drops_the_same() -> None:
    (loss, expected), (again, gradients) = one_step(torch.float32, 2), one_step(torch.float32, 2, recomputed=True)
    assert again == loss
    assert all(torch.equal(gradients[name], expected[name]) for name in expected)
    kept = build(average=0.9, **MIXED)
    kept.before_step([batch()])
    assert kept(batch())[0].item() != pytest.approx(loss, rel=1e-3), "it drops something"


@pytest.mark.parametrize(
    ("facts", "changes", "message"),
    [
        (Facts(entries=(entry("tars"),)), {}, "class names expected, found in tars bare numbers"),
        (
            Facts(entries=(entry("web", has_labels=False),)),
            {},
            r"a source with labels expected in data.sources, none found \(web\)",
        ),
        (Facts(entries=(entry("pets", "cat", "dog"),)), {"classes": 3}, "3 expected, the mixture has 2: cat, dog"),
    ],
)
def test_mixtures_without_classes_are_refused(facts: Facts, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build(facts, **changes)


def test_classes_that_are_given_stand_for_a_mixture_that_is_not_built() -> None:
    assert build(Facts(), classes=7).head.out_features == 7


def supervised_run(shards: Path, folder: Path, **changes: Any) -> Path:
    path = tiny_run(shards, folder, **{"training__lr": 3e-3, **changes})
    content = yaml.safe_load(path.read_text())
    content["objective"] = {"supervised": {"average": 0.9, "mix": {"mixup": 0.2, "cutmix": 0.2}}}
    content["data"]["augmentation"] = {"horizontal_flip": False}
    path.write_text(yaml.safe_dump(content))
    return path


def test_a_run_is_resumed_to_the_bit_evaluated_and_exported(shards: Path, tmp_path: Path) -> None:
    longer = {"training__epochs": 6}
    whole = train(load_run_config(supervised_run(shards, tmp_path / "whole", **longer)))
    pieces = load_run_config(supervised_run(shards, tmp_path / "pieces", **longer))
    train(pieces, stop_after=13)
    run = train(pieces, resume="auto")
    names = ("step", "loss", "accuracy", "grad_norm", "proof")
    logs = [read_metrics(one / "metrics.jsonl") for one in (whole, run)]
    table = [[tuple(row[name] for name in names) for row in log] for log in logs]
    assert table[0] == table[1]
    assert len(table[0]) == 3 * STEPS
    first, last = (sum(row[1] for row in part) for part in (table[0][:10], table[0][-10:]))
    assert last < first
    found = evaluate(run, probes=("ridge",))
    rows = {row["features"]: row for row in found["rows"]}
    assert list(rows) == ["raw pixels", "PCA-30", "untrained", "encoder", "average"]
    assert "own" not in rows["untrained"]
    right, images = (
        sum(row["right"] * row["images"] for row in found["classes"]),
        sum(row["images"] for row in found["classes"]),
    )
    assert rows["average"]["own"] == pytest.approx(right / images)
    assert images == found["test"] == sum(count for *_, count in found["confusion"]["counts"])
    assert rows["average"]["own_top5"] > rows["average"]["own"]
    report = (run / "report.md").read_text()
    assert "the run's own classifier, class by class" in report
    assert evaluate(run, probes=("ridge",)) == found, "from what is finished already"
    assert (export(run, "safetensors") / "model.safetensors").exists()
    facts = (run / "facts.json").read_text()
    (run / "facts.json").write_text(re.sub(r'"(\d)"', r'"class \1"', facts))  # none of them is in the test
    unknown = evaluate(run, probes=("ridge",))
    assert unknown["rows"] == [{key: row[key] for key in row if not key.startswith("own")} for row in found["rows"]]
    assert unknown.keys().isdisjoint({"classes", "confusion"})


def test_images_that_belong_together_stay_together(shards: Path, tmp_path: Path) -> None:
    odd = load_run_config(supervised_run(shards, tmp_path, training__global_batch=18, training__micro_batch=9))
    with pytest.raises(InputError, match=r"training\.micro_batch: a multiple of 2 expected, for mixup and CutMix"):
        train(odd)
    assert not (tmp_path / "tiny").exists()
