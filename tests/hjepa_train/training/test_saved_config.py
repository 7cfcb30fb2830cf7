"""Runs that an earlier tree saved: every key that they lack has the value that the code then used."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from hjepa_shards.config import Strict
from hjepa_shards.errors import ResumeMismatch
from hjepa_train import load_run_config, train
from hjepa_train.base import former_defaults
from hjepa_train.base.metrics_file import read_metrics
from hjepa_train.checkpoints.checkpoint_files import latest, read_state
from hjepa_train.objectives.joint.hjepa import HJepa, HJepaConfig
from hjepa_train.objectives.registry import OBJECTIVES
from hjepa_train.training.optimizer import OptimConfig
from hjepa_train.training.saved_config import load_saved_config, resolved
from tests.golden.make_run import CONFIG, FOLDER, STOPPED_AFTER, defaults, numbers, written


@pytest.fixture
def begun(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the golden run's folder, in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shards").symlink_to(shards)
    return Path(shutil.copytree(FOLDER, tmp_path / "runs" / "run_v1"))


def whole() -> list[tuple[int, float, float, str]]:
    return [tuple(row) for row in json.loads((FOLDER / "whole.json").read_text())]


def resume(folder: Path, **changes: Any) -> list[tuple[int, float, float, str]]:
    """accept_content: other versions of Pillow write other bytes for the same pixels."""
    train(load_run_config(written(folder.parents[1])), resume="auto", accept_content=True, **changes)
    return numbers(folder)


def assert_as_then(found: list[tuple[int, float, float, str]]) -> None:
    for (step, loss, norm, proof), (then_step, then_loss, then_norm, then_proof) in zip(found, whole(), strict=True):
        assert (step, proof) == (then_step, then_proof)
        assert (loss, norm) == pytest.approx((then_loss, then_norm), rel=1e-5)


def test_a_run_that_an_earlier_tree_saved_continues_with_the_losses_that_it_had_there(begun: Path) -> None:
    assert_as_then(resume(begun))


def test_no_default_changes_and_no_key_comes_without_what_a_saved_run_means_by_its_absence() -> None:
    """A run of the golden tree lacks a key: it is the golden default, or what the table says of a key that is newer."""
    then, now, table = json.loads((FOLDER / "defaults.json").read_text()), defaults(), former_defaults.AS_IT_WAS
    assert then["training.weight_decay"] is None
    then["training.weight_decay"] = OptimConfig(weight_decay=None).weight_decay  # pyright: ignore[reportArgumentType] its name
    assert {key: value for key, value in (now | table).items() if key in then} == then
    known = ("data.", "training.", "backbone.vit.", "objective.hjepa.", "objective.mae.", "objective.simclr.")
    came = [key for key in now if key.startswith(known) and key not in then and key not in table]
    assert came == [], "say in former_defaults.py what the code did before it had these keys"


class _LaterConfig(HJepaConfig):
    """H-JEPA after a change of a default and with a key that came."""

    anticollapse: Any = "none"
    loss_scale: float = 2.0


class _Later(HJepa):  # pyright: ignore[reportGeneralTypeIssues] final for the product
    def __init__(self, backbone: Any, config: _LaterConfig, **facts: Any) -> None:
        super().__init__(backbone, config, **facts)
        self._scale = config.loss_scale

    def forward(self, batch: Any) -> Any:
        loss, metrics = super().forward(batch)
        return loss * self._scale, metrics


@pytest.fixture
def later_version(monkeypatch: pytest.MonkeyPatch) -> type[Strict]:
    monkeypatch.setitem(OBJECTIVES, "hjepa", (_LaterConfig, _Later))
    monkeypatch.setitem(former_defaults.AS_IT_WAS, "objective.hjepa.anticollapse", "vicreg")
    monkeypatch.setitem(former_defaults.AS_IT_WAS, "objective.hjepa.loss_scale", 1.0)
    return _LaterConfig


@pytest.mark.usefixtures("later_version")
def test_a_default_that_changed_and_a_key_that_came_do_not_reach_a_saved_run(
    begun: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    resume(begun, stop_after=STOPPED_AFTER + 2)
    said = " ".join(capsys.readouterr().out.split())
    assert "objective.hjepa.anticollapse: vicreg, as the code had it when this run began" in said
    assert "objective.hjepa.loss_scale: 1.0, as the code had it when this run began" in said
    saved = latest(begun / "checkpoints")
    assert saved is not None
    for config in (read_state(saved)["config"], load_saved_config(begun).model_dump()):
        assert config["objective"]["hjepa"]["anticollapse"] == "vicreg"
        assert config["objective"]["hjepa"]["loss_scale"] == 1.0
    assert_as_then(resume(begun))  # from a checkpoint that has the keys


@pytest.mark.usefixtures("later_version")
def test_a_new_run_has_the_new_defaults_and_a_saved_one_refuses_them_where_they_are_written(begun: Path) -> None:
    path = written(begun.parents[1])
    with pytest.raises(ResumeMismatch, match=r"objective.hjepa.loss_scale: 1.0 saved, 2.0 here; restore"):
        train(load_run_config(path, ["objective.hjepa.loss_scale=2"]), resume="auto", accept_content=True)
    new = train(load_run_config(path, ["run.name=new"]), stop_after=1)
    config = load_saved_config(new)
    assert (config.objective["hjepa"]["anticollapse"], config.objective["hjepa"]["loss_scale"]) == ("none", 2.0)
    assert read_metrics(new / "metrics.jsonl")[0]["loss"] != pytest.approx(whole()[0][1], rel=1e-3)


@pytest.mark.usefixtures("later_version")
def test_the_encoder_of_a_saved_run_is_built_as_it_was(begun: Path) -> None:
    """`eval` and `export` read config.yaml, which an earlier tree wrote without the keys left to their defaults."""
    (begun / "config.yaml").write_text(json.dumps(CONFIG | {"data": CONFIG["data"] | {"root": "shards"}}))
    config = load_saved_config(begun)
    assert config == resolved(config, "config.yaml")
    assert (config.objective["hjepa"]["anticollapse"], config.objective["hjepa"]["loss_scale"]) == ("vicreg", 1.0)
    assert config.data.augmentation.views == 1
