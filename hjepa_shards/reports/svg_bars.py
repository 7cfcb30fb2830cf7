"""Bars as inline SVG: no script, no library, readable at any width.

Places and widths are percentages, heights and letters are pixels, so a chart fills the column that it is in and its
text keeps its size. Colours come from the page's style sheet (light or dark) through class names. Names of classes and
sources are other people's text: all of it goes through `proper` and is escaped.
"""

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from hjepa_shards.base.shown_text import proper

_BINS = 32
_TICKS = 2
_HEIGHT, _FOOT = 96, 18

_SVG = Markup('<svg class="{kind}" role="img" aria-label="{label}" height="{height}">{body}</svg>')
_BAR = Markup(
    '<rect class="bar" x="{x:.3f}%" width="{width:.3f}%" y="{y:.1f}" height="{height:.1f}">'
    "<title>{title}</title></rect>"
)
_TICK = Markup('<text x="{x:.3f}%" y="{y}" text-anchor="{anchor}">{text}</text>')
_LINE = Markup('<rect class="axis" x="0" y="{y}" width="100%" height="1"/>')
_PART = Markup(
    '<rect class="part p{colour}" x="{x:.3f}%" width="{width:.3f}%" y="0" height="{height}">'
    "<title>{title}</title></rect>"
)


def histogram(values: NDArray[np.generic], label: str, show: Callable[[float], str]) -> Markup:
    """How often each size occurs.  values: [n] numbers above 0.  show: a value as the axis writes it.

    Steps are equal, or equal in ratio where the largest value is far above the smallest.
    """
    edges = _edges(values.astype(np.float64))
    counts, _ = np.histogram(values, edges)
    last = len(counts)
    names = [f"{show(low)} to {show(high)}" for low, high in itertools.pairwise(edges.tolist())]
    ticks = {index: show(edges[index]) for index in sorted({round(last * i / _TICKS) for i in range(_TICKS + 1)})}
    return columns(counts.tolist(), names, label, ticks)


def columns(counts: Sequence[int], names: Sequence[str], label: str, ticks: dict[int, str]) -> Markup:
    """A bar for each count, side by side.  ticks: bar -> what is under its left edge."""
    most, total = max([*counts, 1]), max(1, sum(counts))
    step = 100 / max(1, len(counts))
    gap = 0.0 if len(counts) > 100 else 0.12 * step
    body = Markup()
    for index, (count, name) in enumerate(zip(counts, names, strict=True)):
        if count:
            name = proper(name)
            height = max(1.5, _HEIGHT * count / most)
            title = f"{name}: {count:,} ({count / total:.1%})"
            body += _BAR.format(
                x=index * step + gap / 2, width=step - gap, y=_HEIGHT - height, height=height, title=title
            )
    body += _LINE.format(y=_HEIGHT)
    for index, text in ticks.items():
        anchor = "start" if index == 0 else "end" if index == len(counts) else "middle"
        body += _TICK.format(x=index * step, y=_HEIGHT + _FOOT - 4, anchor=anchor, text=text)
    return _SVG.format(kind="columns", label=proper(label), height=_HEIGHT + _FOOT, body=body)


def bar(share: float, title: str, kind: str = "bar") -> Markup:
    """One bar on its own track.  share: of the track, 0 to 1."""
    body = Markup('<rect class="track" width="100%" height="10" rx="2"/>')
    if share > 0:
        body += Markup('<rect class="{kind}" width="{width:.3f}%" height="10" rx="2"/>').format(
            kind=kind, width=100 * min(1.0, max(share, 0.004))
        )
    return _SVG.format(kind="single", label=proper(title), height=10, body=body)


def stacked_bar(parts: Sequence[tuple[str, float]], label: str, height: int = 26) -> Markup:
    """Shares that sum to 1 as one bar, in the colours p0, p1, ... of the page."""
    body, start = Markup(), 0.0
    for number, (name, share) in enumerate(parts):
        title = f"{proper(name)}: {share:.2%}"
        body += _PART.format(colour=number % 8, x=100 * start, width=100 * share, height=height, title=title)
        start += share
    return _SVG.format(kind="stack", label=proper(label), height=height, body=body)


def _edges(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Borders of at most 32 bins, the last one above every value; whole numbers where the values are."""
    low, high = float(values.min()), float(values.max())
    whole = bool((values == np.rint(values)).all())
    if whole and high - low < _BINS:
        return np.arange(low, high + 2)
    if low > 0 and high / low > 8:
        edges = np.exp(np.linspace(math.log(low), math.log(high + whole), _BINS + 1))
    else:
        edges = np.linspace(low, high + whole, _BINS + 1)
    if whole:
        edges = np.unique(np.rint(edges))
    edges[0], edges[-1] = low, high + whole
    return edges if edges[-1] > edges[0] else np.array([low, low + 1])
