import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from hjepa_shards.errors import InputError
from hjepa_train.base.metrics_file import append_metrics, read_metrics
from hjepa_train.checkpoints.checkpoint_files import save
from hjepa_train.evaluation.linear_knn_probes import ProbeRow
from hjepa_train.reports.run_report import did_it_learn, did_it_run_right, read_run, what_ran, write_report
from hjepa_train.reports.text_table import as_rich

CONFIG = "name: first\nmodel: {depth: 4}\n"


def metrics_row(step: int, **changes: Any) -> dict[str, Any]:
    return {
        "step": step,
        "position": step * 64,
        "loss": 1 / step,
        "loss_l0": 0.9 / step,
        "lr": 1e-3,
        "images_per_s": 300.0 + step,
        "data_wait": 0.02,
        "sources": {
            "photos": {"count": step * 16, "share": 0.2501, "target": 0.25, "loss": 2 / step, "passes": 0.5},
            "digits": {"count": step * 48, "share": 0.7499, "target": 0.75, "loss": 1 / step, "passes": 1.25},
        },
        "rho_l0": 1.2 - step / 100,
        "gap_l0": step / 100,
        "sd": 0.5,
        "rankme": 31.5,
        "rankme_cap": 96,
        "alarms": [],
        "proof": f"{step:032x}",
        **changes,
    }


def probe_row(name: str, **changes: float) -> ProbeRow:
    values = {"linear": 40.0, "knn": 30.0, "knn_centred": 31.0, "knn_whitened": 33.25}
    return ProbeRow(features=name, dims=3072, l2=1e-3, **{**values, **changes})


ROWS = [
    probe_row("raw pixels", linear=99.0),
    probe_row("PCA-30"),
    probe_row("untrained"),
    probe_row("online", knn=12.34),
    probe_row("target"),
]


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "first"
    folder.mkdir()
    (folder / "config.yaml").write_text(CONFIG)
    for step in (10, 20, 30):
        append_metrics(folder / "metrics.jsonl", metrics_row(step))
    evaluation = {"source": "digits", "split": "test", "bank": 1437, "test": 360, "chance": 10.3}
    (folder / "evaluation.json").write_text(json.dumps([{**evaluation, "rows": [asdict(row) for row in ROWS]}]))
    recipe = {"world_size": 1, "threads": 2, "cpu": "Some CPU", "torch": "2.15.0"}
    save(folder / "checkpoints", 30, model={}, optimizer={}, state={"recipe": recipe})
    return folder


def shown(table: Table) -> str:
    console = Console(width=200)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def markdown_rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]


def test_the_report_says_what_ran(run_folder: Path) -> None:
    text = write_report(run_folder).read_text()
    rows = markdown_rows(text)
    assert text.startswith("# first\n")
    assert ["steps, up to the last log point", "31"] in rows
    assert ["images", "1,920"] in rows
    assert ["images/s (median)", "320.0"] in rows
    assert ["time spent waiting for data", "2.00%"] in rows
    assert ["cpu", "Some CPU"] in rows
    assert ["world size", "1"] in rows
    assert f"```yaml\n{CONFIG}```" in text


def test_the_report_says_whether_it_ran_right(run_folder: Path) -> None:
    text = write_report(run_folder).read_text()
    rows = markdown_rows(text)
    assert ["digits", "1,440", "74.99%", "75.00%", "1.25", "0.1000", "0.0333"] in rows
    assert ["photos", "480", "25.01%", "25.00%", "0.50", "0.2000", "0.0667"] in rows
    (rho,) = (row for row in rows if row[0].startswith("ρ"))
    assert rho[0].endswith("level 0")
    assert rho[1:] == ["1.100", "0.900", "ρ ≥ 1"]
    (gap,) = (row for row in rows if row[0].startswith("gap"))
    assert gap[1:3] == ["0.100", "0.300"]
    assert "None fired." in text
    assert "RankMe is at most 96 here." in text
    assert f"Order proof after 1,920 images: {30:032x}" in text


