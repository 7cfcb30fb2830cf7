"""What a run's curves show: every signal that was logged, alarms where they were on, nothing that was never there."""

import re
from typing import Any

import pytest

from hjepa_train.reports.metric_charts import Chart, compared_charts, run_charts


def row(step: int, **changes: Any) -> dict[str, Any]:
    return {
        "step": step,
        "position": 64 * (step + 1),
        "loss": 2.0 - step / 100,
        "loss_l0": 1.0,
        "loss_l1": 0.5,
        "rho_l0": 0.9,
        "rho_l1": 0.8,
        "gap_l0": 0.2,
        "sd": 0.5,
        "rankme": 40.0,
        "grad_norm": 1.0,
        "lr": 1e-3,
        "images_per_s": 300.0,
        "data_wait": 0.25,
        "sources": {
            "b": {"share": 0.26, "target": 0.25, "loss": 0.4},
            "a": {"share": 0.74, "target": 0.75, "loss": 0.6},
        },
        "alarms": [],
        **changes,
    }


def by_title(rows: list[dict[str, Any]]) -> dict[str, Chart]:
    return {chart.title: chart for charts in run_charts(rows).values() for chart in charts}


def test_every_signal_that_was_logged_is_a_chart() -> None:
    charts = by_title([row(0), row(10)])
    assert {
        title: [name for name, colour, _ in chart.key if colour is not None] for title, chart in charts.items()
    } == {
        "loss": ["loss", "level 0", "level 1"],
        "ρ": ["level 0", "level 1"],
        "gap": ["level 0"],
        "deviation between images": ["deviation between images"],
        "RankMe": ["RankMe"],
        "gradient norm": ["gradient norm"],
        "share of the images so far": ["a, share", "b, share"],
        "loss of each source": ["a", "b"],
        "images/s": ["images/s"],
        "time spent waiting for data": ["time spent waiting for data"],
        "learning rate": ["learning rate"],
    }
    assert charts["loss"].key[0][2] == "1.9"
    assert charts["share of the images so far"].key[0][2] == "74%"
    assert charts["share of the images so far"].drawing.count("dashed") == 2


def test_every_chart_names_its_axes() -> None:
    def names(chart: Chart) -> list[str]:
        return re.findall(r'class="name"[^>]*>([^<]*)<', chart.drawing)

    found = {title: names(chart) for title, chart in by_title([row(0), row(10)]).items()}
    assert {x for _, x in found.values()} == {"step"}
    assert found["loss"][0] == found["loss of each source"][0] == "loss"
    assert found["images/s"][0] == "images/s"
    assert found["RankMe"][0] == "dimensions in use"
    assert all(y for y, _ in found.values())
    compared = [names(chart) for chart in compared_charts({"a": [row(0), row(10)], "b": [row(0), row(10)]})]
    assert {x for _, x in compared} == {"images"}
    assert {y for y, _ in compared} >= {"loss", "images/s", "norm"}


def test_what_was_never_logged_is_no_chart() -> None:
    charts = by_title([{"step": 0, "loss": 1.0, "sources": {"a": {"loss": 1.0}}, "rho_l0": None}, {"step": 10}])
    assert set(charts) == {"loss", "loss of each source"}
    assert by_title([{"step": 0}]) == {}


def test_null_and_not_finite_values_are_gaps() -> None:
    losses = [1.0, None, float("nan"), 3.0, 2.0]
    chart = by_title([row(10 * number, loss=loss) for number, loss in enumerate(losses)])["loss"]
    (path,) = re.findall(r'class="s0" d="([^"]*)"', chart.drawing)
    assert path.count("M") == 2
    assert path.count("L") == 1
    assert dict((name, value) for name, _, value in chart.key)["loss"] == "2"


@pytest.mark.parametrize(
    ("alarm", "charts"),
    [
        ("predicts the position, not the image", {"loss", "ρ", "gap"}),
        ("features shrink", {"loss", "deviation between images"}),
        ("dimensions collapse", {"loss", "RankMe"}),
        ("something that a later version says", {"loss"}),
    ],
)
def test_alarms_are_bands_behind_what_they_were_judged_on(alarm: str, charts: set[str]) -> None:
    rows = [row(10 * number, alarms=[alarm] if number in (2, 3, 6) else []) for number in range(9)]
    found = by_title(rows)
    marked = {
        title: re.findall(r'class="band" x="([\d.]+)%" width="([\d.]+)%"', c.drawing) for title, c in found.items()
    }
    assert {title for title, bands in marked.items() if bands} == charts
    # of 80 steps: 20 to 40, 60 to 70; the axis takes 87% of the width
    expected = [(13 + 87 * 0.25, 87 * 0.25), (13 + 87 * 0.75, 87 * 0.125)]
    for bands in (marked[title] for title in charts):
        assert [tuple(map(float, band)) for band in bands] == [pytest.approx(pair, abs=0.01) for pair in expected]
    assert (f"alarm: {alarm}", None, "") in found["loss"].key


def test_limits_of_the_start_follow_the_first_value() -> None:
    charts = by_title([row(0, sd=None, rankme=50.0), row(10, sd=0.8, rankme=10.0)])
    assert ("alarm at 0.16", None, "") in charts["deviation between images"].key
    assert ("alarm at 35", None, "") in charts["RankMe"].key
    assert ("alarm at 1", None, "") in charts["ρ"].key


def test_many_sources_are_cut_and_counted() -> None:
    sources = {f"s{number:02}": {"share": 0.01, "target": 0.01, "loss": 1.0} for number in range(40)}
    chart = by_title([row(0, sources=sources), row(1, sources=sources)])["loss of each source"]
    assert chart.note == "and 24 more lines"
    assert len(chart.key) == 16


def test_several_runs_are_lines_over_the_images_seen() -> None:
    runs = {"mixture": [row(0), row(10)], "alone": [{"step": 0, "position": 32, "loss": 3.0}, {"step": 5, "loss": 1.0}]}
    charts = {chart.title: chart for chart in compared_charts(runs)}
    assert [name for name, *_ in charts["loss"].key] == ["mixture", "alone"]
    assert [name for name, colour, _ in charts["ρ, level 0"].key if colour is not None] == ["mixture"]
    assert {"loss, level 0", "loss, level 1", "ρ, level 1", "gap, level 0", "images/s"} <= set(charts)
    assert ">704</text>" in charts["loss"].drawing  # 64 images a step, 11 steps
