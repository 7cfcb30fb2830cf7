"""report.md and report.html: what ran, whether it ran right, whether it learnt.

Every table is made once, as a `TextTable`; the command line shows it with `as_rich`, the report writes it as
Markdown and into a page, so all say the same; the page has curves and pictures besides. Only files of the run
folder are read (config.yaml, metrics.jsonl, evaluation.json, pictures.png, the newest checkpoint's
state.json), so a report can be made of any run, on any machine, while it still trains.

evaluation.json: [{source, split, bank, test, chance, rows: [{features, dims, knn, ...}, ...]}, ...];
the probes are those of `_PROBE_NAMES`; left_out and unseen: {images, classes} of the test that the bank lacks;
unlabelled: {bank, test}, images besides; classes: [{class, images, right, taken_for, times}, ...] of a run's own
classifier, and confusion: {names, counts: [[class, taken for, images], ...]}.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean, median
from typing import Any, final

from hjepa_shards.base.atomic_files import write_atomically
from hjepa_shards.base.regular_files import read_regular
from hjepa_shards.base.shown_text import counted, listed
from hjepa_shards.errors import InputError
from hjepa_train.base.metrics_file import EXTENDED, STOPPED, read_metrics
from hjepa_train.checkpoints.checkpoint_files import latest, plain_facts, read_state
from hjepa_train.reports.confusion_chart import confusion_chart
from hjepa_train.reports.image_panels import last_pictures
from hjepa_train.reports.metric_charts import JUDGED_ON, Chart, run_charts
from hjepa_train.reports.run_page import Section, write_page
from hjepa_train.reports.text_table import NOTHING, TextTable, as_markdown, count, number, percent

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
    "own": "own classifier",
    "own_top5": "own, top 5",
}
_MOST_BYTES = 1 << 26
"""Of a run's small files."""
_SIGNAL_NAMES = {
    "loss": "loss",
    "accuracy": "percent right while training, on changed images",
    "rho": "ρ: loss / loss of predicting the position's mean",
    "gap": "gap: own target against another image's (cosine)",
    "sd": "deviation between images at one position",
    "positional_share": "share of variance that is position",
    "rankme": "RankMe (centred)",
    "grad_norm": "gradient norm",
    **{
        f"{kind}_{name}": f"{title} of the {which} during the run, percent right"
        for kind, title in (("knn", "k-NN"), ("ridge", "ridge probe"), ("own", "own classifier"))
        for name, which in (
            *(("online", "online encoder"), ("target", "target encoder"), ("encoder", "encoder")),
            ("average", "average of the weights"),
        )
    },
}


@final
@dataclass(frozen=True, kw_only=True, slots=True)
class Run:
    """What a run folder holds."""

    folder: Path
    config: str
    """config.yaml as it is."""
    metrics: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    recipe: dict[str, Any]
    """Hardware and versions, from the newest checkpoint; empty before the first one."""
    began: dict[str, Any] = field(default_factory=dict[str, Any])
    """Weights that it began with, from there too; empty where they were drawn."""


def read_run(folder: Path) -> Run:
    """The run in `folder`. InputError where it is none, or has logged nothing yet."""
    try:
        config = read_regular(folder / "config.yaml", _MOST_BYTES).decode()
    except (OSError, UnicodeDecodeError) as error:
        inside = sorted(str(path.parent) for path in folder.glob("*/config.yaml"))
        advice = f"runs in it: {', '.join(inside)}" if inside else "runs are in runs/<name>"
        raise InputError(f"{folder}: the folder of a run expected, no config.yaml found in it; {advice}") from error
    metrics = read_metrics(folder / "metrics.jsonl")
    if not metrics:
        raise InputError(f"{folder / 'metrics.jsonl'}: a logged step expected, none found yet; let the run continue")
    newest = latest(folder / "checkpoints")
    state = read_state(newest) if newest else {}
    return Run(
        folder=folder,
        config=config,
        metrics=metrics,
        evaluations=read_evaluations(folder / "evaluation.json"),
        recipe=plain_facts(state, "recipe"),
        began=plain_facts(state, "init"),
    )


