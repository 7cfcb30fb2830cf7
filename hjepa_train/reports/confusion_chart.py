"""Which classes a classifier takes for which: a square of cells as inline SVG, rows are what images show.

A cell is as dark as its share of its row is large; each names its classes and counts when pointed at. Class names are
other people's text and go through `proper` and the template's escaping.
"""

from collections import Counter
from collections.abc import Sequence

from markupsafe import Markup

from hjepa_shards.base.shown_text import proper
from hjepa_train.reports.metric_charts import Chart

_HEIGHT = 340
_MOST_NAMED = 30
"""Rows beside which there is room for a name."""
_NAMES = 24
"""Percent of the width, for names."""
_SVG = Markup('<svg role="img" aria-label="{label}" height="{height}">{body}</svg>')
_CELL = Markup(
    '<rect class="bar" x="{x:.3f}%" width="{width:.3f}%" y="{y:.2f}" height="{height:.2f}" fill-opacity="{share:.2f}">'
    "<title>{title}</title></rect>"
)
_NAME = Markup('<text x="{x:.3f}%" y="{y:.2f}" text-anchor="end">{name}</text>')


def confusion_chart(title: str, names: Sequence[str], counts: Sequence[Sequence[int]]) -> Chart:
    """names: of the classes.  counts: [class, the one it is taken for, images] of the pairs that occur."""
    totals: Counter[int] = Counter()
    for shown, _, images in counts:
        totals[shown] += images
    rows = sorted(totals)
    columns = sorted({said for _, said, _ in counts} | totals.keys())
    left = _NAMES if len(rows) <= _MOST_NAMED else 0
    width, height = (100 - left) / max(1, len(columns)), _HEIGHT / max(1, len(rows))
    body = Markup()
    for shown, said, images in counts:
        share = images / totals[shown]
        what = "as they are" if shown == said else f"taken for {proper(names[said], 60)}"
        body += _CELL.format(
            x=left + columns.index(said) * width,
            width=width,
            y=rows.index(shown) * height,
            height=height,
            share=max(0.04, share),
            title=f"{proper(names[shown], 60)} {what}: {images:,} of {totals[shown]:,} ({share:.0%})",
        )
    for number, shown in enumerate(rows if left else ()):
        body += _NAME.format(x=left - 1, y=(number + 0.5) * height + 4, name=proper(names[shown], 24))
    drawing = _SVG.format(label=title, height=_HEIGHT, body=body)
    note = "rows: what images show; columns, in the same order: what they are taken for"
    return Chart(title=title, drawing=drawing, key=(), note=note)
