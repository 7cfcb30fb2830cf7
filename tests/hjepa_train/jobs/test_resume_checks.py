"""What moves the number of steps of a run that continues is refused by name; a log that is gone is said."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from hjepa_shards.building.build import BuildOptions, build
from hjepa_shards.errors import ResumeMismatch
from hjepa_train import load_run_config, train
from hjepa_train.base.metrics_file import read_metrics
from hjepa_train.checkpoints.checkpoint_files import latest
from hjepa_train.cli import main
from hjepa_train.training.saved_config import load_saved_config
from tests.conftest import Command, in_this_process
from tests.hjepa_train.checkpoints.test_untrusted_checkpoints import sealed
from tests.hjepa_train.tiny import tiny_run

ALL = {"data__epoch_samples": None}
"""An epoch is all samples: 200 digits and 100 photos, 38 steps for two; tiny runs say 288."""


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    return in_this_process("hjepa-train", main, monkeypatch, capfd)


@pytest.fixture(scope="module")
def grown(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same digits, and 20 photos more."""
    root = tmp_path_factory.mktemp("grown")
    (root / "digits").symlink_to(shards / "digits")
    build("photos", raw=None, out=root, splits=("train",), options=BuildOptions(samples_per_shard=40, limit=120))
    return root


@pytest.fixture(scope="module")
def begun(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs of two steps: one of 288 samples an epoch, one of all of them."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("said", "all")}
    for name, folder in folders.items():
        changes = {"training__warmup_epochs": 0.5} | (ALL if name == "all" else {})
        train(load_run_config(tiny_run(shards, folder, **changes)), stop_after=2)
    return folders


WEIGHTED = [{"name": "digits", "weight": 0.75}, {"name": "photos", "weight": 0.25}]
UNWEIGHTED = [{"name": "digits"}, {"name": "photos"}]


@pytest.mark.parametrize(
    ("which", "changes", "said"),
    [
        (
            "said",
            {"data__epoch_samples": 320},
            "data.epoch_samples: 288 saved, 320 here: this run would have 40 steps, 10 of them warm-up, and began with "
            "36 and 9, .* set `data.epoch_samples: 288`",
        ),
        ("said", ALL, "data.epoch_samples: 288 saved, all samples here: .* would have 38 steps"),
        ("said", {"data__epoch_samples": 289}, "data.epoch_samples: 288 saved, 289 here: this run would have 37 steps"),
        (
            "all",
            {"root": "grown", **ALL},
            "photos: 100 samples saved, 120 samples here: .* 40 steps, .* began with 38 .*`data.epoch_samples: 300`",
        ),
        ("all", {"data__sources": WEIGHTED[:1], **ALL}, "photos: 100 samples saved, none here: .* would have 25 steps"),
        (
            "all",
            {"data__strategy": "balanced", "data__sources": UNWEIGHTED, **ALL},
            "data.strategy: weighted saved, balanced here: this run would have 50 steps",
        ),
    ],
)
def test_what_moves_the_number_of_steps_is_refused_by_name_even_where_the_mixture_is_accepted(
    shards: Path,
    grown: Path,
    begun: dict[str, Path],
    tmp_path: Path,
    which: str,
    changes: dict[str, Any],
    said: str,
) -> None:
    shutil.copytree(begun[which] / "tiny", tmp_path / "tiny")
    root = grown if changes.get("root") else shards
    changes = {key: value for key, value in changes.items() if key != "root"}
    config = load_run_config(tiny_run(root, tmp_path, training__warmup_epochs=0.5, **changes))
    for accept_mixture in (False, True):
        with pytest.raises(ResumeMismatch, match=said):
            train(config, resume="auto", accept_mixture=accept_mixture)


def test_a_grown_source_is_accepted_where_the_epoch_stays_what_it_was(
    grown: Path, begun: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(begun["all"] / "tiny", tmp_path / "tiny")
    config = load_run_config(tiny_run(grown, tmp_path, training__warmup_epochs=0.5, data__epoch_samples=300))
    with pytest.raises(ResumeMismatch, match=r"photos: 100 samples in order .* \(--accept-mixture continues\)"):
        train(config, resume="auto")
    run = train(config, resume="auto", accept_mixture=True, stop_after=3)
    train(config, resume="auto", stop_after=4)
    assert [row["step"] for row in read_metrics(run / "metrics.jsonl")] == [0, 1, 2, 3]


def test_a_warm_up_that_moves_is_refused_where_the_number_of_steps_is_the_same(shards: Path, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"training__warmup_epochs": 1.001, "training__epochs": 2}
    train(load_run_config(tiny_run(shards, tmp_path, data__epoch_samples=287, **changes)), stop_after=1)
    config = load_run_config(tiny_run(shards, tmp_path, data__epoch_samples=288, **changes))
    with pytest.raises(ResumeMismatch, match="would have 36 steps, 19 of them warm-up, and began with 36 and 18"):
        train(config, resume="auto")


MAE = {"mae": {"decoder": {"width": 16, "depth": 1, "heads": 2}}}
BEFORE_RECIPES = {"lr": 1e-3, "betas": [0.9, 0.999], "weight_decay": None, "warmup_epochs": None}
"""As MAE was saved when all families had the same defaults."""


def mae_run(shards: Path, folder: Path, **training: Any) -> Path:
    path = tiny_run(shards, folder, **{f"training__{key}": value for key, value in training.items()})
    content = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(content | {"objective": MAE}))
    return path


def test_a_run_from_before_recipes_keeps_the_settings_that_it_left_out(shards: Path, tmp_path: Path) -> None:
    run = train(load_run_config(mae_run(shards, tmp_path, **BEFORE_RECIPES)), stop_after=1)
    for changes in ({"lr_per_256": 1.5e-4}, {"betas": [0.9, 0.95]}, {"weight_decay": 0.05}, {"warmup_epochs": 0.2}):
        (key,) = changes
        with pytest.raises(ResumeMismatch, match=f"training.{key.removesuffix('_per_256')}: .* saved, .* here"):
            train(load_run_config(mae_run(shards, tmp_path, **changes)), resume="auto")
    train(load_run_config(mae_run(shards, tmp_path)), resume="auto", stop_after=5)
    found = load_saved_config(run).training
    assert (found.lr, found.betas, found.weight_decay, found.warmup_epochs) == (1e-3, (0.9, 0.999), "by_length", None)
    peak, *_ = [row["lr"] for row in read_metrics(run / "metrics.jsonl")][3:]
    assert peak == pytest.approx(1e-3), "after a tenth of 36 steps"


LOSSES = {
    "gone": lambda path: path.unlink(),
    "emptied": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
}


@pytest.mark.parametrize(("loss", "counted"), [*((loss, True) for loss in LOSSES), ("gone", False)])
def test_a_log_that_is_gone_emptied_or_cut_is_one_clear_line_and_the_run_goes_on(
    shards: Path, tmp_path: Path, command: Command, loss: str, counted: bool
) -> None:
    path, metrics = tiny_run(shards, tmp_path, evaluation={"during_every_epochs": 0}), tmp_path / "tiny/metrics.jsonl"
    train(load_run_config(path), stop_after=4)
    assert "metrics.jsonl" not in command("run", path, "--resume", "auto", "--stop-after", 6)[1]
    if not counted:  # a state from before log points were counted
        saved = latest(tmp_path / "tiny" / "checkpoints")
        assert saved is not None
        state = json.loads((saved / "state.json").read_text())
        assert state.pop("log_points") == 6
        (saved / "state.json").write_text(json.dumps(state))
        sealed(saved)
    LOSSES[loss](metrics)
    code, out, err = command("run", path, "--resume", "auto", "--stop-after", 8)
    assert (code, err) == (0, "")
    said = " ".join(out.split())
    expected, found = "6 log points" if counted else "log points", "[23]" if loss == "cut" else "none"
    notes = re.findall(rf"note {metrics}: {expected} before step 6 expected, {found} found; .* resume again", said)
    assert len(notes) == 1
    if loss == "cut":
        assert "expected" not in command("run", path, "--resume", "auto", "--stop-after", 9)[1], "it is said once"
    else:
        assert "The log begins at step 6, what was before it is missing" in said