def write_report(folder: Path) -> Path:
    """Write `<folder>/report.md`, and report.html beside it; the path of the first. InputError: no run there."""
    run = read_run(folder)
    sections = {
        "What ran": [what_ran(run)],
        "Did it run right?": did_it_run_right(run),
        "Did it learn?": did_it_learn(run),
    }
    lines = [f"# {run.folder.resolve().name}", ""]
    for heading, tables in sections.items():
        lines += [f"## {heading}", ""]
        for table in tables:
            lines += [as_markdown(table), ""]
    lines += ["## Configuration", "", "```yaml", run.config.rstrip("\n"), "```", ""]
    path = folder / "report.md"
    write_atomically(path, "\n".join(lines).encode())
    _write_html(run, sections)
    return path


def _write_html(run: Run, sections: Mapping[str, Sequence[TextTable]]) -> None:
    """report.html: the same tables with the curves of the run and its last pictures."""
    charts = run_charts(run.metrics)
    what, right, learnt = sections.items()
    strips, seen = last_pictures(run.folder)
    firing = run.metrics[-1].get("alarms") or ()
    last = run.metrics[-1]
    write_page(
        run.folder / "report.html",
        title=run.folder.resolve().name,
        subtitle="A run of hjepa-train, from the files of its folder.",
        numbers=[
            ("steps", count(last["step"] + 1), False),
            ("images", count(last.get("position")), False),
            ("images/s", number(_summary(median, run.metrics, "images_per_s"), 1), False),
            ("loss", number(_first(row.get("loss") for row in reversed(run.metrics)), 3), False),
            ("alarms at the end", ", ".join(firing) or without_alarms(run), bool(firing)),
        ],
        sections=[
            Section(heading=right[0], charts=charts["learning"] + charts["sources"], tables=right[1]),
            Section(heading=learnt[0], charts=_confusions(run), tables=learnt[1]),
            *([Section(heading="Pictures", note=seen, strips=strips)] if seen else []),
            Section(heading=what[0], charts=charts["pace"], tables=what[1]),
            Section(heading="Configuration", text=run.config.splitlines()),
        ],
    )


def what_ran(run: Run) -> TextTable:
    last = run.metrics[-1]
    facts = {
        "steps, up to the last log point": count(last["step"] + 1),
        **{
            f"extended after step {count(one['at'])}": f"{count(one['before'])} -> {count(one['after'])} steps"
            for one in last.get(EXTENDED) or ()
        },
        "images": count(last.get("position")),
        "images/s (median)": number(_summary(median, run.metrics, "images_per_s"), 1),
        "time spent waiting for data": percent(_summary(fmean, run.metrics, "data_wait")),
        "share of the device's peak FLOP/s (median MFU)": percent(_summary(median, run.metrics, "mfu")),
        **({"begun with the weights of": _began(run.began)} if run.began else {}),
        **{name.replace("_", " "): str(value) for name, value in run.recipe.items()},
    }
    return TextTable(title="Run", columns=("", "value"), rows=tuple(facts.items()))


def _began(facts: Mapping[str, Any]) -> str:
    return f"{facts.get('source', NOTHING)} (digest {facts.get('digest', NOTHING)})"


def did_it_run_right(run: Run) -> list[TextTable]:
    """Shares of the sources; the signals of learning at start and end; alarms; the order proof."""
    return [_shares(run), _signals(run), _alarms(run)]


def did_it_learn(run: Run) -> list[TextTable]:
    """A table for each evaluation: every row that was probed, whichever wins."""
    if not run.evaluations:
        note = f"Not evaluated yet: `hjepa-train eval {run.folder} --source NAME`."
        return [TextTable(title="Probes", columns=(), rows=(), note=note)]
    return [table for evaluation in run.evaluations for table in (probed([evaluation]), *_classes(evaluation))]


