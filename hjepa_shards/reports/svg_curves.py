"""Curves as inline SVG, as `charts` draws bars: no script, no library, readable at any width, light and dark.

Lines are in an inner drawing of 1000 x 1000 units that is stretched over the chart while their strokes keep their
width; letters and dots are outside of it, at percentages. A long run is thinned: of each of some hundred stretches of
the axis the lowest and the highest value are kept, so no spike is lost and no page grows with the length of a run.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import final

from markupsafe import Markup

from hjepa_shards.base.shown_text import proper

NUM_COLOURS = 8
_HEIGHT, _HEAD, _FOOT = 150, 26, 34
"""Pixels. The name of the vertical axis is above the lines, the numbers and the name of the other are below them."""
_GUTTER = 13.0
"""Percent of the width, on the left, for the numbers of the axis."""
_STRETCHES = 240
_UNITS = 1000
_THIN = 0.5
"""Percent of the width that a band takes at least."""
_INNER = 100.0 - _GUTTER

_SVG = Markup(
    '<svg class="curves" role="img" aria-label="{label}" height="{height}">{behind}'
    '<svg x="{gutter}%" y="{head}" height="{inner}" width="{width}%" viewBox="0 0 1000 1000" '
    'preserveAspectRatio="none">{body}</svg>'
    "{front}</svg>"
)
_PATH = Markup('<path class="s{colour}{dashed}" d="{d}"><title>{title}</title></path>')
_DOT = Markup('<circle class="p{colour}" cx="{x:.2f}%" cy="{y:.1f}" r="2.5"><title>{title}</title></circle>')
_BAND = Markup(
    '<rect class="{kind}" x="{x:.2f}%" width="{width:.2f}%" y="{y}" height="{height}"><title>{title}</title></rect>'
)
_RULE = Markup('<rect class="axis" x="{gutter}%" y="{y:.1f}" width="{width}%" height="1"/>')
_LIMIT = Markup('<path class="limit" d="M0 {y:.1f}H1000"><title>{title}</title></path>')
_NAME = Markup('<text class="name" x="{x}%" y="{y:.1f}" text-anchor="{anchor}">{text}</text>')
_TEXT = Markup('<text x="{x}%" y="{y:.1f}" text-anchor="{anchor}">{text}</text>')


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Curve:
    """One line of a chart."""

    name: str
    points: Sequence[tuple[float, float | None]]
    """(x, y), x rising; where y is None or not finite the line has a gap."""
    colour: int
    """One of the page's, counted from 0; they begin again after `NUM_COLOURS`."""
    dashed: bool = False


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Band:
    """A stretch of the axis that something held for."""

    start: float
    stop: float
    name: str


