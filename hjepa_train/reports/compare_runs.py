"""Several runs beside each other: what differs in their settings, how they went, how good their features are.

Tables with a column a run, and curves with a line a run over the images seen; as Markdown, as a page and as JSON with
every digit. Losses of different mixtures or recipes are losses of different tasks, which the tables say; probes on the
same images are what compares.

    <out>/comparison.md  comparison.html  comparison.json
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from hjepa_shards.base.atomic_files import write_atomically
from hjepa_shards.config import Strict, flatten, load_yaml, parse
from hjepa_shards.errors import InputError
from hjepa_train.backbones.registry import BACKBONES
from hjepa_train.base.former_defaults import with_missing_keys
from hjepa_train.objectives.registry import OBJECTIVES
from hjepa_train.reports.metric_charts import compared_charts
from hjepa_train.reports.run_page import Section, write_page
from hjepa_train.reports.run_report import (
    Run,
    alarm_steps,
    alarms_judged,
    digits_of,
    last_values,
    read_run,
    signals,
    without_alarms,
)
from hjepa_train.reports.text_table import NOTHING, TextTable, as_markdown, count, number, percent

_NAME = "comparison"
_WITHOUT_WEIGHT = ("run.name", "run.folder", "logging.", "evaluation.", "data.root", "data.threads", "data.cache")
_WITHOUT_WEIGHT += tuple(
    f"training.{name}" for name in ("ranks_timeout_s", "save_every_steps", "keep_checkpoints", "keep_best")
)
"""Settings that change nothing in what is learnt, nor how fast."""
_PROBES = {"linear": "linear", "knn": "k-NN", "knn_centred": "k-NN centred", "knn_whitened": "k-NN whitened"}
_CAUTION = "Losses and signals compare between runs of one mixture and one recipe; between others only the probes do."


def compare(folders: Sequence[Path], out: Path | None = None) -> tuple[Path, list[TextTable]]:
    """Write the comparison of the runs in `folders`. Returns (where to, its tables).

    out: by default the folder `comparison` beside the first run. InputError for a folder that is no run.
    """
    out = out or folders[0].resolve().parent / _NAME
    if len({folder.resolve() for folder in folders}) < len(folders):
        raise InputError(f"{', '.join(map(str, folders))}: each run once expected; remove what is there twice")
    if (out / "config.yaml").exists():
        raise InputError(f"{out}: a folder for the comparison expected, that of a run found; choose another --out")
    runs = _named([read_run(folder) for folder in folders])
    settings = _differences({name: _settings(run) for name, run in runs.items()})
    tables = [_settings_table(runs, settings), _training_table(runs), *_probe_tables(runs)]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be made: {error.strerror}; choose another --out") from error
    title = " and ".join(runs) if len(runs) < 4 else f"{len(runs)} runs"
    text = "\n\n".join([f"# {title}", *map(as_markdown, tables)]) + "\n"
    write_atomically(out / f"{_NAME}.md", text.encode())
    facts = {"runs": [_facts(name, run) for name, run in runs.items()], "differences": settings}
    write_atomically(out / f"{_NAME}.json", (json.dumps(facts, indent=1, default=str) + "\n").encode())
    write_page(
        out / f"{_NAME}.html",
        title=title,
        subtitle="Runs of hjepa-train beside each other.",
        numbers=[("runs", str(len(runs)), False), ("settings that differ", str(len(settings)), False)],
        sections=[
            Section(heading="Settings that differ", tables=tables[:1]),
            Section(
                heading="How they went",
                charts=compared_charts({name: run.metrics for name, run in runs.items()}),
                tables=tables[1:2],
            ),
            Section(heading="What they learnt", tables=tables[2:]),
        ],
    )
    return out, tables


def _settings_table(runs: Mapping[str, Run], settings: Mapping[str, Sequence[Any]]) -> TextTable:
    rows = tuple((key, *map(_word, values)) for key, values in settings.items())
    note = "" if rows else "None differs (names, folders, logging and evaluation aside)."
    return TextTable(title="Settings that differ", columns=("", *runs), rows=rows, note=note)


def _training_table(runs: Mapping[str, Run]) -> TextTable:
    last = {name: run.metrics[-1] for name, run in runs.items()}
    finals = [last_values(run) for run in runs.values()]
    names = {key: name for run in runs.values() for key, (_, name) in signals(run).items()}
    rows = [
        ("steps", *(count(row["step"] + 1) for row in last.values())),
        ("images", *(count(row.get("position")) for row in last.values())),
        ("images/s (median)", *(number(_over(median, run, "images_per_s"), 1) for run in runs.values())),
        ("time spent waiting for data", *(percent(_over(fmean, run, "data_wait")) for run in runs.values())),
    ]
    for key in names:
        rows.append((names[key], *(number(values.get(key), digits_of(key)) for values in finals)))
    for source in sorted({name for row in last.values() for name in row.get("sources") or {}}):
        had = [(row.get("sources") or {}).get(source, {}) for row in last.values()]
        rows.append((f"share of {source}", *(percent(one.get("share")) for one in had)))
        rows.append((f"loss of {source}", *(number(one.get("loss"), 3) for one in had)))
    fired = [alarm_steps(run) for run in runs.values()]
    if not any(fired):
        rows.append(("alarms", *map(without_alarms, runs.values())))
    judged = [alarms_judged(run) for run in runs.values()]
    for alarm in dict.fromkeys(name for steps in fired for name in steps):
        spans = (_span(steps.get(alarm), alarm in names) for steps, names in zip(fired, judged, strict=True))
        rows.append((f"alarm: {alarm}", *spans))
    return TextTable(title="At the last log point", columns=("", *runs), rows=tuple(rows), note=_CAUTION)


def _probe_tables(runs: Mapping[str, Run]) -> list[TextTable]:
    """One table a source and split that any run was evaluated on."""
    found: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for name, run in runs.items():
        for evaluation in run.evaluations:
            found.setdefault((evaluation["source"], evaluation["split"]), {})[name] = evaluation
    if not found:
        note = "None of them was evaluated yet: `hjepa-train eval RUN --source NAME`, with the same source for all."
        return [TextTable(title="Probes", columns=(), rows=(), note=note)]
    return [_probes(f"{source} ({split}), percent right", runs, of_run) for (source, split), of_run in found.items()]


def _probes(title: str, runs: Mapping[str, Run], evaluations: Mapping[str, Mapping[str, Any]]) -> TextTable:
    probed = {name: {row["features"]: row for row in one["rows"]} for name, one in evaluations.items()}
    rows = [("chance", *(number(evaluations[name]["chance"], 1) if name in probed else NOTHING for name in runs))]
    for features in dict.fromkeys(key for rows_of in probed.values() for key in rows_of):
        for key, words in _PROBES.items():
            values = (probed.get(name, {}).get(features, {}).get(key) for name in runs)
            rows.append((f"{features}, {words}", *(number(value, 1) for value in values)))
    sizes = {(one["bank"], one["test"]) for one in evaluations.values()}
    note = "; ".join(f"bank {count(bank)}, test {count(test)}" for bank, test in sorted(sizes))
    if len({one.get("protocol", 1) for one in evaluations.values()}) > 1:
        note += "; not scored by the same rules, evaluate all of them again to compare"
    if len(sizes) > 1:
        note += ": not the same images, evaluate them with the same --bank and --test to compare"
    return TextTable(title=title, columns=("", *runs), rows=tuple(rows), note=note)


def _facts(name: str, run: Run) -> dict[str, Any]:
    """A run in comparison.json."""
    last = run.metrics[-1]
    return {
        "name": name,
        "folder": str(run.folder),
        "steps": last["step"] + 1,
        "images": last.get("position"),
        "images_per_s": _over(median, run, "images_per_s"),
        "data_wait": _over(fmean, run, "data_wait"),
        "final": last_values(run),
        "sources": last.get("sources"),
        "alarms": {alarm: {"first": steps[0], "last": steps[-1]} for alarm, steps in alarm_steps(run).items()},
        "alarms_at_the_end": list(last.get("alarms") or ()),
        "order_proof": last.get("proof"),
        "evaluations": run.evaluations,
        "recipe": run.recipe,
    }


def _settings(run: Run) -> dict[str, Any]:
    """The run's configuration, flat; what a backbone or an objective leaves to its defaults is filled in."""
    content = with_missing_keys(load_yaml(run.folder / "config.yaml"))
    for section, rooms in (("backbone", BACKBONES), ("objective", OBJECTIVES)):
        content = content | {section: _filled(content.get(section), rooms)}
    flat = flatten(content)
    if isinstance(sources := flat.get("data.sources"), list):
        flat["data.sources"] = ", ".join(map(_source, sources))
    return flat