def _confusions(run: Run) -> list[Chart]:
    """Of each evaluation of a run that classifies."""
    return [
        confusion_chart(f"{one['source']} ({one['split']})", one["confusion"]["names"], one["confusion"]["counts"])
        for one in run.evaluations
        if one.get("confusion")
    ]


def _classes(evaluation: dict[str, Any]) -> list[TextTable]:
    """How right the run's own classifier is about each class; none where it has none."""
    found = evaluation.get("classes")
    if not found:
        return []
    rows = sorted(found, key=lambda row: row["right"])
    return [
        TextTable(
            title=f"{evaluation['source']} ({evaluation['split']}): the run's own classifier, class by class",
            columns=("class", "images", "percent right", "most often taken for", "images of it"),
            rows=tuple(
                (
                    *(row["class"], count(row["images"]), number(row["right"], 1)),
                    *(row.get("taken_for", NOTHING), count(row.get("times"))),
                )
                for row in rows
            ),
            note="The hardest first.",
        )
    ]


def probed(evaluations: Sequence[dict[str, Any]]) -> TextTable:
    """One table of one or more evaluations; a column for each probe that any of them has."""
    columns = [key for key in _PROBE_NAMES if any(key in row for one in evaluations for row in one["rows"])]
    names = [f"{one['source']} ({one['split']})" for one in evaluations]
    rows: list[tuple[str, ...]] = []
    notes: list[str] = []
    for name, one in zip(names, evaluations, strict=True):
        before = f"{name}: " if len(evaluations) > 1 else ""
        chance = number(one["chance"], 1)
        chances = [NOTHING if key == "own_top5" else chance for key in columns]
        cells = [chances] + [[number(row.get(key), 1) for key in columns] for row in one["rows"]]
        for row, numbers in zip([{"features": "chance"}, *one["rows"]], cells, strict=True):
            chosen = [f"{row['l2']:.0e}" if "l2" in row else NOTHING] if "linear" in columns else []
            rows.append((before + row["features"], count(row.get("dims")), *numbers, *chosen))
        about = f"Bank {count(one['bank'])}, test {count(one['test'])}; chance: its commonest class"
        notes.append(before + about)
        notes += [before + note for note in _about_classes(one)]
    return TextTable(
        title="Percent right" if len(evaluations) > 1 else f"{names[0]}, percent right",
        columns=(
            *("features", "dims", *(_PROBE_NAMES[key] for key in columns)),
            *(["L2"] if "linear" in columns else []),
        ),
        rows=tuple(rows),
        note="\n".join(notes),
    )


def _about_classes(evaluation: dict[str, Any]) -> Iterator[str]:
    """Images without a label, images of the test whose classes the bank does not have, and what became of them."""
    if unlabelled := evaluation.get("unlabelled"):
        of = " and ".join(f"{count(images)} of the {part}" for part, images in unlabelled.items() if images)
        yield f"Images without a label, left out: {of}"
    for key, what in (
        ("left_out", "left out of the score, of {} that train does not have"),
        ("unseen", "counted as wrong, of {} without an image in this bank, which a larger one has"),
    ):
        if apart := evaluation.get(key):
            classes = counted(len(apart["classes"]), "class", "classes")
            names = listed(list(map(repr, apart["classes"])), most=5)
            yield f"{count(apart['images'])} images of the test {what.format(classes)}: {names}"


def signals(run: Run) -> dict[str, tuple[str, str]]:
    """Key of the journal -> (kind, name) of the signals of learning that the run has; one key a level."""
    found: dict[str, tuple[str, str]] = {}
    for key in dict.fromkeys(key for row in run.metrics for key in row):
        kind, _, level = key.partition("_l") if key[-1:].isdigit() else (key, "", "")
        if kind in _SIGNAL_NAMES:
            found[key] = kind, _SIGNAL_NAMES[kind] + (f", level {level}" if level else "")
    return found


def last_values(run: Run) -> dict[str, float | None]:
    """Key of the journal -> the last value, of every signal of learning."""
    return {key: _first(row.get(key) for row in reversed(run.metrics)) for key in signals(run)}


