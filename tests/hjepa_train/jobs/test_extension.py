"""A run that is given more epochs: the order goes on, schedules are those of the new length, and it is written down."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from hjepa_shards.errors import InputError, ResumeMismatch
from hjepa_train import load_run_config, train
from hjepa_train.base.metrics_file import read_metrics
from hjepa_train.base.schedules import learning_rate, momentum
from hjepa_train.checkpoints.checkpoint_files import latest, read_state
from hjepa_train.cli import main
from hjepa_train.jobs.extension import Extension
from hjepa_train.objectives.joint import hjepa
from tests.conftest import Command, in_this_process
from tests.hjepa_train.jobs.test_resume_checks import mae_run
from tests.hjepa_train.tiny import STEPS, tiny_run


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    return in_this_process("hjepa-train", main, monkeypatch, capfd)


@pytest.fixture(scope="module")
def finished(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of 36 steps."""
    folder = tmp_path_factory.mktemp("finished")
    train(load_run_config(tiny_run(shards, folder)))
    return folder


def longer(shards: Path, finished: Path, folder: Path, **changes: Any) -> Path:
    """A copy of the finished run, and the configuration of one of twice its epochs."""
    shutil.copytree(finished / "tiny", folder / "tiny")
    return tiny_run(shards, folder, **{"training__epochs": 4, **changes})


def rows(folder: Path) -> list[dict[str, Any]]:
    return read_metrics(folder / "tiny" / "metrics.jsonl")


def state(folder: Path) -> dict[str, Any]:
    newest = latest(folder / "tiny" / "checkpoints")
    assert newest is not None
    return read_state(newest)


