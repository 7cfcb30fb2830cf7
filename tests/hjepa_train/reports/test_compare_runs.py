"""Several runs beside each other: every number is the run's own, and what is no run is refused by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from hjepa_shards.errors import InputError
from hjepa_train import compare, load_run_config, train
from hjepa_train.base.metrics_file import append_metrics
from hjepa_train.cli import main
from hjepa_train.reports.text_table import TextTable
from tests.conftest import in_this_process
from tests.hjepa_train.tiny import tiny_run

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def hjepa_train(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Command:
    return in_this_process("hjepa-train", main, monkeypatch, capfd)


def config(**changes: Any) -> dict[str, Any]:
    content: dict[str, Any] = {
        "run": {"name": "any", "folder": "runs"},
        "data": {"root": "shards", "sources": [{"name": "digits", "weight": 0.75, "split": "train", "entry": None}]},
        "backbone": {"vit": {"width": 96, "depth": 4, "heads": 3, "patch": 4}},
        "objective": {"hjepa": {"levels": 1}},
        "training": {"lr": 0.001, "save_every_steps": 100},
    }
    return content | changes


def evaluation(linear: float, bank: int = 100) -> dict[str, Any]:
    row = {"dims": 96, "l2": 1e-3, "knn": 30.04, "knn_centred": 31.0, "knn_whitened": 32.0}
    rows = [{"features": "target", "linear": linear, **row}]
    return {"source": "digits", "split": "test", "bank": bank, "test": 50, "chance": 10.0, "rows": rows}


def run_at(
    folder: Path,
    content: dict[str, Any] | None = None,
    rows: list[dict[str, Any]] | None = None,
    evaluations: list[dict[str, Any]] | None = None,
) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(content or config()))
    for row in rows or [{"step": 0, "loss": 1.0}]:
        append_metrics(folder / "metrics.jsonl", row)
    if evaluations is not None:
        (folder / "evaluation.json").write_text(json.dumps(evaluations))
    return folder


def rows_of(table: TextTable) -> dict[str, tuple[str, ...]]:
    return {row[0]: row[1:] for row in table.rows}


def test_settings_that_differ_are_shown_defaults_included_and_others_not(tmp_path: Path) -> None:
    mixture = [{"name": "digits", "weight": 0.75}, {"name": "photos", "weight": {0: 0.1, 9: 0.25}}]
    one = run_at(tmp_path / "one")
    other = run_at(
        tmp_path / "other",
        config(
            run={"name": "other", "folder": "elsewhere"},
            data={"root": "far", "sources": mixture},
            objective={"hjepa": {"levels": 1, "momentum": 0.99, "anticollapse": "vicreg"}},
            training={"lr": 0.0005, "save_every_steps": 7},
        ),
    )
    _, (settings, *_) = compare([one, other])
    assert settings.columns == ("", "one", "other")
    assert rows_of(settings) == {
        "data.sources": ("digits 0.75", "digits 0.75, photos {0: 0.1, 9: 0.25}"),
        "objective.hjepa.momentum": ("0.996", "0.99"),
        "training.lr": ("0.001", "0.0005"),
    }


def test_another_objective_and_one_of_another_version_are_shown_too(tmp_path: Path) -> None:
    one = run_at(tmp_path / "one")
    other = run_at(tmp_path / "other", config(objective={"mae": {"mask_ratio": 0.6}}))
    third = run_at(tmp_path / "third", config(objective={"later": {"x": 1}}))
    _, (settings, *_) = compare([one, other, third])
    rows = rows_of(settings)
    assert rows["objective.hjepa.levels"] == ("1", "–", "–")
    assert rows["objective.mae.mask_ratio"] == ("–", "0.6", "–")
    assert rows["objective.later.x"] == ("–", "–", "1")
    assert not any(key.startswith("training") for key in rows)


def test_a_run_without_alarms_is_not_shown_as_one_whose_alarms_were_silent(tmp_path: Path) -> None:
    silent = [{"step": step, "loss": 1.0, "sd": 0.5, "rankme": 9.0} for step in range(3)]
    firing = [row | {"alarms": ["features shrink"]} for row in silent]
    without = [{"step": step, "loss": 1.0} for step in range(3)]
    runs = [
        run_at(tmp_path / name, rows=rows)
        for name, rows in (("silent", silent), ("mae", without), ("young", silent[:2]), ("firing", firing))
    ]
    _, (_, training, _) = compare(runs[:3])
    assert rows_of(training)["alarms"] == ("none", "this objective has none", "not judged yet")
    _, (_, training, _) = compare(runs)
    assert rows_of(training)["alarm: features shrink"] == ("no", "not one of its alarms", "no", "steps 0 to 2")


def test_numbers_of_training_are_those_of_each_runs_last_log_point(tmp_path: Path) -> None:
    sources = {"digits": {"count": 9, "share": 0.3, "target": 0.25, "loss": 0.5, "passes": 1.0}}
    one = run_at(
        tmp_path / "one",
        rows=[
            {"step": 0, "position": 64, "loss": 2.0, "rho_l0": 0.5, "images_per_s": 100.0, "data_wait": 0.5},
            {"step": 9, "position": 640, "loss": 1.25, "loss_l1": 0.1, "rho_l0": None, "images_per_s": 300.0}
            | {"data_wait": 0.1, "sources": sources, "alarms": ["features shrink"], "proof": "ab"},
        ],
    )
    other = run_at(tmp_path / "other", rows=[{"step": 4, "position": 3200, "loss": float("nan")}])
    out, (_, training, probes) = compare([one, other])
    rows = rows_of(training)
    assert rows["steps"] == ("10", "5")
    assert rows["images"] == ("640", "3,200")
    assert rows["images/s (median)"] == ("200.0", "–")
    assert rows["time spent waiting for data"] == ("30.00%", "–")
    assert rows["loss"] == ("1.250", "–")
    assert rows["loss, level 1"] == ("0.100", "–")
    assert rows["ρ: loss / loss of predicting the position's mean, level 0"] == ("0.500", "–")
    assert (rows["share of digits"], rows["loss of digits"]) == (("30.00%", "–"), ("0.500", "–"))
    assert rows["alarm: features shrink"] == ("steps 9 to 9", "not one of its alarms")
    assert "None of them was evaluated yet" in probes.note
    facts = json.loads((out / "comparison.json").read_text())
    assert facts["runs"][0]["final"] == {"loss": 1.25, "loss_l1": 0.1, "rho_l0": 0.5}
    assert facts["runs"][0]["alarms"] == {"features shrink": {"first": 9, "last": 9}}
    assert facts["runs"][0]["alarms_at_the_end"] == ["features shrink"]
    assert facts["runs"][0]["order_proof"] == "ab"
    assert facts["runs"][1]["final"] == {"loss": None}
    assert facts["differences"] == {}


def test_probes_are_side_by_side_and_other_images_are_said(tmp_path: Path) -> None:
    runs = [
        run_at(tmp_path / "one", evaluations=[evaluation(45.25)]),
        run_at(tmp_path / "other", evaluations=[evaluation(50.0)]),
        run_at(tmp_path / "never"),
    ]
    _, (_, _, probes) = compare(runs)
    assert probes.title == "digits (test), percent right"
    assert rows_of(probes) == {
        "chance": ("10.0", "10.0", "–"),
        "target, linear": ("45.2", "50.0", "–"),
        "target, k-NN": ("30.0", "30.0", "–"),
        "target, k-NN centred": ("31.0", "31.0", "–"),
        "target, k-NN whitened": ("32.0", "32.0", "–"),
    }
    assert probes.note == "bank 100, test 50"
    run_at(tmp_path / "fewer", evaluations=[evaluation(50.0, bank=10)])
    _, (_, _, probes) = compare([runs[0], tmp_path / "fewer"])
    assert "bank 10, test 50; bank 100, test 50: not the same images" in probes.note


def test_a_mixture_and_a_single_source_are_compared_on_the_command_line(
    shards: Path, tmp_path: Path, hjepa_train: Command
) -> None:
    mixture = train(load_run_config(tiny_run(shards, tmp_path / "a")), stop_after=6)
    alone = tiny_run(shards, tmp_path / "b", data__sources=[{"name": "digits", "weight": 1}])
    train(load_run_config(alone, ["run.name=alone"]), stop_after=4)
    folders = [mixture, tmp_path / "b/alone"]
    code, out, err = hjepa_train("report", *folders, "--out", tmp_path / "out")
    assert (code, err) == (0, "")
    assert "data.sources" in out
    page = (tmp_path / "out/comparison.html").read_text()
    text = (tmp_path / "out/comparison.md").read_text()
    assert "| steps | 6 | 4 |" in text
    assert "| share of photos | 25.00% | – |" in text
    assert "digits 0.75, photos 0.25" in page
    assert page.count('class="curves"') == 13
    assert "<script" not in page
    assert text.startswith("# tiny and alone\n")
    facts = json.loads((tmp_path / "out/comparison.json").read_text())
    assert [run["steps"] for run in facts["runs"]] == [6, 4]


def test_without_out_it_is_beside_the_first_run_and_same_names_become_paths(tmp_path: Path) -> None:
    one, other = run_at(tmp_path / "a/same"), run_at(tmp_path / "b/same")
    out, (_, training, _) = compare([one, other])
    assert out == tmp_path / "a/comparison"
    assert sorted(path.name for path in out.iterdir()) == ["comparison.html", "comparison.json", "comparison.md"]
    assert training.columns == ("", str(one), str(other))


def test_one_run_is_shown_and_its_report_written_again(tmp_path: Path, hjepa_train: Command) -> None:
    folder = run_at(tmp_path / "one", rows=[{"step": 41, "loss": 1.5}], evaluations=[evaluation(45.25)])
    code, out, err = hjepa_train("report", folder)
    assert (code, err) == (0, "")
    assert "42" in out
    assert "45.2" in out
    assert (folder / "report.md").exists()
    assert (folder / "report.html").exists()


def test_what_is_no_run_is_one_line(tmp_path: Path, hjepa_train: Command) -> None:
    one = run_at(tmp_path / "runs/one")
    empty = tmp_path / "empty"
    empty.mkdir()
    silent = run_at(tmp_path / "silent")
    (silent / "metrics.jsonl").write_text("")
    cases: list[tuple[list[Any], str]] = [
        ([one, empty], f"{empty}: the folder of a run expected, no config.yaml found in it; runs are in runs/<name>"),
        ([tmp_path / "runs"], f"no config.yaml found in it; runs in it: {one}"),
        ([tmp_path / "nowhere"], "the folder of a run expected"),
        ([one, silent], "a logged step expected, none found yet"),
        ([one, one], "each run once expected"),
        ([one, "--out", tmp_path / "x"], "several runs to compare expected, one found"),
        ([one, tmp_path / "runs/../runs/one"], "each run once expected"),
    ]
    for arguments, said in cases:
        code, _, err = hjepa_train("report", *arguments)
        assert code == 2
        assert said in " ".join(err.split())
        assert err.count("error:") == 1
    assert not (tmp_path / "runs/comparison").exists()


def test_a_comparison_is_not_written_into_a_run_nor_where_no_folder_can_be(tmp_path: Path) -> None:
    one, other = run_at(tmp_path / "one"), run_at(tmp_path / "other")
    with pytest.raises(InputError, match="choose another --out"):
        compare([one, other], other)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"cannot be made: .*; choose another --out"):
        compare([one, other], tmp_path / "file/x")
