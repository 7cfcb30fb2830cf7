"""What a notebook shows in place of a line of text: a table, or a few small pictures with a line below each.

A notebook has its own style, light or dark, so nothing here sets a colour of text or paper, and there is neither a
style sheet nor a script. All text is escaped and passes through `proper`: names of classes and sources are third-party.
"""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import final

from markupsafe import Markup

from hjepa_shards.base.shown_text import proper

SHOWN_IMAGES = 24
"""Pictures of a split or a batch: two rows of a notebook."""
_SMALL_SIDE = 72
_LARGE_SIDE = 112

_TITLE = Markup('<div style="margin-bottom:6px">{text}</div>')
_NOTE = Markup('<div style="margin-top:4px;opacity:.7">{text}</div>')
_CELL = Markup('<{tag} style="text-align:{side};padding:3px 12px 3px 0">{text}</{tag}>')
_LEFT = Markup('<div style="text-align:left">{text}</div>')
_BAR = Markup(
    '<div style="width:120px;height:8px;border-radius:2px;background:rgba(128,128,128,.25)">'
    '<div style="width:{percent:.2f}%;height:8px;border-radius:2px;background:#2a8c97"></div></div>'
)
_FIGURE = Markup(
    '<figure style="display:inline-block;margin:0 6px 8px 0;vertical-align:top;width:{side}px;font-size:11px;'
    'line-height:1.3;overflow:hidden">{body}<figcaption style="overflow:hidden;text-overflow:ellipsis;'
    'white-space:nowrap">{line}</figcaption></figure>'
)
_IMAGE = Markup(
    '<img src="{uri}" alt="{title}" title="{title}" style="display:block;width:{side}px;height:{side}px;'
    'object-fit:contain;margin:0;outline:1px solid rgba(128,128,128,.3);outline-offset:-1px{pixelated}">'
)
_LOST = Markup(
    '<div title="{title}" style="width:{side}px;height:{side}px;box-sizing:border-box;padding:4px;overflow:hidden;'
    'border:1px dashed #c26a2c">{title}</div>'
)


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Figure:
    """One image, or the reason why there is none."""

    image: bytes
    """A PNG or JPEG; empty where there is none."""
    line: str
    """Below it."""
    title: str
    """While the pointer rests on it; where there is no image, in its place."""


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str | Markup]], notes: Sequence[str] = ()) -> str:
    """Rows below a title.  columns: headings; the first is on the left, others on the right.  notes: below."""
    head = Markup("<thead><tr>{cells}</tr></thead>").format(cells=_cells("th", columns)) if any(columns) else Markup()
    body = Markup().join(Markup("<tr>{cells}</tr>").format(cells=_cells("td", row)) for row in rows)
    return _framed(title, Markup("<table>{head}<tbody>{body}</tbody></table>").format(head=head, body=body), notes)


def facts(title: str, values: dict[str, str], notes: Sequence[str] = ()) -> str:
    """A name and a value a row; empty values are skipped."""
    rows = [(name, _LEFT.format(text=proper(value))) for name, value in values.items() if value]
    return table(title, (), rows, notes)


def share_bar(share: float) -> Markup:
    """A bar for a cell of a table.  share: 0 to 1."""
    return _BAR.format(percent=100 * min(1.0, max(0.0, share)))


def pictures(title: str, shown: Sequence[Figure], notes: Sequence[str] = ()) -> str:
    """Small pictures side by side, each with its line."""
    return _framed(title, Markup("<div>{body}</div>").format(body=Markup().join(map(_figure, shown))), notes)


def data_uri(image: bytes) -> Markup:
    """A PNG or JPEG as the address of an image."""
    kind = "png" if image.startswith(b"\x89PNG") else "jpeg"
    return Markup(f"data:image/{kind};base64,{base64.b64encode(image).decode()}")


def _framed(title: str, body: Markup, notes: Sequence[str]) -> str:
    below = Markup().join(_NOTE.format(text=proper(note)) for note in notes)
    return str(_TITLE.format(text=proper(title)) + body + below)


def _cells(tag: str, texts: Sequence[str | Markup]) -> Markup:
    return Markup().join(
        _CELL.format(
            tag=Markup(tag), side="right" if place else "left", text=text if isinstance(text, Markup) else proper(text)
        )
        for place, text in enumerate(texts)
    )


def _figure(figure: Figure) -> Markup:
    title, few_pixels = proper(figure.title), figure.image.startswith(b"\x89PNG")
    side = _SMALL_SIDE if few_pixels else _LARGE_SIDE
    if figure.image:
        pixelated = ";image-rendering:pixelated" if few_pixels else ""
        body = _IMAGE.format(uri=data_uri(figure.image), title=title, side=side, pixelated=pixelated)
    else:
        body = _LOST.format(title=title, side=side)
    return _FIGURE.format(side=side, body=body, line=proper(figure.line))
