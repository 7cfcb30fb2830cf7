"""The loop adds micro-batches up to what one batch would have been, and keys its randomness by step."""

from pathlib import Path
from typing import Any

import pytest
import torch

from hjepa_train import load_run_config, train
from hjepa_train.base.metrics_file import read_metrics
from tests.hjepa_train.tiny import tiny_run


def rows(shards: Path, folder: Path, steps: int, **changes: Any) -> list[dict[str, Any]]:
    run = train(load_run_config(tiny_run(shards, folder, **changes)), stop_after=steps)
    return read_metrics(run / "metrics.jsonl")


def losses(shards: Path, folder: Path, steps: int, **changes: Any) -> list[float]:
    return [row["loss"] for row in rows(shards, folder, steps, **changes)]


@pytest.mark.parametrize("anticollapse", [{"anticollapse": "none"}, {"statistics": "exact"}])
def test_twelve_steps_in_micro_batches_have_the_losses_and_gradients_of_whole_batches(
    shards: Path, tmp_path: Path, anticollapse: dict[str, str]
) -> None:
    objective = {"hjepa": {"levels": 2, "momentum": 0.8, "predictor": {"width": 16, "depth": 1, "heads": 2}}}
    objective["hjepa"] |= anticollapse
    whole = rows(shards, tmp_path / "whole", 12, objective__hjepa=objective["hjepa"])
    parts = rows(shards, tmp_path / "parts", 12, objective__hjepa=objective["hjepa"], training__micro_batch=4)
    assert [row["loss"] for row in parts] == pytest.approx([row["loss"] for row in whole], abs=1e-5)
    norms = [[row["grad_norm"] for row in table] for table in (parts, whole)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3), "AdamW would not notice gradients that are a multiple"


def test_a_generator_that_was_moved_changes_nothing(shards: Path, tmp_path: Path) -> None:
    torch.manual_seed(1)
    one = losses(shards, tmp_path / "one", 6)
    torch.manual_seed(2)
    assert losses(shards, tmp_path / "two", 6) == one


def test_another_seed_is_another_run(shards: Path, tmp_path: Path) -> None:
    run = {"name": "tiny", "seed": 4, "folder": str(tmp_path / "other")}
    assert losses(shards, tmp_path / "other", 2, run__seed=4, run__folder=run["folder"]) != losses(
        shards, tmp_path / "one", 2
    )
