"""What a bench found, to be read: tables for the terminal and Markdown, a page with curves, JSON with every digit.

    <out>/train_<run>_<hardware>_<date>.json  .md  .html

Two or more of the JSON files compare: a row a number, a column a file, and the settings and versions that differ.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, quantiles
from typing import Any

from hjepa_shards.base.atomic_files import write_atomically
from hjepa_shards.base.shown_text import significant
from hjepa_shards.config import flatten
from hjepa_shards.errors import InputError
from hjepa_shards.reports.svg_bars import stacked_bar
from hjepa_shards.reports.svg_curves import Curve, line_chart
from hjepa_train.base.device_peaks import TARGETS_ARE
from hjepa_train.base.phase_clock import PHASES
from hjepa_train.jobs.bench import Bench
from hjepa_train.reports.metric_charts import Chart
from hjepa_train.reports.run_page import Section, write_page
from hjepa_train.reports.text_table import NOTHING, TextTable, as_markdown, count, number, percent

_ENOUGH = 1.2
"""Times as fast as training must the loader be to be no limit."""
_HEADLINES = {
    "images_per_s": ("images/s", 1.0, 1),
    "mfu": ("share of the device's peak FLOP/s, percent", 100.0, 2),
    "data_wait": ("time spent waiting for data, percent", 100.0, 2),
    **{f"phase_medians_s.{phase}": (f"{phase}, ms", 1000.0, 2) for phase in PHASES},
    "loader.loader": ("the loader alone, images/s", 1.0, 0),
    "peak": ("the device at its peak, GFLOP/s", 1e-9, 1),
    "flops_per_image": ("GFLOP an image", 1e-9, 3),
    "peak_memory": ("tensors on the device at most, MiB", 1 / 2**20, 1),
}
"""Key of the JSON file -> (name, factor, digits)."""


def as_tables(found: Bench) -> list[TextTable]:
    """Speed, phases, targets, machine."""
    return [_speed(found), _phases(found), _targets(found), _machine(found)]


def write_bench(found: Bench, out: Path) -> Path:
    """Write `found` into the folder `out`, which is there. Returns the JSON file; .md and .html are beside it."""
    path = out / f"{found.name}.json"
    tables = as_tables(found)
    title = f"{found.run} on {found.hardware}"
    text = "\n\n".join([f"# {title}, {found.date}", *map(as_markdown, tables)]) + "\n"
    write_atomically(path, (json.dumps(found.as_json(), indent=1, default=str) + "\n").encode())
    write_atomically(path.with_suffix(".md"), text.encode())
    speed, phases, targets, machine = tables
    write_page(
        path.with_suffix(".html"),
        title=title,
        subtitle=f"Training steps measured by hjepa-train bench on {found.date}.",
        numbers=[
            ("images/s", number(found.images_per_s, 1), False),
            ("of the device's peak", percent(found.mfu), False),
            ("waits for data", percent(found.data_wait), found.data_wait > 0.1),
            ("the loader alone", number(found.loader.loader, 0), False),
        ],
        sections=[
            Section(heading="How fast", note=what_limits(found), charts=_charts(found), tables=[speed, phases]),
            Section(heading="Beside the targets", tables=[targets]),
            Section(heading="Machine", tables=[machine]),
            Section(heading="Configuration", text=[f"{key}: {value}" for key, value in flatten(found.config).items()]),
        ],
    )
    return path


def make_folder(out: Path) -> None:
    """For results, before anything is measured."""
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{out}: cannot be made: {error.strerror}; choose another --out") from error


def compared(paths: Sequence[Path]) -> list[TextTable]:
    """The numbers of several files side by side, and what differs in their settings and machines."""
    if len(paths) < 2:
        raise InputError(f"--compare {' '.join(map(str, paths))}: two files of results or more expected, one found")
    found = [_read(path) for path in paths]
    rows: list[tuple[str, ...]] = []
    for key, (name, factor, digits) in _HEADLINES.items():
        values = [None if one.get(key) is None else factor * one[key] for one in found]
        first, last = values[0], values[-1]
        ratio = f"{last / first:.2f}x" if first and last is not None else NOTHING
        rows.append((name, *(number(value, digits) for value in values), ratio))
    keys = dict.fromkeys(key for one in found for key in one)
    about = [key for key in keys if key.startswith(("config.", "facts.")) or key in ("hardware", "date", "peak_from")]
    differing = [(key, *(_word(one.get(key)) for one in found)) for key in about]
    differing = [row for row in differing if len(set(row[1:])) > 1]
    columns = ("", *_names(paths))
    return [
        TextTable(title="Speed", columns=(*columns, "last / first"), rows=tuple(rows)),
        TextTable(
            title="What differs",
            columns=columns,
            rows=tuple(differing),
            note="" if differing else "Nothing: the same settings, machine, versions and day.",
        ),
    ]


def what_limits(found: Bench) -> str:
    """In a sentence."""
    times = found.loader.loader / found.images_per_s
    if times < _ENOUGH:
        return (
            f"The data limits: the loader alone delivers {times:.2f} times what training took. "
            f"Its own limit: {found.loader.limit}"
        )
    return (
        f"The device limits: the loader alone delivers {times:,.1f} times what training takes, "
        f"the model gets {found.mfu:.1%} of the device's peak"
    )


def _speed(found: Bench) -> TextTable:
    cuts = quantiles(found.step_s, n=10, method="inclusive")
    rows = {
        f"images/s, of the median of {len(found.step_s)} steps": number(found.images_per_s, 1),
        "images/s, of all of them": number(found.batch / fmean(found.step_s), 1),
        "a step of them in ten to nine of ten, ms": f"{number(1e3 * cuts[0], 2)} to {number(1e3 * cuts[-1], 2)}",
        "time spent waiting for data": percent(found.data_wait),
        f"the loader alone, {found.loader.threads} threads, images/s": number(found.loader.loader, 0),
        "its decoder alone, images/s": number(found.loader.decoder, 0),
        "the device at its peak, images/s": number(found.limit, 1),
        "share of that peak (MFU)": percent(found.mfu),
        "tensors on the device at most": NOTHING
        if found.peak_memory is None
        else f"{found.peak_memory / 2**20:,.1f} MiB",
    }
    return TextTable(
        title=f"{found.run} on {found.hardware}: {count(found.batch)} images a step",
        columns=("", "value"),
        rows=tuple(rows.items()),
        note=f"{what_limits(found)}.\nPeak: {found.peak / 1e9:,.1f} GFLOP/s, {found.peak_from}; "
        f"{significant(found.flops_per_image / 1e9, 4)} GFLOP an image. The first {found.warm_up} steps of a pass do "
        "not count.",
    )


def _phases(found: Bench) -> TextTable:
    total_s = fmean(sum(step.values()) for step in found.phases_s)
    rows = [
        (f"{phase}: {what}", number(1e3 * found.phase_s(phase), 2), percent(_mean_s(found, phase) / total_s))
        for phase, what in PHASES.items()
    ]
    rows.append(("a step (mean)", number(1e3 * total_s, 2), percent(1.0)))
    return TextTable(
        title="A step by its phases",
        columns=("phase", "ms, median", "share of the time"),
        rows=tuple(rows),
        note=f"{len(found.phases_s)} other steps, in which the host waits for the device after each phase.",
    )


def _targets(found: Bench) -> TextTable:
    rows = [
        (
            name + ", this device" * (name == found.hardware),
            f"{low:,} to {high:,}",
            f"{found.images_per_s / low:.2f}x",
            f"{found.loader.loader / high:.1f}x",
        )
        for name, (low, high) in found.targets.items()
    ]
    return TextTable(
        title="The project's targets",
        columns=("device", "images/s", "training here, of the lower", "the loader here, of the upper"),
        rows=tuple(rows),
        note=f"{TARGETS_ARE} What was measured here is {found.hardware}.",
    )


def _machine(found: Bench) -> TextTable:
    rows = tuple((name.replace("_", " "), str(value)) for name, value in found.facts.items())
    return TextTable(title="Hardware and versions", columns=("", "value"), rows=rows)


def _charts(found: Bench) -> list[Chart]:
    """The phases as one bar, and the times of all steps."""
    total_s = sum(sum(step.values()) for step in found.phases_s)
    shares = [(phase, sum(step[phase] for step in found.phases_s) / total_s) for phase in PHASES]
    free = [(index, 1e3 * seconds) for index, seconds in enumerate(found.step_s, start=1)]
    bordered = [(index, 1e3 * sum(step.values())) for index, step in enumerate(found.phases_s, start=1)]
    lines = [
        Curve(name="free", points=free, colour=0),
        Curve(name="by phases", points=bordered, colour=1, dashed=True),
    ]
    return [
        Chart(
            title="where a step goes",
            drawing=stacked_bar(shares, "shares of the phases"),
            key=tuple((phase, index, percent(share)) for index, (phase, share) in enumerate(shares)),
        ),
        Chart(
            title="time of each step",
            drawing=line_chart(
                lines,
                "time of each step",
                x_name="step of the bench",
                y_name="ms",
                show=lambda ms: significant(ms, 4),
                floor=0.0,
            ),
            key=(("free", 0, ""), ("by phases (dashed)", 1, "")),
        ),
    ]


def _read(path: Path) -> dict[str, Any]:
    """A file of results, flat. InputError where it is none."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(
            f"{path}: a file of results expected: {error.strerror}; `hjepa-train bench` writes one"
        ) from error
    except ValueError as error:
        raise InputError(f"{path}: JSON expected: {error}; `hjepa-train bench` writes such files") from error
    flat = flatten(content) if isinstance(content, Mapping) else {}
    missing = [key for key in _HEADLINES if key not in flat]
    if missing:
        raise InputError(f"{path}: results of `hjepa-train bench` expected, none of {missing[0]} found; bench again")
    return flat


def _names(paths: Sequence[Path]) -> list[str]:
    names = [path.stem for path in paths]
    return names if len(set(names)) == len(names) else list(map(str, paths))


def _mean_s(found: Bench, phase: str) -> float:
    return fmean(step[phase] for step in found.phases_s)


def _word(value: Any) -> str:
    return NOTHING if value is None else str(value)
