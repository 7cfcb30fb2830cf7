"""The curves of a run, or of several over each other, from the rows of metrics.jsonl alone.

What was never logged is no chart (MAE has no ρ), what is null is a gap in its line. Alarms are bands behind the curves
that they were judged on, and behind the loss.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, final

from markupsafe import Markup

from hjepa_shards.reports.svg_curves import Band, Curve, line_chart

Row = Mapping[str, Any]
JUDGED_ON = {
    "predicts the position, not the image": ("rho", "gap"),
    "features shrink": ("sd",),
    "dimensions collapse": ("rankme",),
}
"""Alarm -> the signals that it needs; any of them will do."""
_MOST_LINES = 16


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Chart:
    """A drawing with its heading and its key."""

    title: str
    drawing: Markup
    key: tuple[tuple[str, int | None, str], ...]
    """(name, colour, last value) of each line; colour None for what is no line"""
    note: str = ""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class _Signal:
    title: str
    key: str
    """of a row; `_l` at its end: one a level"""
    unit: str
    """what the vertical axis counts"""
    show: Callable[[float], str]
    limit: float | None = None
    limit_of_start: float | None = None
    """the limit as a share of the first value"""
    note: str = ""
    floor: float | None = None


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _percent(value: float) -> str:
    return f"{100 * value:.3g}%"


_LOSS = _Signal(title="loss", key="loss", unit="loss", show=_number)
_SIGNALS = (
    _Signal(
        title="ρ",
        key="rho_l",
        unit="loss / loss of the position's mean",
        show=_number,
        limit=1.0,
        note="below 1: it uses the image",
    ),
    _Signal(
        title="gap",
        key="gap_l",
        unit="cosine to its own target minus another's",
        show=_number,
        limit=0.03,
        note="above 0: it distinguishes images",
    ),
    _Signal(
        title="deviation between images",
        key="sd",
        unit="standard deviation",
        show=_number,
        limit_of_start=0.2,
        floor=0.0,
    ),
    _Signal(title="RankMe", key="rankme", unit="dimensions in use", show=_number, limit_of_start=0.7, floor=0.0),
    _Signal(title="gradient norm", key="grad_norm", unit="norm", show=_number),
)
_PROBES = {"knn_": "k-NN", "own_": "own classifier", "ridge_": "ridge"}
_PACE = (
    _Signal(title="images/s", key="images_per_s", unit="images/s", show=_number, floor=0.0),
    _Signal(title="time spent waiting for data", key="data_wait", unit="share of the time", show=_percent, floor=0.0),
    _Signal(title="learning rate", key="lr", unit="learning rate", show=_number),
)


def run_charts(rows: Sequence[Row]) -> dict[str, list[Chart]]:
    """By what they are about: "learning", "sources", "pace"."""
    total = [_curve(rows, "loss", "loss", 0)]
    levels = [_curve(rows, key, _level(key), number) for number, key in enumerate(_keys(rows, "loss_l"), start=1)]
    loss = _chart("loss", total + levels, _number, y_name="loss", bands=_bands(rows, None))
    return {
        "learning": _there([loss, _probes(rows), *(_signal(rows, signal) for signal in _SIGNALS)]),
        "sources": _there([_shares(rows), _source_losses(rows)]),
        "pace": _there([_signal(rows, signal) for signal in _PACE]),
    }


def compared_charts(runs: Mapping[str, Sequence[Row]]) -> list[Chart]:
    """One chart a signal and level, one line a run, over the images seen."""
    found: list[Chart | None] = []
    levelled = _Signal(title="loss", key="loss_l", unit="loss", show=_number)
    for signal in (_LOSS, levelled, *_SIGNALS, *_PACE):
        keys = [signal.key]
        if signal.key.endswith("_l"):
            keys = sorted({key for rows in runs.values() for key in _keys(rows, signal.key)}, key=_level_number)
        for key in keys:
            title = signal.title + (f", {_level(key)}" if key != signal.key else "")
            lines = [_curve(rows, key, name, number, "position") for number, (name, rows) in enumerate(runs.items())]
            chart = _chart(
                title,
                lines,
                signal.show,
                x_name="images",
                y_name=signal.unit,
                limit=signal.limit,
                note=signal.note,
                floor=signal.floor,
            )
            found.append(chart)
    return _there(found)


def _signal(rows: Sequence[Row], signal: _Signal) -> Chart | None:
    keys = _keys(rows, signal.key) if signal.key.endswith("_l") else [signal.key]
    lines = [_curve(rows, key, _level(key) or signal.title, number) for number, key in enumerate(keys)]
    limit = signal.limit
    if signal.limit_of_start is not None:
        first = next((value for line in lines for _, value in line.points if value is not None), None)
        limit = None if first is None else signal.limit_of_start * first
    bands = _bands(rows, signal.key.removesuffix("_l"))
    return _chart(
        signal.title,
        lines,
        signal.show,
        y_name=signal.unit,
        limit=limit,
        bands=bands,
        note=signal.note,
        floor=signal.floor,
    )


def _probes(rows: Sequence[Row]) -> Chart | None:
    """Percent right of every probe during the run; points where it was probed, joined."""
    keys = sorted(key for key in dict.fromkeys(key for row in rows for key in row) if key.startswith(tuple(_PROBES)))
    probed = [row for row in rows if any(row.get(key) is not None for key in keys)]
    lines = [
        _curve(probed, key, f"{_PROBES[key.split('_')[0] + '_']} {key.partition('_')[2]}", number)
        for number, key in enumerate(keys)
    ]
    return _chart("probes during the run", lines, _number, y_name="percent right")


def _shares(rows: Sequence[Row]) -> Chart | None:
    lines = []
    for number, name in enumerate(_sources(rows)):
        for key, dashed in (("share", False), ("target", True)):
            points = [(_at(row), _of_source(row, name, key)) for row in rows]
            lines.append(Curve(name=f"{name}, {key}", points=points, colour=number, dashed=dashed))
    note = "dashed: what the weights say"
    return _chart("share of the images so far", lines, _percent, y_name="share of the images", note=note)


def _source_losses(rows: Sequence[Row]) -> Chart | None:
    lines = [
        Curve(name=name, points=[(_at(row), _of_source(row, name, "loss")) for row in rows], colour=number)
        for number, name in enumerate(_sources(rows))
    ]
    return _chart("loss of each source", lines, _number, y_name="loss")


def _chart(
    title: str,
    lines: Sequence[Curve],
    show: Callable[[float], str],
    *,
    y_name: str,
    x_name: str = "step",
    limit: float | None = None,
    bands: Sequence[Band] = (),
    note: str = "",
    floor: float | None = None,
) -> Chart | None:
    """None where there is nothing to draw."""
    lines = [line for line in lines if any(_is_number(value) for _, value in line.points)]
    left_out = len(lines) - _MOST_LINES
    if left_out > 0:
        lines, note = lines[:_MOST_LINES], f"{note + '; ' if note else ''}and {left_out} more lines"
    drawing = line_chart(lines, title, x_name=x_name, y_name=y_name, show=show, limit=limit, bands=bands, floor=floor)
    key: list[tuple[str, int | None, str]] = [
        (line.name, line.colour, next(show(y) for _, y in reversed(line.points) if y is not None and math.isfinite(y)))
        for line in lines
        if not line.dashed
    ]
    if limit is not None:
        key.append((f"alarm at {show(limit)}", None, ""))
    key += [(f"alarm: {name}", None, "") for name in dict.fromkeys(band.name for band in bands)]
    return Chart(title=title, drawing=drawing, key=tuple(key), note=note) if drawing else None


def _bands(rows: Sequence[Row], kind: str | None) -> list[Band]:
    """Where alarms were on that were judged on `kind` (None: all): from their log point to the next."""
    bands: list[Band] = []
    for index, row in enumerate(rows):
        stop = _at(rows[index + 1]) if index + 1 < len(rows) else _at(row)
        for name in row.get("alarms") or ():
            if kind is not None and kind not in JUDGED_ON.get(name, ()):
                continue
            if (last := next((b for b in bands if b.name == name and b.stop == _at(row)), None)) is not None:
                bands[bands.index(last)] = Band(start=last.start, stop=stop, name=name)
            else:
                bands.append(Band(start=_at(row), stop=stop, name=name))
    return bands


def _curve(rows: Sequence[Row], key: str, name: str, colour: int, over: str = "step") -> Curve:
    return Curve(name=name, points=[(row.get(over) or row["step"], row.get(key)) for row in rows], colour=colour)


def _keys(rows: Sequence[Row], prefix: str) -> list[str]:
    """The keys of levels: `rho_l0`, `rho_l1`, ..."""
    found = {key for row in rows for key in row if key.startswith(prefix) and key.removeprefix(prefix).isdigit()}
    return sorted(found, key=_level_number)


def _level_number(key: str) -> int:
    return int(key.rpartition("_l")[2])


def _level(key: str) -> str:
    _, mark, number = key.rpartition("_l")
    return f"level {number}" if mark and number.isdigit() else ""


def _sources(rows: Sequence[Row]) -> list[str]:
    return sorted({name for row in rows for name in row.get("sources") or {}})


def _of_source(row: Row, name: str, key: str) -> float | None:
    return (row.get("sources") or {}).get(name, {}).get(key)


def _at(row: Row) -> float:
    return row["step"]


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _there(charts: Sequence[Chart | None]) -> list[Chart]:
    def kept() -> Iterator[Chart]:
        for chart in charts:
            if chart is not None:
                yield chart

    return list(kept())
