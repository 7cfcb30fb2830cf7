"""report.html: the tables of report.md, curves and pictures in one file that asks for nothing, whatever the run."""

import html
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from hjepa_train import load_run_config, train, write_report
from hjepa_train.base.metrics_file import append_metrics
from hjepa_train.reports.image_panels import save_pictures
from hjepa_train.reports.run_report import did_it_learn, did_it_run_right, read_run, what_ran
from tests.hjepa_train.tiny import tiny_run

HOSTILE = '</pre><script>alert(1)</script><img src="http://x/y">\u202e'


class Cells(HTMLParser):
    """The rows of a page's tables, and whatever could ask for something from elsewhere."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.links: list[str] = []
        self.tags: set[str] = set()
        self._cell: list[str] | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [str(value) for name, value in attrs if name in ("src", "href", "srcset", "style") and value]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self._cell = []

    def handle_data(self, data: str) -> None:
        if self._cell is not None:
            self._cell.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th") and self._cell is not None:
            self.rows[-1].append("".join(self._cell))
            self._cell = None


def folder_of(tmp_path: Path, rows: list[dict[str, Any]], config: str = "run: {name: x}\n") -> Path:
    (tmp_path / "config.yaml").write_text(config)
    for row in rows:
        append_metrics(tmp_path / "metrics.jsonl", row)
    return tmp_path


def page_of(folder: Path) -> tuple[str, Cells]:
    write_report(folder)
    page = (folder / "report.html").read_text(encoding="utf-8")
    return page, Cells(page)


@pytest.mark.parametrize(
    "objective",
    [
        {"hjepa": {"levels": 2, "momentum": 0.8, "predictor": {"width": 16, "depth": 1, "heads": 2}}},
        {"mae": {"decoder": {"width": 16, "depth": 1, "heads": 2}}},
    ],
)
def test_a_run_has_a_page_with_its_tables_curves_and_pictures(
    shards: Path, tmp_path: Path, objective: dict[str, Any]
) -> None:
    path = tiny_run(shards, tmp_path, logging__images_every=10)
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | {"objective": objective}))
    folder = train(load_run_config(path), stop_after=6)
    page, cells = page_of(folder)
    run = read_run(folder)
    for table in (what_ran(run), *did_it_run_right(run), *did_it_learn(run)):
        assert all(list(row) in cells.rows for row in table.rows)
        assert html.escape(table.note, quote=False).replace("'", "&#39;") in page
    assert ('"ρ"' in page) == ("hjepa" in objective)
    assert page.count('class="curves"') == (11 if "hjepa" in objective else 7)
    assert page.count('class="strip"') == (5 if "hjepa" in objective else 4)
    assert all(link.startswith(("#", "data:image/png;base64,")) for link in cells.links)
    assert "script" not in cells.tags
    assert "every_steps: 1" in page


def test_a_run_of_one_log_point_without_anything_has_a_page(tmp_path: Path) -> None:
    page, cells = page_of(folder_of(tmp_path, [{"step": 0, "loss": float("nan"), "sd": None}]))
    assert 'class="curves"' not in page
    assert ["steps, up to the last log point", "1"] in cells.rows
    assert "Pictures" not in page


def test_alarms_that_are_on_at_the_end_are_seen_first(tmp_path: Path) -> None:
    rows = [{"step": step, "loss": 1.0, "sd": 1.0, "alarms": ["features shrink"]} for step in range(3)]
    page, cells = page_of(folder_of(tmp_path, rows))
    assert '<dd class="bad">features shrink</dd>' in page
    assert page.count('class="band"') == 2
    assert ["features shrink", "0", "2", "3 of 3"] in cells.rows


def test_the_last_pictures_are_in_the_page_and_broken_ones_are_said(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, [{"step": 0, "loss": 1.0}])
    save_pictures(folder / "pictures.png", {"images": torch.rand(2, 3, 16, 16), HOSTILE: torch.rand(2, 3, 16, 16)}, 700)
    page, cells = page_of(folder)
    assert "Drawn at step 700" in page
    assert sum(link.startswith("data:image/png") for link in cells.links) == 2
    assert "<script" not in page
    (folder / "pictures.png").write_bytes(b"x")
    assert "pictures.png cannot be read" in page_of(folder)[0]


def test_hostile_names_and_configurations_stay_text(tmp_path: Path) -> None:
    sources = {HOSTILE: {"count": 1, "share": 1.0, "target": 1.0, "passes": 0.1, "loss": 0.5}}
    rows = [{"step": step, "loss": 1.0, "sources": sources, "alarms": [HOSTILE]} for step in range(2)]
    page, cells = page_of(folder_of(tmp_path, rows, f"name: {HOSTILE!r}\nlong: {'x' * 900}\n"))
    assert "<script" not in page
    assert "\u202e" not in page
    assert not any(link.startswith("http") for link in cells.links)
    assert cells.tags.isdisjoint({"script", "iframe", "object", "link"})
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")


def test_a_page_does_not_grow_with_the_length_of_a_run(tmp_path: Path) -> None:
    rows = [{"step": step, "loss": 1.0 + step % 7, "sd": 1.0} for step in range(20_000)]
    (tmp_path / "config.yaml").write_text("run: {name: x}\n")
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    page, _ = page_of(tmp_path)
    assert len(page) < 60_000
