"""metrics.jsonl: one JSON object for each step that was logged, and nothing else.

A line is appended in one write, so a kill leaves at most one half-written line, always the last: reading
drops it. On resume the file is cut back to the checkpoint's step, so each step is in it once, whatever was
killed in between. A run that is stopped between two log points logs its last step too, without the numbers
of a diagnosis; on resume that line goes, and the file is that of a run that was never stopped. JSON has
no NaN: a number that is not finite is written as null.

A line's keys:
    step, position              optimizer updates, samples since the run began
    loss, loss_l0 .., lr        l0, l1 ..: one a level
    images_per_s, data_wait     data_wait: share of the time, 0 to 1
    mfu                         model FLOP/s over the device's peak, 0 to 1; only where that is known (device_peaks.py)
    rho_l0 .., gap_l0 .., sd, positional_share, alignment, uniformity, rankme, rankme_cap, grad_norm
    knn_target, ridge_target .. percent right of an encoder's features after this update, where it was probed
    alarms, judged, proof       names of the alarms that fire, whether warm-up is over; the order proof, hex
    sources                     {name: {count, share, target, loss, passes}}; loss is of the steps since
                                the last line, the rest of the run so far (target: what its weights say)
    stopped                     true where there is a line only because the run was stopped there
    extended                    [{at, before, after, warmup}]: steps done when the run was given more, of the whole run
                                before and after, of its warm-up since; only where it was
"""

import json
import math
import os
import re
from pathlib import Path
from typing import Any

from hjepa_shards.base.atomic_files import write_atomically
from hjepa_shards.base.regular_files import read_regular, regular_descriptor
from hjepa_shards.errors import InputError

METRICS_FILE = "metrics.jsonl"
"""In a run's folder."""
STOPPED = "stopped"
EXTENDED = "extended"
_MOST_BYTES = 1 << 32
_MOST = 2**63
_NUMBER = re.compile(
    r"(loss|rho|gap|sd|rankme)(_\w+)?|lr|images_per_s|data_wait|mfu|positional_share|alignment|uniformity|grad_norm|"
    r"(knn|ridge)_\w+"
)
_KINDS = {
    "position": "a whole number",
    "alarms": "a list of names",
    "sources": "numbers by source",
    "judged": "true or false",
    "proof": "a text",
    EXTENDED: "a list of whole numbers by name",
}


def append_metrics(path: Path, row: dict[str, Any]) -> None:
    """`row` as the last line of `path`."""
    line = json.dumps(_finite(row), allow_nan=False) + "\n"
    try:
        descriptor = regular_descriptor(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW)
        try:
            written = os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        raise InputError(f"{path}: cannot be written: {error.strerror}; make room, then resume the run") from error
    if written != len(line.encode()):
        raise InputError(f"{path}: {written} bytes of a line of {len(line)} written; make room, then resume the run")


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The rows of `path`, without the last line if a kill left it half-written."""
    return [row for _, row in _lines(path)]


def truncate_metrics(path: Path, step: int) -> int:
    """Keep only the rows of log points up to and with `step`, to the byte. Returns the number of lines dropped."""
    if not path.exists():
        return 0
    kept = [line for line, row in _lines(path) if row["step"] <= step and not row.get(STOPPED)]
    num_lines = len(read_regular(path, _MOST_BYTES).splitlines())
    write_atomically(path, b"".join(line + b"\n" for line in kept))
    return num_lines - len(kept)


def _lines(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    try:
        lines = read_regular(path, _MOST_BYTES).splitlines()
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; is {path.parent} the folder of a run that logged a step?") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    rows: list[tuple[bytes, dict[str, Any]]] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line, parse_constant=_no_number)
        except (ValueError, RecursionError) as error:
            if number == len(lines):
                break
            raise InputError(
                f"{path}:{number}: a JSON object expected, {line[:40]!r} found; "
                "delete the line, or everything from it on and resume the run"
            ) from error
        if not isinstance(row, dict) or not _is_count(row.get("step")):
            raise InputError(f"{path}:{number}: an object with a whole number `step` expected, {line[:40]!r} found")
        wrong = next((key for key, value in row.items() if not _fits(key, value)), None)
        if wrong is not None:
            raise InputError(
                f"{path}:{number}: {wrong[:40]!r}: {_KINDS.get(wrong, 'a finite number')} expected; delete the line, "
                "or everything from it on and resume the run"
            )
        rows.append((line, row))
    return rows


def _fits(key: str, value: Any) -> bool:
    """Whether a line may have this value. What charts and tables do not know may be anything."""
    if value is None:
        return key != "step"
    if key in ("step", "position"):
        return _is_count(value)
    if key == "alarms":
        return isinstance(value, list) and all(isinstance(name, str) for name in value)
    if key == "sources":
        rows = list(value.values()) if isinstance(value, dict) else [None]
        return all(isinstance(row, dict) and all(map(_is_number, row.values())) for row in rows)
    if key == EXTENDED:
        return isinstance(value, list) and all(
            isinstance(one, dict) and all(_is_count(one.get(name)) for name in ("at", "before", "after"))
            for one in value
        )
    if key in ("judged", "proof"):
        return isinstance(value, bool if key == "judged" else str)
    return _is_number(value) or not _NUMBER.fullmatch(key)


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < _MOST


def _is_number(value: Any) -> bool:
    """Or nothing. Not beyond what a chart or table can show."""
    return value is None or (
        isinstance(value, int | float) and abs(value) < (_MOST if type(value) is int else math.inf)
    )


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no number in JSON")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