def alarm_steps(run: Run) -> dict[str, list[int]]:
    """Alarm -> the steps of the log points that it was on at."""
    fired: dict[str, list[int]] = {}
    for row in _log_points(run):
        for name in row.get("alarms") or ():
            fired.setdefault(name, []).append(row["step"])
    return fired


def alarms_judged(run: Run) -> list[str]:
    """The alarms whose signals the run has: all of H-JEPA's, some or none of another objective's."""
    kinds = {kind for kind, _ in signals(run).values()}
    return [name for name, needed in JUDGED_ON.items() if kinds.intersection(needed)]


def without_alarms(run: Run) -> str:
    """What to say in place of alarms where none is on."""
    if not alarms_judged(run):
        return "this objective has none"
    return "none" if _is_judged(run) else "not judged yet"


def _log_points(run: Run) -> list[dict[str, Any]]:
    """Without the line that a run leaves when it is stopped between two of them, on which nothing was judged."""
    return [row for row in run.metrics if not row.get(STOPPED)]


def _shares(run: Run) -> TextTable:
    last = run.metrics[-1]
    rows = [
        (
            name,
            count(source.get("count")),
            percent(source.get("share")),
            percent(source.get("target")),
            number(source.get("passes"), 2),
            number(_first(_source_losses(run, name)), 4),
            number(_first(reversed(_source_losses(run, name))), 4),
        )
        for name, source in sorted(last.get("sources", {}).items())
    ]
    return TextTable(
        title="Sources",
        columns=("source", "images", "share", "target", "passes", "loss at start", "at end"),
        rows=tuple(rows),
        note=f"After step {count(last['step'] + 1)}. Order proof after {count(last.get('position'))} images: "
        f"{last.get('proof', NOTHING)}",
    )


def digits_of(key: str) -> int:
    """After the point: what is percent of some thousand images has no more."""
    return 1 if key.startswith(("knn_", "ridge_", "own_")) else 3


def _signals(run: Run) -> TextTable:
    rows: list[tuple[str, ...]] = []
    for key, (kind, name) in signals(run).items():
        values = [row.get(key) for row in run.metrics]
        start, end = (number(_first(column), digits_of(key)) for column in (values, reversed(values)))
        rows.append((name, start, end, _ALARM_WHEN.get(kind, NOTHING)))
    cap, first = _first(row.get("rankme_cap") for row in run.metrics), run.metrics[0]["step"]
    notes = [
        f"RankMe is at most {number(cap, 0)} here." if cap is not None else "",
        f"The log begins at step {count(first)}, what was before it is missing: start is that step's." if first else "",
    ]
    return TextTable(
        title="Signals",
        columns=("", "start", "end", "alarm when"),
        rows=tuple(rows),
        note=" ".join(filter(None, notes)),
    )


def _is_judged(run: Run) -> bool:
    """Whether alarms had log points enough to be judged by."""
    return sum(row.get("judged", True) for row in _log_points(run)) >= 3


def _alarms(run: Run) -> TextTable:
    fired = alarm_steps(run)
    points = _log_points(run)
    rows = [
        (name, count(steps[0]), count(steps[-1]), f"{len(steps)} of {len(points)}") for name, steps in fired.items()
    ]
    return TextTable(
        title="Alarms",
        columns=("alarm", "first at step", "last at step", "log points"),
        rows=tuple(rows),
        note=_about_alarms(run, bool(fired)),
    )


def _about_alarms(run: Run, any_fired: bool) -> str:
    """Never that all is well where nothing was judged."""
    judged = alarms_judged(run)
    if any_fired and len(judged) == len(JUDGED_ON):
        return ""
    if not judged:
        return "This objective has no alarms: they judge signals that it does not have, so nothing was judged here."
    alone = "" if len(judged) == len(JUDGED_ON) else f" Judged for this objective: {', '.join(judged)}; no other alarm."
    if any_fired:
        return alone.strip()
    return ("None fired." if _is_judged(run) else "Not judged yet: that takes 3 log points after warm-up.") + alone