def line_chart(
    lines: Sequence[Curve],
    label: str,
    *,
    x_name: str,
    y_name: str,
    show: Callable[[float], str],
    show_x: Callable[[float], str] = lambda x: f"{x:,.0f}",
    limit: float | None = None,
    bands: Sequence[Band] = (),
    floor: float | None = None,
) -> Markup:
    """The lines over one axis. Empty where no line has a finite value.

    label: for who does not see it.  x_name, y_name: what the axes count, as "step" and "images/s".
    show, show_x: a value as the chart writes it.  limit: drawn as a dashed line across.
    floor: the axis begins no higher than here.
    """
    clean = [(line, _finite(line.points)) for line in lines]
    everything = [point for _, points in clean for point in points if point[1] is not None]
    if not everything:
        return Markup()
    xs, ys = [x for x, _ in everything], [y for _, y in everything if y is not None]
    first, last = min(xs), max(xs)
    low, high = _range(ys + [value for value in (limit, floor) if value is not None])
    spread = (last - first) or 1.0

    def across(x: float) -> float:
        return (x - first) / spread if last > first else 0.5

    def down(y: float) -> float:
        return (high - y) / (high - low)

    behind, body, front = Markup(), Markup(), Markup()
    for band in bands:
        left, right = across(max(first, band.start)), across(min(last, band.stop))
        behind += _BAND.format(
            kind="band",
            x=min(_GUTTER + _INNER * left, 100 - _THIN),
            width=max(_THIN, _INNER * (right - left)),
            y=_HEAD,
            height=_HEIGHT,
            title=proper(band.name),
        )
    for tick in _ticks(low, high):
        y = _HEAD + _HEIGHT * down(tick)
        behind += _RULE.format(y=y, gutter=_GUTTER, width=_INNER)
        front += _TEXT.format(x=_GUTTER - 1.5, y=y + 4, anchor="end", text=show(tick))
    if limit is not None:
        body += _LIMIT.format(y=_UNITS * down(limit), title=f"limit: {show(limit)}")
    for line, points in clean:
        title = proper(line.name)
        path = _path([(across(x), None if y is None else down(y)) for x, y in points])
        body += _PATH.format(
            colour=line.colour % NUM_COLOURS, dashed=" dashed" if line.dashed else "", d=path, title=title
        )
        for x, y in _alone(points):
            front += _DOT.format(
                colour=line.colour % NUM_COLOURS,
                x=_GUTTER + _INNER * across(x),
                y=_HEAD + _HEIGHT * down(y),
                title=f"{title}: {show(y)}",
            )
    if last > first:
        ends = ((0.0, "start", first), (0.5, "middle", (first + last) / 2), (1.0, "end", last))
    else:
        ends = ((0.5, "middle", first),)
    foot = _HEAD + _HEIGHT + 14
    for share, anchor, x in ends:
        front += _TEXT.format(x=_GUTTER + _INNER * share, y=foot, anchor=anchor, text=show_x(x))
    front += _NAME.format(x=0, y=11, anchor="start", text=proper(y_name))
    front += _NAME.format(x=_GUTTER + _INNER / 2, y=_HEAD + _HEIGHT + _FOOT - 5, anchor="middle", text=proper(x_name))
    return _SVG.format(
        label=proper(label),
        height=_HEAD + _HEIGHT + _FOOT,
        head=_HEAD,
        inner=_HEIGHT,
        gutter=_GUTTER,
        width=_INNER,
        behind=behind,
        body=body,
        front=front,
    )


def _finite(points: Sequence[tuple[float, float | None]]) -> list[tuple[float, float | None]]:
    """Values that are none, or not finite, as None; thinned where there are many."""
    clean = [(x, y if y is not None and math.isfinite(y) else None) for x, y in points]
    if len(clean) <= 4 * _STRETCHES:
        return clean
    kept: list[tuple[float, float | None]] = []
    for number in range(_STRETCHES):
        part = clean[number * len(clean) // _STRETCHES : (number + 1) * len(clean) // _STRETCHES]
        there = [(y, index) for index, (_, y) in enumerate(part) if y is not None]
        kept_indices = {min(there)[1], max(there)[1]} if there else {0}
        if number in (0, _STRETCHES - 1):
            kept_indices |= {0, len(part) - 1}
        kept += [part[index] for index in sorted(kept_indices)]
    return kept


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Of the vertical axis: a little more than what is shown, never empty."""
    low, high = min(values), max(values)
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    bottom = low - margin
    return (0.0 if low >= 0 > bottom else bottom), high + margin


def _ticks(low: float, high: float) -> list[float]:
    """Two to five round numbers of the axis."""
    step = 10.0 ** math.floor(math.log10((high - low) / 2))
    step = next(step * factor for factor in (5, 2.5, 2, 1) if (high - low) / (step * factor) >= 2)
    first = math.ceil(low / step - 1e-9)
    return [number * step for number in range(first, math.floor(high / step + 1e-9) + 1)]


def _path(points: Sequence[tuple[float, float | None]]) -> str:
    pieces: list[str] = []
    pen_down = False
    for x, y in points:
        if y is not None:
            pieces.append(f"{'L' if pen_down else 'M'}{_UNITS * x:.1f} {_UNITS * y:.1f}")
        pen_down = y is not None
    return "".join(pieces)


def _alone(points: Sequence[tuple[float, float | None]]) -> list[tuple[float, float]]:
    """Values that no line leads to or from."""
    found: list[tuple[float, float]] = []
    for index, (x, y) in enumerate(points):
        before = points[index - 1][1] if index else None
        after = points[index + 1][1] if index + 1 < len(points) else None
        if y is not None and before is None and after is None:
            found.append((x, y))
    return found
