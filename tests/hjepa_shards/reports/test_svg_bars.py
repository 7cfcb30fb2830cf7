"""Bars: as long as their numbers say, and no text can be more than text."""

from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from hjepa_shards.reports import svg_bars

HOSTILE = ["<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "' onmouseover='x", "a & b", "]]>", "</svg>"]


def drawn(svg: str) -> list[tuple[float, float, float, str]]:
    """(x, width, height, title) of every bar."""
    root = ElementTree.fromstring(svg)
    return [
        (
            float(rect.get("x", "0").rstrip("%")),
            float(rect.get("width", "0").rstrip("%")),
            float(rect.get("height", "0")),
            (rect.findtext("title") or ""),
        )
        for rect in root.iter("rect")
        if rect.get("class") not in ("axis", "track")
    ]


def test_columns_are_as_high_as_their_counts_and_as_wide_as_the_chart() -> None:
    bars = drawn(svg_bars.columns([10, 0, 40, 20], ["a", "b", "c", "d"], "label", {0: "left", 4: "right"}))
    assert [title.split(":")[0] for *_, title in bars] == ["a", "c", "d"]
    heights = [height for _, _, height, _ in bars]
    assert heights[0] / heights[1] == pytest.approx(10 / 40, abs=0.01)
    assert heights[2] / heights[1] == pytest.approx(20 / 40, abs=0.01)
    assert bars[1][0] == pytest.approx(50, abs=2)
    assert "40 (57.1%)" in bars[1][3]


@pytest.mark.parametrize(
    "values",
    [
        [1, 2, 3],
        [7],
        [256] * 10,
        [1, 10**9],
        [0, 5, 5],
        [0.5, 25.6, 3],
        list(range(1, 5000)),
        [65535, 1],
        [100, 131],
        [100, 132],
    ],
)
def test_a_histogram_holds_every_value_once(values: list[Any]) -> None:
    bars = drawn(svg_bars.histogram(np.array(values), "label", lambda value: f"{value:g}"))
    counted = sum(int(title.rpartition(":")[2].split()[0].replace(",", "")) for *_, title in bars)
    assert counted == len(values)
    assert all(0 <= x <= 100 and x + width <= 100.001 for x, width, _, _ in bars)


def test_parts_of_a_stack_follow_each_other_and_fill_it() -> None:
    bars = drawn(svg_bars.stacked_bar([("a", 0.6), ("b", 0.3), ("c", 0.1)], "shares"))
    assert [x for x, *_ in bars] == pytest.approx([0, 60, 90])
    assert sum(width for _, width, *_ in bars) == pytest.approx(100)


@pytest.mark.parametrize(("share", "width"), [(0.25, 25), (1, 100), (1.5, 100), (0.00001, 0.4)])
def test_a_bar_is_as_long_as_its_share_and_never_invisible(share: float, width: float) -> None:
    assert [bar[1] for bar in drawn(svg_bars.bar(share, "x"))] == pytest.approx([width])


def test_no_bar_is_drawn_for_nothing() -> None:
    assert drawn(svg_bars.bar(0, "x")) == []


@pytest.mark.parametrize("text", HOSTILE)
def test_names_stay_text(text: str) -> None:
    for svg in (
        svg_bars.columns([1], [text], text, {0: text}),
        svg_bars.stacked_bar([(text, 1.0)], text),
        svg_bars.bar(0.5, text),
        svg_bars.histogram(np.array([1, 2]), text, lambda value: text),
    ):
        root = ElementTree.fromstring(svg)  # well-formed, so nothing broke out
        assert {element.tag for element in root.iter()} <= {"svg", "rect", "title", "text"}
        assert root.get("aria-label") == text
        assert not any(name.startswith("on") for element in root.iter() for name in element.attrib)