def test_a_finished_run_continues_on_the_schedules_of_its_new_length(
    shards: Path, finished: Path, tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares: list[float] = []
    follow = hjepa.follow
    monkeypatch.setattr(hjepa, "follow", lambda *given: (shares.append(given[2]), follow(*given)))
    path = longer(shards, finished, tmp_path)
    code, out, err = command("run", path, "--resume", "auto", "--extend", "--stop-after", 40)
    assert (code, err) == (0, "")
    rate = learning_rate(STEPS, 2 * STEPS, peak=1e-3, warmup_steps=3)
    assert (
        f"extended 36 -> 72 steps from step 36 on; there: learning rate 0 -> {rate:.2e}, weight decay 0.05 -> 0.05, "
        "momentum of the target 1 -> 0.9, warm-up over, 3 steps"
    ) in " ".join(out.split())
    train(load_run_config(path), resume="auto", stop_after=44)  # the switch is for the step that makes it longer
    table = rows(tmp_path)
    assert table[:STEPS] == rows(finished)
    assert [row["lr"] for row in table[STEPS:]] == [
        learning_rate(step, 2 * STEPS, peak=1e-3, warmup_steps=3) for step in range(STEPS, 44)
    ]
    assert shares == [1 - momentum(step, 2 * STEPS, initial=0.8) for step in range(STEPS, 44)]
    made = {"at": 36, "before": 36, "after": 72, "warmup": 3}
    assert [row.get("extended") for row in table] == [None] * STEPS + [[made]] * 8
    assert state(tmp_path)["extensions"] == [made]
    assert "| extended after step 36 | 36 -> 72 steps |" in (tmp_path / "tiny" / "report.md").read_text()

    # the order is that of a run which was this long from the start
    train(load_run_config(tiny_run(shards, tmp_path / "long", training__epochs=4)), stop_after=44)
    assert [(row["step"], row["proof"]) for row in table] == [(r["step"], r["proof"]) for r in rows(tmp_path / "long")]

    # killed on the way it is the same run, and it can be made longer once more
    again = longer(shards, finished, tmp_path / "again")
    train(load_run_config(again), resume="auto", extend=True, stop_after=44)
    assert [row["loss"] for row in rows(tmp_path / "again")] == [row["loss"] for row in table]
    config = load_run_config(again, ["training.epochs=5"])
    train(config, resume="auto", extend=True, stop_after=45)
    assert rows(tmp_path / "again")[-1]["extended"] == [made, {"at": 44, "before": 72, "after": 90, "warmup": 3}]
    assert rows(tmp_path / "again")[-1]["lr"] == learning_rate(44, 90, peak=1e-3, warmup_steps=3)


def test_a_warm_up_that_is_not_over_is_that_of_the_longer_run(shards: Path, tmp_path: Path, command: Command) -> None:
    train(load_run_config(tiny_run(shards, tmp_path)), stop_after=2)
    path = tiny_run(shards, tmp_path, training__epochs=8)
    _, out, _ = command("run", path, "--resume", "auto", "--extend", "--stop-after", 3)
    assert "warm-up 3 -> 14 steps" in " ".join(out.split())
    train(load_run_config(path), resume="auto", stop_after=4)
    assert [row["lr"] for row in rows(tmp_path)] == pytest.approx([1e-3 / 3, 2e-3 / 3, 3e-3 / 14, 4e-3 / 14])


def test_a_warm_up_that_the_recipe_derives_from_the_epochs_does_not_stand_in_the_way(
    shards: Path, tmp_path: Path
) -> None:
    train(load_run_config(mae_run(shards, tmp_path)), stop_after=5)  # 4 steps of warm-up: 0.2 epochs of 18 steps
    path = mae_run(shards, tmp_path, epochs=4)
    train(load_run_config(path), resume="auto", extend=True, stop_after=6)
    train(load_run_config(path), resume="auto", stop_after=7)
    peak = 1.5e-4 * 16 / 256
    assert [row["lr"] for row in rows(tmp_path)][5:] == [
        learning_rate(step, 2 * STEPS, peak=peak, warmup_steps=4) for step in (5, 6)
    ]


@pytest.mark.parametrize(
    ("changes", "extend", "said"),
    [
        ({}, False, r"training.epochs: 2 saved, 4 here; .*; `--extend` continues to more epochs"),
        ({"training__epochs": 1}, True, r"training.epochs: 2 saved, 1 here; .* makes a run longer, never shorter"),
        ({"training__lr": 2e-3}, True, r"other settings: training.lr: 0.001 saved, 0.002 here; restore"),
        ({"training__warmup_epochs": 0.5}, True, r"other settings: training.warmup_epochs: None saved, 0.5 here"),
    ],
)
def test_what_does_not_make_a_run_longer_alone_is_refused(
    shards: Path, finished: Path, tmp_path: Path, changes: dict[str, Any], extend: bool, said: str
) -> None:
    with pytest.raises(ResumeMismatch, match=said):
        train(load_run_config(longer(shards, finished, tmp_path, **changes)), resume="auto", extend=extend)


def test_there_must_be_a_run_to_extend(shards: Path, tmp_path: Path) -> None:
    config = load_run_config(tiny_run(shards, tmp_path))
    with pytest.raises(InputError, match="--extend: a run to continue expected, none found; say `--resume auto --ext"):
        train(config, extend=True)
    with pytest.raises(InputError, match=r"--extend: a run with a checkpoint expected in .*tiny, none found; begin it"):
        train(config, resume="auto", extend=True)
    assert not (tmp_path / "tiny").exists()


def test_the_switch_moves_nothing_in_a_run_of_the_same_length(shards: Path, finished: Path, tmp_path: Path) -> None:
    train(load_run_config(longer(shards, finished, tmp_path, training__epochs=2)), resume="auto", extend=True)
    assert rows(tmp_path) == rows(finished)
    assert json.dumps(state(tmp_path)["extensions"]) == "[]"


@pytest.mark.parametrize("wrong", [{"after": 36}, {"at": 37}, {"warmup": -1}, {"before": "36"}])
def test_an_extension_that_cannot_have_been_made_is_damage(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Extension.model_validate({"at": 36, "before": 36, "after": 72, "warmup": 3} | wrong)
