"""metrics.jsonl: one JSON object for each step that was logged, and nothing else.

A line is appended in one write, so a kill leaves at most one half-written line, always the last: reading
drops it. On resume the file is cut back to the checkpoint's step, so each step is in it once, whatever was
killed in between. JSON has no NaN: a number that is not finite is written as null.

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
"""

import json
import math
import os
from pathlib import Path
from typing import Any

from hjepa_shards.base.atomic_files import write_atomically
from hjepa_shards.base.regular_files import regular_descriptor
from hjepa_shards.errors import InputError


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
    """Keep only the rows up to and with `step`, to the byte. Returns the number of lines dropped."""
    if not path.exists():
        return 0
    num_lines = len(path.read_bytes().splitlines())
    kept = [line for line, row in _lines(path) if row["step"] <= step]
    write_atomically(path, b"".join(line + b"\n" for line in kept))
    return num_lines - len(kept)


def _lines(path: Path) -> list[tuple[bytes, dict[str, Any]]]:
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file; is {path.parent} the folder of a run that logged a step?") from error
    rows: list[tuple[bytes, dict[str, Any]]] = []
    for number, line in enumerate(lines, start=1):
        try:
            row = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                break
            raise InputError(
                f"{path}:{number}: a JSON object expected, {line[:40]!r} found; "
                "delete the line, or everything from it on and resume the run"
            ) from error
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            raise InputError(f"{path}:{number}: an object with a whole number `step` expected, {line[:40]!r} found")
        rows.append((line, row))
    return rows


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
