"""The benchmark of thirty kills, with four of them; and that it would see what differs."""

import json
import shutil
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks import kill_points
from benchmarks.kill_points import (
    MOMENTS,
    SAVE_EVERY,
    Point,
    checkpoints_of,
    compare,
    compare_ranks,
    journal_of,
    kill_again_and_again,
    spread,
    tiny,
    unfinished,
    write_config,
)
from hjepa_train import load_run_config, train
from hjepa_train.base.metrics_file import read_metrics
from hjepa_train.checkpoints.checkpoint_files import latest
from tests.processes import Forked, forked


def test_the_points_are_spread_over_the_run_and_most_are_in_saves() -> None:
    points = spread(248, 30, seed=0)
    steps = [point.step for point in points]
    assert steps == sorted(steps)
    assert all(0 < later - earlier < 17 for earlier, later in pairwise(steps))
    assert steps[0] < 8
    assert steps[-1] >= 231
    assert {kind: [point.moment for point in points].count(kind) for kind in MOMENTS} == {
        **dict.fromkeys(MOMENTS, 3),
        "step": 9,
    }
    assert spread(248, 30, seed=1) != points


@pytest.mark.slow
def test_a_run_killed_at_steps_and_in_saves_is_the_run_that_was_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(words: list[str], config: Path) -> AbstractContextManager[Forked]:
        return forked("hjepa-train", *words[words.index("run") :], said=config.parent / "saying")

    monkeypatch.setattr(kill_points, "started", start)
    content = tiny(tmp_path, 4)
    whole, pieces = (write_config(content, tmp_path / name) for name in ("whole", "pieces"))
    train(load_run_config(whole))
    points = [
        Point(step=2, moment="step"),
        Point(step=9, moment="folder"),
        Point(step=17, moment="begin"),
        Point(step=25, moment="optimizer.pt"),
    ]
    said: list[str] = []
    kills = kill_again_and_again(pieces, points, say=said.append)
    assert len(said) == 4
    assert compare(whole, pieces) == []
    assert ".saving" in kills[1].left
    assert all(kill.logged - kill.saved < 2 * SAVE_EVERY for kill in kills), (
        "a kill costs no more than a save's distance"
    )
    assert [path.name for path in checkpoints_of(pieces).iterdir() if path.name.startswith(".")] == []
    assert unfinished(pieces) == ""


def test_whatever_differs_is_named(tmp_path: Path) -> None:
    content = tiny(tmp_path, 1)
    content["objective"]["hjepa"]["momentum"] = 0.6  # 16 steps
    whole, pieces = (write_config(content, tmp_path / name) for name in ("whole", "pieces"))
    train(load_run_config(whole))
    train(load_run_config(pieces), stop_after=5)
    train(load_run_config(pieces), resume="auto")
    assert compare(whole, pieces) == []
    assert compare_ranks(whole, pieces) == ([], 0)

    rows = read_metrics(journal_of(pieces))
    kept = journal_of(pieces).read_bytes()
    for row, change in ((3, {"grad_norm": 1.0}), (4, {"loss": rows[4]["loss"] * (1 + 1e-7)})):
        journal_of(pieces).write_text(
            "".join(json.dumps(one | (change if one is rows[row] else {})) + "\n" for one in rows)
        )
        assert compare(whole, pieces) == [f"step {row}"]
    assert compare_ranks(whole, pieces)[0] == []
    changed = [rows[0], rows[1] | {"loss": rows[1]["loss"] * 1.0001}, *rows[2:-1], rows[-1] | {"proof": "0" * 32}]
    journal_of(pieces).write_text("".join(json.dumps(row) + "\n" for row in changed))
    wrong, largest = compare_ranks(whole, pieces)
    assert wrong == ["steps or order proofs", "losses, first at step 1"]
    assert largest == pytest.approx(1e-4, rel=1e-3)
    journal_of(pieces).write_bytes(kept)

    newest = latest(checkpoints_of(pieces))
    assert newest is not None
    weights = bytearray((newest / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (newest / "model.safetensors").write_bytes(weights)
    assert compare(whole, pieces) == ["model.safetensors"]
    state = json.loads((newest / "state.json").read_text())
    state["loader"]["proof"] = "0" * 32
    (newest / "state.json").write_text(json.dumps(state))
    assert compare(whole, pieces) == ["the loader's state with its order proof", "model.safetensors"]
    shutil.copytree(newest, newest.with_name(".step-00000099.saving"))
    assert unfinished(pieces).startswith(".step-00000099.saving: ")
