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


def test_a_run_applies_its_largest_norm_and_logs_the_gradients_own(shards: Path, tmp_path: Path) -> None:
    """So short that AdamW's eps is all that is left: nothing moves, and the target is where the online encoder is."""
    path = tiny_run(shards, tmp_path, training__clip_norm=1e-20, training__weight_decay=0.0)
    table = read_metrics(train(load_run_config(path), stop_after=3) / "metrics.jsonl")
    assert [row["target_distance"] for row in table] == pytest.approx([0.0] * 3, abs=1e-9)
    assert all(row["grad_norm"] > 1e-3 for row in table)


def test_a_run_freezes_what_it_is_told_to(shards: Path, tmp_path: Path) -> None:
    config = load_run_config(tiny_run(shards, tmp_path, training__frozen=["backbone"]))
    table = read_metrics(train(config, stop_after=2) / "metrics.jsonl")
    table = read_metrics(train(config, resume="auto", stop_after=4) / "metrics.jsonl")
    assert [row["target_distance"] for row in table] == [0.0] * 4
    assert table[3]["loss"] != table[0]["loss"], "the predictor learns"
