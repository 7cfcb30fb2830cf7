"""A page about runs, one HTML file: sections of curves, tables and pictures (html_page.py, report.html)."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import final

from hjepa_shards.base.atomic_files import write_atomically
from hjepa_shards.reports.html_page import render_page
from hjepa_shards.reports.inline_images import Picture
from hjepa_train.reports.metric_charts import Chart
from hjepa_train.reports.text_table import TextTable


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Section:
    """A part of the page; what is empty is not shown."""

    heading: str
    note: str = ""
    charts: Sequence[Chart] = ()
    tables: Sequence[TextTable] = ()
    strips: Sequence[Picture] = ()
    """each as wide as the page"""
    text: Sequence[str] = ()
    """lines, as they are"""


def write_page(
    path: Path, *, title: str, subtitle: str, numbers: Sequence[tuple[str, str, bool]], sections: Sequence[Section]
) -> None:
    """Write the page to `path`.  numbers: (name, value, whether it is a bad sign), shown large."""
    template = resources.files("hjepa_train.reports").joinpath("report.html").read_text(encoding="utf-8")
    page = {"title": title, "subtitle": subtitle, "numbers": numbers, "sections": sections}
    write_atomically(path, render_page(template, page).encode())
