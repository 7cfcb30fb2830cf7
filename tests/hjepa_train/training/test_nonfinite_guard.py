"""A step whose gradient is not finite leaves no trace, and two in a row stop the run."""

import json
import shutil
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch

from hjepa_shards import SplitView
from hjepa_shards.errors import InputError
from hjepa_train import load_run_config, train
from hjepa_train.base.metrics_file import read_metrics
from hjepa_train.data.micro_batches import to_micro_batches
from hjepa_train.training.optimizer import OptimConfig, build_optimizer, update
from tests.hjepa_train.objectives.joint.test_hjepa import batch, build, images
from tests.hjepa_train.tiny import tiny_run


@pytest.mark.parametrize("overlooked", [False, True], ids=["as CUDA", "as MPS"])
def test_a_step_that_is_not_finite_changes_no_weight_moment_or_target(
    overlooked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    hjepa = build()
    optimizer = build_optimizer(hjepa, OptimConfig())
    if overlooked:
        monkeypatch.setattr("hjepa_train.training.optimizer._HOST_LOOKS", ("cpu",))
        optimizer.register_step_pre_hook(lambda optimizer, *_: setattr(optimizer, "found_inf", None))

    def step(number: int, *, is_finite: bool) -> None:
        optimizer.zero_grad()
        loss, _ = hjepa(batch(images(4)))
        (loss if is_finite else loss * torch.inf).backward()
        update(optimizer, torch.tensor(is_finite))
        hjepa.after_step(number, torch.tensor(is_finite))

    step(0, is_finite=True)
    before = deepcopy((dict(hjepa.state_dict()), optimizer.state_dict()["state"]))
    step(1, is_finite=False)
    hjepa.num_updates.fill_(1)  # the schedules continue
    torch.testing.assert_close((dict(hjepa.state_dict()), optimizer.state_dict()["state"]), before, rtol=0, atol=0)
    step(1, is_finite=True)
    assert not torch.equal(
        hjepa.state_dict()["target.blocks.0.mlp.fc1.weight"], before[0]["target.blocks.0.mlp.fc1.weight"]
    )


def poison(monkeypatch: pytest.MonkeyPatch, *steps: int) -> None:
    """NaN instead of the pixels of these steps."""

    def to_poisoned(loaded: Any, config: Any, **options: Any) -> Any:
        batches = to_micro_batches(loaded, config, **options)
        if loaded.position // 16 in steps:
            for one in batches:
                one.images_BCHW.fill_(torch.nan)
        return batches

    monkeypatch.setattr("hjepa_train.jobs.run.to_micro_batches", to_poisoned)


def test_a_run_continues_after_a_bad_step_and_names_its_samples(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, 2, 6)
    run = train(load_run_config(tiny_run(shards, tmp_path)), stop_after=9)
    rows = read_metrics(run / "metrics.jsonl")
    assert [row["step"] for row in rows if row["loss"] is None] == [2, 6]
    assert len(rows) == 9
    skipped = [json.loads(line) for line in (run / "skipped.jsonl").read_text().splitlines()]
    assert [row["step"] for row in skipped] == [2, 6]
    assert {name: len(samples) for name, samples in skipped[0]["samples"].items()} == {"digits": 12, "photos": 4}
    view = SplitView(shards / "digits" / "train")
    assert all(0 <= sample < len(view) for sample in skipped[0]["samples"]["digits"])


def test_steps_that_are_done_again_are_named_once(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, 9)
    config = load_run_config(tiny_run(shards, tmp_path))
    train(config, stop_after=12)
    shutil.rmtree(tmp_path / "tiny" / "checkpoints" / "step-00000012")  # as a kill between two checkpoints
    run = train(config, resume="auto", stop_after=12)
    assert [row["step"] for row in read_metrics(run / "skipped.jsonl")] == [9]


def test_two_bad_steps_in_a_row_stop_the_run(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    poison(monkeypatch, 4, 9, 10)
    with pytest.raises(InputError, match="steps 9 to 10: the gradient is not finite"):
        train(load_run_config(tiny_run(shards, tmp_path)))
    assert len((tmp_path / "tiny" / "skipped.jsonl").read_text().splitlines()) == 3
