"""What makes large models fit and fast leaves their numbers as they are."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from hjepa_train import load_run_config, train
from hjepa_train.backbones.registry import build_backbone
from hjepa_train.backbones.vit import VitConfig
from hjepa_train.base.distributed import is_shard
from hjepa_train.base.metrics_file import read_metrics
from hjepa_train.checkpoints.checkpoint_files import latest, read_state
from hjepa_train.modules.ema import lerp_together
from hjepa_train.objectives.base import Batch
from hjepa_train.objectives.joint.hjepa import HJepa, HJepaConfig
from hjepa_train.parallel.layout import ScaleConfig, gathered, lay_out
from tests.hjepa_train.tiny import tiny_run
from tests.processes import start_ranks


def rows(shards: Path, folder: Path, stop_after: int = 8, **changes: Any) -> list[dict[str, Any]]:
    run = train(load_run_config(tiny_run(shards, folder, **changes)), resume="auto", stop_after=stop_after)
    return read_metrics(run / "metrics.jsonl")


def column(table: list[dict[str, Any]], name: str) -> list[float]:
    return [row[name] for row in table]


def kept_bytes(config: ScaleConfig) -> tuple[float, int]:
    """(loss, bytes that a step keeps for its backward pass besides parameters)"""
    backbone = build_backbone("vit", VitConfig(width=48, depth=4, heads=2, patch=2), 16, seed=0)
    objective = HJepa(backbone, HJepaConfig(levels=1, momentum=0.8), image_size=16, num_steps=36, seed=0)
    lay_out(objective, config)
    sizes: dict[int, int] = {}
    parameters = {parameter.data_ptr() for parameter in objective.parameters()}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in parameters:
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, 16, 16, generator=generator)
    integers = torch.arange(4)
    batch = Batch(images_BCHW=images, labels_B=integers, positions_B=integers, entry_B=integers, rows=4)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss, _ = objective(batch)
    loss.backward()
    return loss.item(), sum(sizes.values())


def test_recomputed_blocks_keep_a_fraction_and_change_no_bit(shards: Path, tmp_path: Path) -> None:
    loss, kept = kept_bytes(ScaleConfig())
    same_loss, less = kept_bytes(ScaleConfig(activation_checkpointing=True))
    assert same_loss == loss
    assert less < kept / 3
    plain = rows(shards, tmp_path / "plain")
    recomputed = rows(shards, tmp_path / "recomputed", training__activation_checkpointing=True)
    assert column(recomputed, "loss") == column(plain, "loss")
    assert column(recomputed, "grad_norm") == column(plain, "grad_norm")


@pytest.fixture
def fresh_compiler() -> Iterator[None]:
    """Counts from nothing, and leaves nothing to the runs of other tests."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_compiler")
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # the compiler looks at it while it traces
def test_compiled_blocks_are_compiled_once_and_compute_the_same(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which uses are graphs of their own; code is generated for graphs in test_compiled_ranks (test_ranks.py)."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    predictor = {"width": 16, "depth": 2, "heads": 2}
    objective = {"levels": 2, "momentum": 0.8, "statistics": "exact", "predictor": predictor}
    changes = {
        "training__activation_checkpointing": True,
        "training__micro_batch": 8,
        "objective__hjepa": objective,
    }
    plain = rows(shards, tmp_path / "plain", **changes)
    assert "graphs" not in plain[0]
    compiled = rows(shards, tmp_path / "compiled", training__compile=True, **changes)
    assert column(compiled, "loss") == pytest.approx(column(plain, "loss"), abs=1e-5)
    # target, context (without gradients too, for exact statistics), predictor, its last block; none later
    assert column(compiled, "graphs") == [5] * 8


def test_fp16_finds_its_scale_and_continues_with_it(shards: Path, tmp_path: Path) -> None:
    plain = rows(shards, tmp_path / "plain", 6)
    whole = rows(shards, tmp_path / "whole", 6, training__precision="fp16")
    rows(shards, tmp_path / "parts", 3, training__precision="fp16")
    parts = rows(shards, tmp_path / "parts", 6, training__precision="fp16")
    assert column(parts, "loss") == column(whole, "loss")
    assert column(whole, "loss") != column(plain, "loss")
    assert column(whole, "grad_norm") == pytest.approx(column(plain, "grad_norm"), rel=0.05)
    saved = latest(tmp_path / "parts" / "tiny" / "checkpoints")
    assert saved is not None
    assert read_state(saved)["scaler"]["_growth_tracker"] == 6


def test_a_scale_that_is_too_large_is_halved_until_gradients_are_finite(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scaler = torch.amp.GradScaler

    def huge(device: str, *, enabled: bool) -> torch.amp.GradScaler:
        return scaler(device, init_scale=2.0**30, enabled=enabled)

    monkeypatch.setattr(torch.amp, "GradScaler", huge)
    table = rows(shards, tmp_path, 20, training__precision="fp16")
    skipped = read_metrics(tmp_path / "tiny" / "skipped.jsonl")
    assert 5 < len(skipped) < 18
    assert column(skipped, "step") == list(range(len(skipped)))
    norms = column(table, "grad_norm")
    assert all(norm is None for norm in norms[: len(skipped)])
    assert all(norm > 0 for norm in norms[len(skipped) :])


def test_many_tensors_move_together_as_they_would_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    ours, theirs = ([torch.randn(n, 3, generator=generator) for n in (1, 5, 7)] for _ in range(2))
    alone = [our.lerp(their, 0.25) for our, their in zip(ours, theirs, strict=True)]
    lerp_together(ours, theirs, torch.tensor(True) * 0.25)
    for our, expected in zip(ours, alone, strict=True):
        torch.testing.assert_close(our, expected)
    before = [our.clone() for our in ours]
    lerp_together(ours, theirs, torch.tensor(False) * 0.25)
    assert all(torch.equal(our, then) for our, then in zip(ours, before, strict=True))


def held_main(number: int, folder: str) -> None:
    """How many parameters are parts of themselves: laid out, gathered, and after that; what rank 0 computes alone."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=number, world_size=2)
    backbone = build_backbone("vit", VitConfig(width=16, depth=2, heads=2, patch=2), 16, seed=0)
    objective = HJepa(backbone, HJepaConfig(levels=1, momentum=0.8), image_size=16, num_steps=36, seed=0)
    images = torch.ones(2, 3, 16, 16)
    held, [expected] = [], objective.level_features(backbone, images)

    def count() -> None:
        held.append(sum(map(is_shard, objective.parameters())))

    lay_out(objective, ScaleConfig(parallel="fsdp"))
    count()
    with gathered(objective):
        count()
        if number == 0:
            [found] = objective.level_features(backbone, images)
            assert torch.equal(found, expected)
    count()
    torch.save(held, f"{folder}/{number}.pt")
    dist.destroy_process_group()


def test_gathered_weights_are_whole_for_each_rank_alone_and_sharded_again(tmp_path: Path) -> None:
    start_ranks(held_main, tmp_path)
    for number in (0, 1):
        before, inside, after = torch.load(tmp_path / f"{number}.pt")
        assert (before > 20, inside, after) == (True, 0, before)