def read_evaluations(path: Path) -> list[dict[str, Any]]:
    """The evaluations in a run's file, none where there is no file. InputError where it holds anything else."""
    try:
        content = json.loads(read_regular(path, _MOST_BYTES), parse_constant=_no_number)
    except FileNotFoundError:
        return []
    except (OSError, ValueError, RecursionError) as error:
        said = "nested too deeply" if isinstance(error, RecursionError) else " ".join(str(error).split())[:200]
        raise InputError(f"{path}: JSON expected: {said}; evaluate the run again") from error
    for entry in content if isinstance(content, list) else [content]:
        fields = entry if isinstance(entry, dict) else {}
        missing = [name for name in _EVALUATION if name not in fields]
        wrong = missing or [name for name, fits in _EVALUATION.items() if not fits(fields[name])]
        wrong = wrong or [name for name in ("left_out", "unseen") if not _is_apart(fields.get(name))]
        wrong = wrong or ["unlabelled"] * (not _are_counts(fields.get("unlabelled", {})))
        wrong = wrong or ["confusion"] * (not _is_confusion(fields.get("confusion")))
        wrong = wrong or ["classes"] * (not all(map(_is_class, fields.get("classes") or [])))
        if wrong:
            raise InputError(
                f"{path}: evaluations with {', '.join(sorted(_EVALUATION))} expected, one without "
                f"{', '.join(sorted(wrong))} found; evaluate the run again"
            )
    return content


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 2**53


def _is_row(row: Any) -> bool:
    return (
        isinstance(row, dict)
        and isinstance(row.get("features"), str)
        and all(value is None or _is_number(value) for key, value in row.items() if key != "features")
    )


def _is_confusion(value: Any) -> bool:
    """Names of classes and pairs of their numbers, or nothing."""
    if not value:
        return True
    if not isinstance(value, dict) or not isinstance(value.get("names"), list):
        return False
    names, counts = value["names"], value.get("counts")
    return (
        all(isinstance(name, str) for name in names)
        and isinstance(counts, list)
        and all(isinstance(one, list) and len(one) == 3 and all(type(n) is int for n in one) for one in counts)
        and all(0 <= number < len(names) for one in counts for number in one[:2])
        and all(0 < one[2] < 2**53 for one in counts)
    )


def _is_class(row: Any) -> bool:
    """A row of `classes`."""
    if not isinstance(row, dict) or not {"class", "images", "right"} <= row.keys():
        return False
    names = [row[key] for key in ("class", "taken_for") if key in row]
    numbers = [row[key] for key in ("images", "right", "times") if key in row]
    return all(isinstance(name, str) for name in names) and all(map(_is_number, numbers))


def _are_counts(value: Any) -> bool:
    """Images of bank and test, or nothing."""
    return isinstance(value, dict) and value.keys() <= {"bank", "test"} and all(map(_is_number, value.values()))


def _is_apart(value: Any) -> bool:
    """Images of some classes, or nothing."""
    if not value:
        return True
    names = value.get("classes") if isinstance(value, dict) else None
    return isinstance(names, list) and all(isinstance(name, str) for name in names) and _is_number(value.get("images"))


_EVALUATION: dict[str, Callable[[Any], bool]] = {
    "source": lambda value: isinstance(value, str),
    "split": lambda value: isinstance(value, str),
    "bank": _is_number,
    "test": _is_number,
    "chance": _is_number,
    "rows": lambda value: isinstance(value, list) and all(map(_is_row, value)),
}


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number in JSON")


def _source_losses(run: Run, name: str) -> Sequence[float | None]:
    return [row.get("sources", {}).get(name, {}).get("loss") for row in run.metrics]


def _summary(how: Any, rows: list[dict[str, Any]], key: str) -> float | None:
    values = [row[key] for row in rows if row.get(key) is not None]
    return how(values) if values else None


def _first(values: Iterable[float | None]) -> float | None:
    return next((value for value in values if value is not None), None)