def test_alarms_that_were_not_judged_yet_are_not_called_silent(run_folder: Path) -> None:
    rows = read_metrics(run_folder / "metrics.jsonl")
    for number, row in enumerate(rows):
        row["judged"] = number >= len(rows) - 2
    (run_folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = write_report(run_folder).read_text()
    assert "Not judged yet: that takes 3 log points after warm-up." in text
    assert "None fired" not in text


OBJECTIVES = {
    "mae": ((), "This objective has no alarms: ", "this objective has none"),
    "simclr": (("rankme",), "None fired. Judged for this objective: dimensions collapse; no other alarm.", "none"),
    "hjepa": (("rho_l0", "gap_l0", "sd", "rankme"), "None fired.", "none"),
}


@pytest.mark.parametrize(("kept", "note", "at_the_end"), OBJECTIVES.values(), ids=OBJECTIVES)
def test_an_objective_without_alarms_is_not_said_to_have_silent_ones(
    tmp_path: Path, kept: tuple[str, ...], note: str, at_the_end: str
) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    for step in range(1, 4):
        row = metrics_row(step)
        signals = {"rho_l0", "gap_l0", "sd", "rankme"} - set(kept)
        append_metrics(tmp_path / "metrics.jsonl", {key: value for key, value in row.items() if key not in signals})
    said = write_report(tmp_path).read_text().partition("**Alarms**")[2].partition("##")[0].strip()
    assert said.startswith(note)
    assert ("None fired" in said) == bool(kept)
    page = (tmp_path / "report.html").read_text()
    assert f"<dt>alarms at the end</dt><dd>{at_the_end}</dd>" in page
    assert note in page
    assert note.split(".")[0] in shown(as_rich(did_it_run_right(read_run(tmp_path))[2]))


def test_a_log_whose_beginning_is_gone_says_where_it_begins(run_folder: Path) -> None:
    words = "The log begins at step 10, what was before it is missing: start is that step's."
    assert words in write_report(run_folder).read_text()
    rows = read_metrics(run_folder / "metrics.jsonl")
    (run_folder / "metrics.jsonl").write_text(
        "".join(json.dumps(row | {"step": row["step"] - 10}) + "\n" for row in rows)
    )
    assert "The log begins" not in write_report(run_folder).read_text()


def test_the_report_leaves_no_probed_row_out(run_folder: Path) -> None:
    text = write_report(run_folder).read_text()
    rows = markdown_rows(text)
    names = [row[0] for row in rows[rows.index(next(row for row in rows if row[0] == "chance")) :]]
    assert names == ["chance", "raw pixels", "PCA-30", "untrained", "online", "target"]
    assert ["chance", "–", "10.3", "10.3", "10.3", "10.3", "–"] in rows
    assert ["raw pixels", "3,072", "99.0", "30.0", "31.0", "33.2", "1e-03"] in rows
    assert ["online", "3,072", "40.0", "12.3", "31.0", "33.2", "1e-03"] in rows
    assert "Bank 1,437, test 360; " in text


def test_the_terminal_shows_what_the_report_says(run_folder: Path) -> None:
    text = write_report(run_folder).read_text()
    run = read_run(run_folder)
    for table in (what_ran(run), *did_it_run_right(run), *did_it_learn(run)):
        on_screen = shown(as_rich(table))
        for row in table.rows:
            assert "| " + " | ".join(row) + " |" in text
            assert all(cell in on_screen for cell in row)
        assert table.note in text


def test_alarms_are_reported_with_the_steps_they_were_on_at(run_folder: Path) -> None:
    for step, fired in ((40, ["features shrink"]), (50, ["features shrink", "dimensions collapse"]), (60, [])):
        append_metrics(run_folder / "metrics.jsonl", metrics_row(step, alarms=fired))
    text = write_report(run_folder).read_text()
    assert ["features shrink", "40", "50", "2 of 6"] in markdown_rows(text)
    assert ["dimensions collapse", "50", "50", "1 of 6"] in markdown_rows(text)
    assert "None fired" not in text


def test_every_level_has_its_signals(run_folder: Path) -> None:
    append_metrics(run_folder / "metrics.jsonl", metrics_row(40, rho_l1=0.5, gap_l12=0.25))
    rows = markdown_rows(write_report(run_folder).read_text())
    assert [row[1:3] for row in rows if row[0].endswith("level 1")] == [["0.500", "0.500"]]
    assert [row[1:3] for row in rows if row[0].endswith("level 12")] == [["0.250", "0.250"]]


def test_start_and_end_are_the_first_and_last_values_logged(run_folder: Path) -> None:
    append_metrics(run_folder / "metrics.jsonl", metrics_row(40, rho_l0=float("nan")))
    rows = markdown_rows(write_report(run_folder).read_text())
    assert [row[1:3] for row in rows if row[0].startswith("ρ")] == [["1.100", "0.900"]]


def test_a_run_that_still_trains_has_a_report(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text(CONFIG)
    append_metrics(tmp_path / "metrics.jsonl", {"step": 1, "loss": 0.5})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "lo')
    text = write_report(tmp_path).read_text()
    assert "Not evaluated yet" in text
    assert ["steps, up to the last log point", "2"] in markdown_rows(text)


def test_names_with_markup_and_bars_are_shown_as_they_are(run_folder: Path) -> None:
    source = {"count": 1, "share": 1.0, "target": 1.0, "passes": 0.1, "loss": None}
    append_metrics(run_folder / "metrics.jsonl", metrics_row(40, sources={"a|b [red]": source}))
    assert "| a\\|b [red] | 1 |" in write_report(run_folder).read_text()
    assert "a|b [red]" in shown(as_rich(did_it_run_right(read_run(run_folder))[0]))


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config.yaml found"):
        write_report(tmp_path)
    (tmp_path / "config.yaml").write_text(CONFIG)
    with pytest.raises(InputError, match=r"metrics.jsonl: no such file"):
        write_report(tmp_path)
    (tmp_path / "metrics.jsonl").write_text("")
    with pytest.raises(InputError, match="none found yet"):
        write_report(tmp_path)
    assert not (tmp_path / "report.md").exists()


@pytest.mark.parametrize("content", ["{", "{}", '[{"source": "digits"}]', "[1]"])
def test_a_broken_evaluation_is_refused(run_folder: Path, content: str) -> None:
    (run_folder / "evaluation.json").write_text(content)
    with pytest.raises(InputError, match=r"evaluation.json: .* evaluate the run again"):
        write_report(run_folder)
