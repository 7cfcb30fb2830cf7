"""Curves: at the heights that their numbers say, gaps where there is none, and no text more than text."""

import re
from functools import partial
from xml.etree import ElementTree

import pytest

from hjepa_shards.reports.svg_curves import Band, Curve, line_chart

NAN = float("nan")


chart = partial(line_chart, x_name="step", y_name="loss")


def drawn(lines: list[Curve], **settings: object) -> ElementTree.Element:
    return ElementTree.fromstring(chart(lines, "label", show=lambda y: f"{y:g}", **settings))  # type: ignore[arg-type]


def strokes(root: ElementTree.Element, kind: str = "s0") -> list[list[tuple[float, float]]]:
    """The strokes of a line, each as its points in units of the drawing."""
    (path,) = (path for path in root.iter("path") if str(path.get("class")).split()[0] == kind)
    parts = [part for part in str(path.get("d")).split("M") if part]
    return [[(float(x), float(y)) for x, y in re.findall(r"(-?[\d.]+) (-?[\d.]+)", part)] for part in parts]


def test_points_are_where_their_numbers_say() -> None:
    ((first, second, third),) = strokes(
        drawn([Curve(name="loss", points=[(0, 1.0), (25, 0.5), (100, 0.75)], colour=0)])
    )
    assert [first[0], second[0], third[0]] == [0, 250, 1000]
    assert first[1] < third[1] < second[1]
    assert (second[1] - third[1]) / (second[1] - first[1]) == pytest.approx(0.5, abs=0.01)


def test_values_that_are_none_or_not_finite_are_gaps_and_lonely_ones_dots() -> None:
    points = [(0, 1.0), (1, 2.0), (2, None), (3, 1.0), (4, NAN), (5, 2.0), (6, 1.0), (7, float("inf"))]
    root = drawn([Curve(name="loss", points=points, colour=0)])
    assert [len(stroke) for stroke in strokes(root)] == [2, 1, 2]
    (dot,) = root.iter("circle")
    assert dot.findtext("title") == "loss: 1"


@pytest.mark.parametrize("points", [[], [(0, None)], [(0, NAN), (1, float("inf"))]])
def test_nothing_to_draw_is_no_chart(points: list[tuple[float, float | None]]) -> None:
    assert chart([Curve(name="loss", points=points, colour=0)], "label", show=str) == ""


@pytest.mark.parametrize("value", [0.0, 1.0, -3.0, 1e-30, 1e30])
def test_one_value_is_a_dot_in_the_middle(value: float) -> None:
    root = drawn([Curve(name="loss", points=[(7, value)], colour=0)])
    (dot,) = root.iter("circle")
    assert dot.get("cx") == "56.50%"
    assert 26 <= float(str(dot.get("cy"))) <= 176
    assert "7" in [text.text for text in root.iter("text")]


def test_a_limit_is_on_the_chart_also_where_no_value_reaches_it() -> None:
    root = drawn([Curve(name="rho", points=[(0, 0.2), (1, 0.3)], colour=0)], limit=1.0)
    ((_, limit),) = re.findall(r"M(0) ([\d.]+)H1000", next(str(p.get("d")) for p in root.iter("path")))
    assert 0 <= float(limit) < min(y for _, y in strokes(root)[0])


@pytest.mark.parametrize(("low", "high"), [(0.07, 1.17), (0.0, 42.0), (-1e-9, 1e-9), (1e6, 1.4e6), (-3e30, 2e30)])
def test_the_numbers_of_the_axis_are_round_and_stand_at_their_height(low: float, high: float) -> None:
    root = drawn([Curve(name="loss", points=[(0, low), (1, high)], colour=0)])
    ((bottom, top),) = [[y for _, y in stroke] for stroke in strokes(root)]
    numbers = [text for text in root.iter("text") if text.get("text-anchor") == "end"]
    ticks = [(float(str(text.text)), float(str(text.get("y")))) for text in numbers if text.get("x") == "11.5%"]
    assert 2 <= len(ticks) <= 5
    for value, y in ticks:
        assert float(f"{value:.2g}") == value
        expected = 26 + 0.15 * (bottom + (top - bottom) * (value - low) / (high - low))
        assert y - 4 == pytest.approx(expected, abs=0.2)


def test_both_axes_say_what_they_count_and_nothing_is_on_top_of_it() -> None:
    root = drawn([Curve(name="a", points=[(0, 1.0), (400, 2.0)], colour=0)], x_name="images", y_name="images/s")
    texts = {str(text.text): text for text in root.iter("text")}
    above, below = texts["images/s"], texts["images"]
    assert (above.get("x"), above.get("text-anchor")) == ("0%", "start")
    assert (below.get("x"), below.get("text-anchor")) == ("56.5%", "middle")
    height, letters = float(str(root.get("height"))), 12
    numbers = [float(str(text.get("y"))) for name, text in texts.items() if name not in ("images", "images/s")]
    assert float(str(above.get("y"))) + letters < min(numbers)
    assert max(numbers) + letters < float(str(below.get("y"))) + 1 <= height


def test_bands_are_over_their_stretch_of_the_axis() -> None:
    root = drawn(
        [Curve(name="gap", points=[(100, 0.0), (200, 1.0)], colour=0)],
        bands=[
            Band(start=150, stop=175, name="features shrink"),
            Band(start=190, stop=900, name="later"),
            Band(start=200, stop=200, name="at the end"),
        ],
    )
    bands = [rect for rect in root.iter("rect") if rect.get("class") == "band"]
    assert [(band.get("x"), band.get("width")) for band in bands] == [
        ("56.50%", "21.75%"),
        ("91.30%", "8.70%"),
        ("99.50%", "0.50%"),
    ]
    assert bands[0].findtext("title") == "features shrink"


def test_a_long_run_is_thinned_and_keeps_its_ends_spikes_and_dips() -> None:
    values = [1.0 + 0.001 * (step % 7) for step in range(100_000)]
    values[43_210], values[77_777] = 9.0, -9.0
    root = drawn([Curve(name="loss", points=list(enumerate(values)), colour=0)])
    (stroke,) = strokes(root)
    assert len(stroke) < 1000
    assert (stroke[0][0], stroke[-1][0]) == (0, 1000)
    heights = [y for _, y in stroke]
    assert stroke[heights.index(min(heights))][0] == pytest.approx(432.1, abs=0.06)
    assert stroke[heights.index(max(heights))][0] == pytest.approx(777.8, abs=0.06)


def test_hostile_names_stay_text() -> None:
    hostile = '"><script>alert(1)</script>\u202e'
    svg = line_chart(
        [Curve(name=hostile, points=[(0, 1), (1, 2)], colour=0)],
        hostile,
        x_name=hostile,
        y_name=hostile,
        show=str,
        bands=[Band(start=0, stop=1, name=hostile)],
    )
    assert "<script" not in svg
    assert "\u202e" not in svg
    titles = [title.text for title in ElementTree.fromstring(svg).iter("title")]
    assert titles == ['"><script>alert(1)</script>\\u202e'] * 2
