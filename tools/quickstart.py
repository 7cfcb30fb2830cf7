"""The main job on real images, offline: build, plan, train, kill -9 half-way, resume, evaluate, two tables.

Every step is a command that you can type yourself; the script prints it before it runs it.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from hjepa_train.base.metrics_file import read_metrics
from hjepa_train.checkpoints.checkpoint_files import latest, read_state
from hjepa_train.reports.run_report import read_run
from hjepa_train.reports.text_table import TextTable, as_rich

CONFIG = Path("configs/quickstart.yaml")
RUN = Path("runs/quickstart")
KILL_AFTER_STEP = 320
"""Half-way, and some logged steps after a checkpoint, so that there is something to compare."""
BIN = Path(sys.executable).parent

console = Console(width=None if sys.stdout.isatty() else 120)


def main() -> None:
    began = time.monotonic()
    for source in ("digits", "photos", "scattered"):
        run("hjepa-shards", "build", source)
    run("hjepa-shards", "plan", str(CONFIG))
    shutil.rmtree(RUN, ignore_errors=True)
    before = killed("hjepa-train", "run", str(CONFIG))
    saved = latest(RUN / "checkpoints")
    assert saved, "it was killed after a checkpoint"
    ran_twice = [row for row in before if row["step"] >= read_state(saved)["step"]]
    run("hjepa-train", "run", str(CONFIG), "--resume", "auto")
    for source in ("digits", "scattered"):
        run("hjepa-train", "eval", str(RUN), "--source", source)
    console.rule()
    finished = read_run(RUN)
    console.print(as_rich(did_it_run_right(finished.metrics, ran_twice)))
    console.print(as_rich(did_it_learn(finished.evaluations)))
    console.print(f"run          {RUN}\nreport       {RUN / 'report.md'}, report.html")
    console.print(f"tensorboard  {BIN / 'tensorboard'} --logdir {RUN / 'tensorboard'}")
    console.print(f"all of it took {time.monotonic() - began:.0f} s")


def run(*command: str) -> None:
    announce(command)
    subprocess.run([BIN / command[0], *command[1:]], check=True)


def killed(*command: str) -> list[dict[str, Any]]:
    """Start a run and kill it with -9 after KILL_AFTER_STEP. Returns what it had logged."""
    announce(command)
    process = subprocess.Popen([BIN / command[0], *command[1:]], start_new_session=True)
    journal = RUN / "metrics.jsonl"
    while process.poll() is None:
        if journal.exists() and any(row["step"] >= KILL_AFTER_STEP for row in read_metrics(journal)):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            logged = read_metrics(journal)
            console.print(f"\n[bold]kill -9[/bold] after step {logged[-1]['step']}")
            return logged
        time.sleep(0.2)
    raise SystemExit(f"the run ended with code {process.returncode} before it could be killed")


def announce(command: tuple[str, ...]) -> None:
    console.print(f"\n[bold]$ {' '.join(command)}[/bold]")


def did_it_run_right(metrics: list[dict[str, Any]], ran_twice: list[dict[str, Any]]) -> TextTable:
    """Speed, shares, signals, and whether the steps that ran twice (before the kill and after) are equal to the bit."""
    first, last = metrics[0], metrics[-1]
    speeds = sorted(row["images_per_s"] for row in metrics[1:])
    after = {row["step"]: row["loss"] for row in metrics}
    equal = [row["loss"] == after[row["step"]] for row in ran_twice]
    alarms = {name for row in metrics for name in row["alarms"]}
    rows = [
        ("images/s (median)", f"{speeds[len(speeds) // 2]:,.0f}"),
        ("time spent waiting for data", f"{sum(row['data_wait'] for row in metrics) / len(metrics):.1%}"),
        *(
            (f"share of {name} (target)", f"{source['share']:.2%} ({source['target']:.2%})")
            for name, source in last["sources"].items()
        ),
        ("ρ, start -> end (below 1: it uses the image)", f"{first['rho_l0']:.3f} -> {last['rho_l0']:.3f}"),
        ("gap, start -> end (above 0: it distinguishes images)", f"{first['gap_l0']:.3f} -> {last['gap_l0']:.3f}"),
        ("alarms", ", ".join(sorted(alarms)) or "none"),
        ("resumed exactly", f"yes ({len(equal)} losses logged twice are equal)" if all(equal) else "NO"),
    ]
    return TextTable(title="Did it run right?", columns=("", "value"), rows=tuple(rows))


def did_it_learn(evaluations: list[dict[str, Any]]) -> TextTable:
    """Linear probe and k-NN of every row on every source, percent right."""
    columns, cells = ["features"], {"chance": [], **{row["features"]: [] for row in evaluations[0]["rows"]}}
    for evaluation in evaluations:
        columns += [f"{evaluation['source']}: linear", "k-NN"]
        cells["chance"] += [f"{evaluation['chance']:.1f}"] * 2
        for row in evaluation["rows"]:
            cells[row["features"]] += [f"{row['linear']:.1f}", f"{row['knn']:.1f}"]
    note = (
        "Percent right on images never trained on. Raw pixels solve centred digits, and no encoder of this size and "
        "budget beats that; at random locations on photographs they stop working."
    )
    rows = tuple((name, *values) for name, values in cells.items())
    return TextTable(title="Did it learn?", columns=tuple(columns), rows=rows, note=note)


if __name__ == "__main__":
    main()