def _filled(chosen: Any, rooms: Mapping[str, tuple[type[Strict], Any]]) -> Any:
    """With defaults, where this version knows the name and the keys; else as it is."""
    if not isinstance(chosen, Mapping):
        return chosen
    filled: dict[str, Any] = dict(chosen)
    for name, content in chosen.items():
        try:
            filled[name] = parse(rooms[name][0], content or {}, name).model_dump(mode="json")
        except (KeyError, InputError):
            continue
    return filled


def _source(source: Any) -> str:
    if not isinstance(source, Mapping):
        return str(source)
    usual = {"name": source.get("name"), "weight": source.get("weight"), "split": "train", "entry": None}
    rest = [f"{key} {value}" for key, value in source.items() if key not in usual or value != usual[key]]
    return " ".join([str(source.get("name")), _word(source.get("weight")), *(f"({part})" for part in rest)])


def _differences(settings: Mapping[str, Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Key -> its value in each run (None: not there), where they are not all the same."""
    keys = dict.fromkeys(key for flat in settings.values() for key in flat if not key.startswith(_WITHOUT_WEIGHT))
    values = {key: [flat.get(key) for flat in settings.values()] for key in keys}
    return {key: row for key, row in values.items() if any(value != row[0] for value in row)}


def _span(steps: Sequence[int] | None, is_judged: bool) -> str:
    """is_judged: whether the run's objective has that alarm."""
    return f"steps {count(steps[0])} to {count(steps[-1])}" if steps else "no" if is_judged else "not one of its alarms"


def _named(runs: Sequence[Run]) -> dict[str, Run]:
    """By the names of their folders, or by their paths where names are the same."""
    names = [run.folder.resolve().name for run in runs]
    if len(set(names)) < len(names):
        names = [str(run.folder) for run in runs]
    return dict(zip(names, runs, strict=True))


def _over(how: Any, run: Run, key: str) -> float | None:
    values: Iterable[float] = [row[key] for row in run.metrics if row.get(key) is not None]
    return how(values) if values else None


def _word(value: Any) -> str:
    return NOTHING if value is None else f"{value:g}" if isinstance(value, float) else str(value)
