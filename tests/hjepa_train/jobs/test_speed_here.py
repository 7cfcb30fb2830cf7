"""A dry run's measurement: of this machine, in seconds, or the reason why not; and it leaves no trace."""

import re
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hjepa_train import dry_run, load_run_config
from hjepa_train.jobs import speed_here as module
from hjepa_train.jobs.dry_run import DryRun, SpeedHere
from hjepa_train.jobs.speed_here import speed_here
from hjepa_train.parallel.memory_estimate import Memory
from tests.hjepa_train.tiny import tiny_run


def dry_of(shards: Path, folder: Path, **changes: Any) -> DryRun:
    return dry_run(load_run_config(tiny_run(shards, folder, **changes)))


def test_a_few_steps_are_measured_and_nothing_else_notices(shards: Path, tmp_path: Path) -> None:
    dry = dry_of(shards, tmp_path, training__threads=2)
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    threads = torch.get_num_threads()
    found = speed_here(dry, where="x")
    assert torch.equal(torch.randn(3), expected)
    assert torch.get_num_threads() == threads
    assert found.device == "cpu"
    assert re.fullmatch(r"measured: \d+ steps? of 16 images", found.how)
    assert found.images_per_s is not None
    assert found.images_per_s > 0
    assert {path.name for path in tmp_path.iterdir()} == {"run.yaml"}


def test_the_speed_is_that_of_the_median_step_after_warm_up(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = [9.0, 9.0, 0.5, 0.25, 0.125]
    monkeypatch.setattr(module, "drive", lambda *_, **__: [{"all": second} for second in seconds])
    found = speed_here(dry_of(shards, tmp_path), where="x")
    assert (found.images_per_s, found.how) == (16 / 0.25, "measured: 3 steps of 16 images")
    del seconds[2:]  # of a run that has no more steps
    found = speed_here(dry_of(shards, tmp_path), where="x")
    assert (found.images_per_s, found.how) == (16 / 9.0, "measured: 1 step of 16 images")


def test_a_slow_machine_takes_fewer_images_a_step_and_a_very_slow_one_none(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dry = dry_of(shards, tmp_path, training__global_batch=64, training__micro_batch=32, training__epochs=8)
    rows: list[tuple[int, int | None]] = []

    def driven(config: Any, *_: object, **__: object) -> list[dict[str, float]]:
        rows.append((config.training.global_batch, config.training.micro_batch))
        return [{"all": 1.0}] * 3

    monkeypatch.setattr(module, "drive", driven)
    monkeypatch.setattr(module, "product_s", lambda *_: 1.0)

    def found_where(image_s: float) -> SpeedHere:
        """An image takes so long at a quarter of the speed of that product."""
        return speed_here(replace(dry, flops_per_image=int(image_s * 0.25 * 2 * 1024**3)), where="x")

    for image_s, expected in ((0.01, (64, 32)), (0.03, (16, 16)), (0.1, (8, 8))):
        found = found_where(image_s)
        assert rows.pop() == expected
        assert found.how == f"measured: 1 step of {expected[0]} images"
    found = found_where(100.0)
    assert found.images_per_s is None
    assert found.how == "not measured: 8 images alone would take some 800 s; `hjepa-train bench` measures it"
    assert rows == []


def test_steps_end_in_time(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_AT_MOST_S", 0.0)
    began = time.monotonic()
    found = speed_here(dry_of(shards, tmp_path), where="x")
    assert found.how == "measured: 1 step of 16 images"
    assert time.monotonic() - began < 60


def test_why_nothing_was_measured_is_said(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def how(dry: DryRun) -> str:
        found = speed_here(dry, where="x")
        assert found.images_per_s is None
        return found.how

    dry = dry_of(shards, tmp_path)
    assert how(replace(dry, not_built=("coco",))) == "not measured: coco is not built yet"
    assert how(replace(dry, not_built=("a", "b"))) == "not measured: a, b are not built yet"
    full = Memory(weights=1 << 50, target=0, gradients=0, optimizer=0, activations=0, images=0)
    assert how(replace(dry, memory=full)).startswith("not measured: a step takes about 1,048,576.0 GiB, and ")
    far = dry.config.model_copy(update={"data": dry.config.data.model_copy(update={"root": "s3://bucket"})})
    assert how(replace(dry, config=far)).startswith("not measured: the shards are at a URL")
    absent = dry.config.model_copy(update={"training": dry.config.training.model_copy(update={"device": "mps"})})
    monkeypatch.setattr("torch.backends.mps.is_available", lambda: False)
    assert how(replace(dry, config=absent)).startswith("not measured: training.device: mps: auto or one of ")
    gone = dry.config.model_copy(update={"data": dry.config.data.model_copy(update={"root": str(tmp_path)})})
    assert "built under" in how(replace(dry, config=gone))
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert how(dry).startswith("not measured: a run of several ranks")
