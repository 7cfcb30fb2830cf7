"""What can be probed is named before anything is read; what is finished is not probed again, whatever was killed.

The rows themselves: test_run.py and the tests of each probe.
"""

import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
import yaml

from hjepa_shards import BuildOptions, build
from hjepa_shards.errors import InputError
from hjepa_train import evaluate, load_run_config, train
from hjepa_train.base.device import devices_here
from hjepa_train.cli import main
from hjepa_train.data.labelled_images import Labelled, held_out_split
from hjepa_train.evaluation import attentive_probe
from hjepa_train.jobs.evaluate import PROBES, USUAL, evaluate_all, probes_named
from tests.conftest import Command, in_this_process
from tests.hjepa_shards.loader.test_loader import mix
from tests.hjepa_train.tiny import tiny_run
from tests.processes import forked

NAMES = ["raw pixels", "PCA-30", "untrained", "online", "target"]


@pytest.fixture(scope="module")
def root(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two labelled sources."""
    root = Path(shutil.copytree(shards, tmp_path_factory.mktemp("root") / "shards"))
    build("scattered", raw=None, out=root, splits=("test",), options=BuildOptions(limit=60))
    return root


@pytest.fixture(scope="module")
def trained(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(load_run_config(tiny_run(root, tmp_path_factory.mktemp("run"))), stop_after=5)


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """One of its own, not evaluated yet."""
    return Path(shutil.copytree(trained, tmp_path / "tiny"))


def test_the_split_to_test_on_is_test_or_the_requested_one(shards: Path) -> None:
    assert held_out_split(mix(shards).config, "digits", None) == "test"
    assert held_out_split(mix(shards).config, "digits", "test") == "test"


@pytest.mark.parametrize(
    ("source", "split", "said"),
    [
        ("digit", None, r"digit: a built source expected, none found; did you mean digits\?"),
        ("coco", None, "build it with `hjepa-shards build coco --raw DIR`"),
        ("photos", None, "another, test or val, to test it on expected, train found"),
        ("digits", "train", "another, train, to test it on expected"),
        ("digits", "val", "another, val, to test it on expected, test, train found"),
    ],
)
def test_what_cannot_be_probed_is_refused_in_one_line(shards: Path, source: str, split: str | None, said: str) -> None:
    with pytest.raises(InputError, match=said):
        held_out_split(mix(shards).config, source, split)


def test_probes_are_named_with_commas() -> None:
    assert probes_named("knn, linear") == ("linear", "knn")
    assert probes_named("attentive,sgd,ridge,knn,linear") == PROBES
    for wrong, found in (("knn,cosine", "cosine"), (",", "none")):
        with pytest.raises(InputError, match=f"--probe {wrong}: some of linear, .* expected, {found} found"):
            probes_named(wrong)


def test_every_probe_has_its_column_and_only_encoders_have_tokens(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attentive_probe, "LEAST_STEPS", 50)
    rows = {row["features"]: row for row in evaluate(run, probes=PROBES, bank=100)["rows"]}
    assert list(rows) == NAMES
    percent = {"linear", "knn", "knn_centred", "knn_whitened", "ridge", "sgd", "sgd_last4", "attentive"}
    for name, row in rows.items():
        expected = percent if name in ("untrained", "online", "target") else percent - {"sgd_last4", "attentive"}
        assert set(row) & percent == expected
        assert all(5 < row[key] <= 100 for key in expected), row
    assert rows["raw pixels"]["dims"] == 3 * 16 * 16
    assert rows["online"]["dims"] == 24
    assert rows["raw pixels"]["sgd"] > 60
    assert rows["raw pixels"]["ridge"] > 60
    text = (run / "report.md").read_text()
    assert (
        "| features | dims | linear | k-NN | k-NN centred | k-NN whitened | ridge | SGD | SGD last 4 | attent" in text
    )


def test_another_probe_joins_what_is_there_and_nothing_is_probed_twice(run: Path) -> None:
    said: list[str] = []
    first = evaluate(run, probes=("knn",), say=said.append)
    assert [set(row) & {"linear", "knn", "ridge"} for row in first["rows"]] == [{"knn"}] * 5
    both = evaluate(run, probes=("knn", "ridge"), say=said.append)
    assert said.count("probing online (knn)") == said.count("probing online (ridge)") == 1
    assert said.count("known already: online (knn)") == 1
    assert [row["knn"] for row in both["rows"]] == [row["knn"] for row in first["rows"]]
    said.clear()
    third = evaluate(run, probes=("knn", "ridge"), say=said.append)
    assert third == both == json.loads((run / "evaluation.json").read_bytes())[0]
    assert said == [f"known already: {name} (knn, ridge)" for name in NAMES]


@pytest.mark.parametrize(
    ("change", "again"),
    [({"bank": 60}, NAMES), ({"crop_share": 0.8}, NAMES), ({"which": "step-00000003"}, ["online", "target"])],
)
def test_other_settings_or_weights_are_probed_again(
    root: Path, tmp_path: Path, change: dict[str, Any], again: list[str]
) -> None:
    """Pixels and the untrained encoder are those of any checkpoint."""
    config = load_run_config(tiny_run(root, tmp_path))
    train(config, stop_after=3)
    run = train(config, resume="auto", stop_after=5)
    evaluate(run, probes=("knn",))
    said: list[str] = []
    evaluate(run, probes=("knn",), say=said.append, **change)
    assert [line for line in said if line.startswith("probing")] == [f"probing {name} (knn)" for name in again]


def test_an_evaluation_killed_with_kill_9_continues_after_its_last_finished_probe(run: Path, tmp_path: Path) -> None:
    whole = Path(shutil.copytree(run, tmp_path / "whole" / "tiny"))
    probes = ("knn", "ridge", "sgd")
    expected = evaluate(whole, probes=probes, bank=60)
    parts = run / "evaluated.jsonl"
    words = ("hjepa-train", "eval", run, "--probe", ",".join(probes), "--bank", "60")
    with forked(*words, said=tmp_path / "said") as process:
        while process.poll() is None and not (parts.exists() and len(parts.read_text().splitlines()) >= 7):
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert not (run / "evaluation.json").exists()
    done = len(parts.read_text().splitlines()) - 1  # one is chance
    assert 6 <= done < 5 * len(probes)
    said: list[str] = []
    assert evaluate(run, probes=probes, bank=60, say=said.append) == expected

    def named(how: str) -> int:
        return sum(len(line.partition("(")[2].split(", ")) for line in said if line.startswith(how))

    assert named("known already") == done
    assert named("probing") == 5 * len(probes) - done


def test_a_run_of_another_machine_is_evaluated_on_this_ones_device(run: Path) -> None:
    absent = next(name for name in ("mps", "cuda") if name not in devices_here())
    config = run / "config.yaml"
    content = yaml.safe_load(config.read_text())
    content["training"]["device"] = absent
    config.write_text(yaml.safe_dump(content))
    assert {row["features"] for row in evaluate(run, probes=("ridge",))["rows"]} >= {"online", "target"}


def test_several_sources_are_one_table_and_all_are_looked_for_first(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    command: Command = in_this_process("hjepa-train", main, monkeypatch, capfd)
    code, _, said = command("eval", run, "--source", "digits", "--source", "photos", "--bank", 60, "--probe", "knn")
    assert code == 2
    assert "photos" in said
    assert not (run / "evaluated.jsonl").exists()
    sources = ("--source", "digits", "--source", "scattered")
    code, out, _ = command("eval", run, *sources, "--bank", 60, "--test", 40, "--probe", "knn,ridge")
    assert code == 0
    assert out.count("k-NN whitened") == 1
    results = json.loads((run / "evaluation.json").read_bytes())
    assert [one["source"] for one in results] == ["digits", "scattered"]
    for one in results:
        [line] = [line for line in out.splitlines() if f"{one['source']} (test)" in line and " target " in line]
        assert f"{one['rows'][-1]['ridge']:.1f}" in line
    assert evaluate_all(run, [], probes=("knn",), bank=60, test=40)[0]["source"] == "digits"


def test_wrong_probes_and_checkpoints_are_one_line_and_exit_code_2(
    run: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    command: Command = in_this_process("hjepa-train", main, monkeypatch, capfd)
    for arguments, expected in (
        (("--probe", "knn,svm"), "svm found"),
        (("--checkpoint", "best"), "a checkpoint probed for training.keep_best expected, none found"),
        (("--checkpoint", "step-00000009"), "here: step-00000005"),
    ):
        for name in ("eval", "export") if arguments[0] == "--checkpoint" else ("eval",):
            code, _, said = command(name, run, *arguments, *(("--to", "torch") if name == "export" else ()))
            assert code == 2
            assert said.count("\n") == 1
            assert expected in said


@pytest.mark.parametrize(
    ("fails", "said"),
    [
        (
            lambda *_: torch.linalg.cholesky(-torch.eye(2)),
            "features whose product can be inverted expected, a singular",
        ),
        (
            lambda *_: scipy.linalg.eigh(np.full((2, 2), 1), -np.eye(2)),
            "features whose product can be inverted expecte",
        ),
        (lambda *_: torch.empty(1 << 48), "the memory of this machine or of its device is full; set --bank and --test"),
        (
            lambda *_: np.empty(1 << 48),
            "the memory of this machine or of its device is full; set --bank and --test low",
        ),
    ],
)
def test_a_full_memory_and_a_singular_matrix_are_one_line_and_exit_code_2(
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    fails: Callable[..., object],
    said: str,
) -> None:
    command: Command = in_this_process("hjepa-train", main, monkeypatch, capfd)
    monkeypatch.setattr("hjepa_train.jobs.evaluate.ridge_probe", fails)
    code, _, err = command("eval", run, "--probe", "ridge")
    assert code == 2
    assert err.startswith(f"error: raw pixels: ridge: {said}")
    assert err.count("\n") == 1


def test_tokens_that_are_not_kept_are_read_again_and_give_the_same(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hjepa_train.evaluation.attentive_probe.LEAST_STEPS", 20)
    kept = evaluate(run, probes=("attentive",), bank=60, test=40)["rows"][-1]
    (run / "evaluated.jsonl").unlink()
    monkeypatch.setattr("hjepa_train.evaluation.frozen_features._MOST_TOKEN_BYTES", 1000)
    read, at = [], Labelled.at
    monkeypatch.setattr(Labelled, "at", lambda self, index: read.append(len(index)) or at(self, index))
    again = evaluate(run, probes=("attentive",), bank=60, test=40)["rows"][-1]
    assert sum(read) > 3 * 20 * 54
    assert again["attentive"] == pytest.approx(kept["attentive"], abs=2.6), "tokens were kept in half precision"


def test_the_usual_probes_are_the_cheap_ones() -> None:
    assert USUAL == ("linear", "knn", "ridge")
