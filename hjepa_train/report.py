"""report.md: what ran, whether it ran right, whether it learnt.

Every table is made once, as a `Sheet`; the command line shows it with `as_rich`, the report writes it as
Markdown, so both always say the same. Only files of the run folder are read (config.yaml, metrics.jsonl,
evaluation.json, the newest checkpoint's state.json), so a report can be made of any run, on any machine,
while it still trains.

evaluation.json: [{source, split, bank, test, chance, rows: [{features, dims, knn, ...}, ...]}, ...];
the probes are those of `_PROBE_NAMES`.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, median
from typing import Any, final

from rich.table import Table
from rich.text import Text

from hjepa_shards import InputError, write_atomically
from hjepa_train.checkpoint import latest, read_state
from hjepa_train.journal import read_metrics

_NOTHING = "–"
_ALARM_WHEN = {"rho": "ρ ≥ 1", "gap": "< .03", "sd": "< .2 of the start", "rankme": "< .7 of the start"}
_PROBE_NAMES = {
    "linear": "linear",
    "knn": "k-NN",
    "knn_centred": "k-NN centred",
    "knn_whitened": "k-NN whitened",
    "ridge": "ridge",
    "sgd": "SGD",
    "sgd_last4": "SGD last 4",
    "attentive": "attentive",
}
_SIGNAL_NAMES = {
    "loss": "loss",
    "rho": "ρ: loss / loss of predicting the position's mean",
    "gap": "gap: own target against another image's (cosine)",
    "sd": "deviation between images at one position",
    "positional_share": "share of variance that is position",
    "rankme": "RankMe (centred)",
    "grad_norm": "gradient norm",
    **{
        f"{kind}_{name}": f"{title} of the {name} encoder during the run, percent right"
        for kind, title in (("knn", "k-NN"), ("ridge", "ridge probe"))
        for name in ("online", "target", "encoder")
    },
}


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Sheet:
    """A table to show: strings only, numbers already formatted."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str = ""
    """A sentence below the table."""


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What a run folder holds."""

    folder: Path
    config: str
    """config.yaml as it stands."""
    metrics: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    recipe: dict[str, Any]
    """Hardware and versions, from the newest checkpoint; empty before the first one."""


def read_run(folder: Path) -> Run:
    """The run in `folder`. InputError where it is none, or has logged nothing yet."""
    try:
        config = (folder / "config.yaml").read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"{folder}: the folder of a run expected, no config.yaml found in it; runs stand in runs/<name>"
        ) from error
    metrics = read_metrics(folder / "metrics.jsonl")
    if not metrics:
        raise InputError(f"{folder / 'metrics.jsonl'}: a logged step expected, none found yet; let the run go on")
    newest = latest(folder / "checkpoints")
    return Run(
        folder=folder,
        config=config,
        metrics=metrics,
        evaluations=_read_evaluations(folder / "evaluation.json"),
        recipe=read_state(newest).get("recipe", {}) if newest else {},
    )


def write_report(folder: Path) -> Path:
    """Write `<folder>/report.md` and return its path."""
    run = read_run(folder)
    sections = {
        "What ran": [what_ran(run)],
        "Did it run right?": did_it_run_right(run),
        "Did it learn?": did_it_learn(run),
    }
    lines = [f"# {run.folder.resolve().name}", ""]
    for heading, sheets in sections.items():
        lines += [f"## {heading}", ""]
        for sheet in sheets:
            lines += [_as_markdown(sheet), ""]
    lines += ["## Configuration", "", "```yaml", run.config.rstrip("\n"), "```", ""]
    path = folder / "report.md"
    write_atomically(path, "\n".join(lines).encode())
    return path


def what_ran(run: Run) -> Sheet:
    last = run.metrics[-1]
    facts = {
        "steps, up to the last log point": _count(last["step"] + 1),
        "images": _count(last.get("position")),
        "images/s (median)": _number(_summary(median, run.metrics, "images_per_s"), 1),
        "time spent waiting for data": _percent(_summary(fmean, run.metrics, "data_wait")),
        **{name.replace("_", " "): str(value) for name, value in run.recipe.items()},
    }
    return Sheet(title="Run", columns=("", "value"), rows=tuple(facts.items()))


def did_it_run_right(run: Run) -> list[Sheet]:
    """Shares of the sources; the signals of learning at start and end; alarms; the order proof."""
    return [_shares(run), _signals(run), _alarms(run)]


def did_it_learn(run: Run) -> list[Sheet]:
    """A table for each evaluation: every row that was probed, whoever wins."""
    if not run.evaluations:
        note = f"Not evaluated yet: `hjepa-train eval {run.folder} --source NAME`."
        return [Sheet(title="Probes", columns=(), rows=(), note=note)]
    return [probed([evaluation]) for evaluation in run.evaluations]


def probed(evaluations: Sequence[dict[str, Any]]) -> Sheet:
    """One table of one or more evaluations; a column for each probe that any of them has."""
    columns = [key for key in _PROBE_NAMES if any(key in row for one in evaluations for row in one["rows"])]
    names = [f"{one['source']} ({one['split']})" for one in evaluations]
    rows: list[tuple[str, ...]] = []
    notes: list[str] = []
    for name, one in zip(names, evaluations, strict=True):
        before = f"{name}: " if len(evaluations) > 1 else ""
        chance = _number(one["chance"], 1)
        cells = [[chance] * len(columns)] + [[_number(row.get(key), 1) for key in columns] for row in one["rows"]]
        for row, numbers in zip([{"features": "chance"}, *one["rows"]], cells, strict=True):
            chosen = [f"{row['l2']:.0e}" if "l2" in row else _NOTHING] if "linear" in columns else []
            rows.append((before + row["features"], _count(row.get("dims")), *numbers, *chosen))
        about = f"Bank {_count(one['bank'])}, test {_count(one['test'])}; chance: its commonest class"
        notes.append(before + about)
    return Sheet(
        title="Percent right" if len(evaluations) > 1 else f"{names[0]}, percent right",
        columns=(
            *("features", "dims", *(_PROBE_NAMES[key] for key in columns)),
            *(["L2"] if "linear" in columns else []),
        ),
        rows=tuple(rows),
        note="\n".join(notes),
    )


def as_rich(sheet: Sheet) -> Table:
    """The sheet for a terminal."""
    table = Table(title=Text(sheet.title), caption=Text(sheet.note) if sheet.note else None, title_justify="left")
    for index, column in enumerate(sheet.columns):
        table.add_column(Text(column), justify="left" if index == 0 else "right")
    for row in sheet.rows:
        table.add_row(*(Text(cell) for cell in row))
    return table


def _shares(run: Run) -> Sheet:
    last = run.metrics[-1]
    rows = [
        (
            name,
            _count(source.get("count")),
            _percent(source.get("share")),
            _percent(source.get("target")),
            _number(source.get("passes"), 2),
            _number(_first(_source_losses(run, name)), 4),
            _number(_first(reversed(_source_losses(run, name))), 4),
        )
        for name, source in sorted(last.get("sources", {}).items())
    ]
    return Sheet(
        title="Sources",
        columns=("source", "images", "share", "target", "passes", "loss at start", "at end"),
        rows=tuple(rows),
        note=f"At the last log point. Order proof after {_count(last.get('position'))} images: "
        f"{last.get('proof', _NOTHING)}",
    )


def _signals(run: Run) -> Sheet:
    rows: list[tuple[str, ...]] = []
    for key in dict.fromkeys(key for row in run.metrics for key in row):
        kind, _, level = key.partition("_l") if key[-1].isdigit() else (key, "", "")
        if kind in _SIGNAL_NAMES:
            values = [row.get(key) for row in run.metrics]
            name = _SIGNAL_NAMES[kind] + (f", level {level}" if level else "")
            start, end = _number(_first(values), 3), _number(_first(reversed(values)), 3)
            rows.append((name, start, end, _ALARM_WHEN.get(kind, _NOTHING)))
    cap = _first(row.get("rankme_cap") for row in run.metrics)
    return Sheet(
        title="Signals",
        columns=("", "start", "end", "alarm when"),
        rows=tuple(rows),
        note=f"RankMe is at most {_number(cap, 0)} here." if cap is not None else "",
    )


def _alarms(run: Run) -> Sheet:
    fired: dict[str, list[int]] = {}
    for row in run.metrics:
        for name in row.get("alarms") or ():
            fired.setdefault(name, []).append(row["step"])
    enough = sum(row.get("judged", True) for row in run.metrics) >= 3
    rows = [
        (name, _count(steps[0]), _count(steps[-1]), f"{len(steps)} of {len(run.metrics)}")
        for name, steps in fired.items()
    ]
    return Sheet(
        title="Alarms",
        columns=("alarm", "first at step", "last at step", "log points"),
        rows=tuple(rows),
        note="" if fired else "None fired." if enough else "Not judged yet: that takes 3 log points behind warm-up.",
    )


def _as_markdown(sheet: Sheet) -> str:
    lines = [f"**{sheet.title}**", ""]
    if sheet.rows:
        rule = ["---" if index == 0 else "---:" for index in range(len(sheet.columns))]
        for row in (sheet.columns, rule, *sheet.rows):
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")
        lines.append("")
    if sheet.note:
        lines.append(sheet.note)
    return "\n".join(lines).rstrip("\n")


def _read_evaluations(path: Path) -> list[dict[str, Any]]:
    if not path.exists():
        return []
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path}: JSON expected: {error}; evaluate the run again") from error
    wanted = {"source", "split", "bank", "test", "chance", "rows"}
    for entry in content if isinstance(content, list) else [content]:
        missing = wanted - set(entry) if isinstance(entry, dict) else wanted
        if missing:
            raise InputError(
                f"{path}: evaluations with {', '.join(sorted(wanted))} expected, one without "
                f"{', '.join(sorted(missing))} found; evaluate the run again"
            )
    return content


def _source_losses(run: Run, name: str) -> Sequence[float | None]:
    return [row.get("sources", {}).get(name, {}).get("loss") for row in run.metrics]


def _summary(how: Any, rows: list[dict[str, Any]], key: str) -> float | None:
    values = [row[key] for row in rows if row.get(key) is not None]
    return how(values) if values else None


def _first(values: Iterable[float | None]) -> float | None:
    return next((value for value in values if value is not None), None)


def _number(value: float | None, digits: int) -> str:
    return _NOTHING if value is None else f"{value:,.{digits}f}"


def _percent(value: float | None) -> str:
    return _NOTHING if value is None else f"{100 * value:.2f}%"


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else _NOTHING if value is None else str(value)
