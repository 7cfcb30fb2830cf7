"""Is a run that was killed thirty times the run that was not? At steps, at its beginning, during a checkpoint.

    python benchmarks/kill_points.py                           # 30 times kill -9, a tiny run on digits
    python benchmarks/kill_points.py --ranks 2,1,4 --kills 8   # torchrun: -9 or SIGTERM, other numbers; --parallel fsdp
    python benchmarks/kill_points.py --family tinyvit          # or supervised: drop path, mixup, erasing, an average

One run in one piece; the same run as real processes that are killed one after the other, each continuing with `--resume
auto`. What a save had written when it was killed is read from the disk afterwards. Every number of metrics.jsonl but
its clock, the order proof and the last model.safetensors must be equal to the bit; over ranks order proofs equal,
losses to 1e-5. Exit code 1 if anything differs.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from hjepa_shards import BuildOptions, build
from hjepa_train.base.metrics_file import read_metrics
from hjepa_train.checkpoints.checkpoint_files import latest, read_state

STAGES = ("folder", "model.safetensors", "optimizer.pt", "state.json", "files.json", "renamed")
"""Of a save, in their order: what has just appeared when the kill is sent."""
MOMENTS = ("step", *STAGES[:3], "step", *STAGES[3:5], "begin", "step", "renamed")
"""Kinds of kill points. step: after a logged step; begin: when a run that continues has cut its journal back."""
STEPS_BETWEEN, SAVE_EVERY = 8, 4
SIGNALS = ("-9 to a rank", "-9 to all", "SIGTERM to a rank", "SIGTERM to the launcher")
"""How ranks are ended; one process is its own launcher."""
CLOCK = ("images_per_s", "data_wait")
_EVERYTHING = {"supervised": {"average": 0.9, "mix": {"mixup": 0.8, "cutmix": 1.0}}}
FAMILIES: dict[str, dict[str, Any]] = {
    "hjepa": {},
    "supervised": {
        "backbone": {"vit": {"width": 64, "depth": 2, "heads": 2, "patch": 4, "drop_path": 0.3, "dropout": 0.1}},
        "objective": _EVERYTHING,
    },
    "tinyvit": {  # with batch normalisation
        "backbone": {"tinyvit": {"depths": [1, 1, 1, 1], "widths": [16, 32, 48, 64], "drop_path": 0.3}},
        "objective": _EVERYTHING,
    },
}
"""What is another than in the tiny run of H-JEPA."""
TOLERANCE = 1e-5


@dataclass(frozen=True, kw_only=True, slots=True)
class Point:
    """When a run is to be killed."""

    step: int
    """once this step is logged"""
    moment: str
    """of MOMENTS"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kill:
    """What a kill found."""

    point: Point
    logged: int
    """the last step in metrics.jsonl, -1 without any"""
    saved: int
    """the step of the newest whole checkpoint, 0 without any"""
    left: str
    """what of a save is on the disk unfinished"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--ranks", help="numbers of processes under torchrun, in turn: 2,1,4")
    parser.add_argument("--parallel", default="ddp", help="how ranks share a model: ddp or fsdp")
    parser.add_argument("--family", default="hjepa", choices=FAMILIES)
    parser.add_argument("--runs", type=Path, default=Path("runs/kill_points"), help="emptied first")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments = parser.parse_args()
    for name in ("whole", "pieces"):
        shutil.rmtree(arguments.runs / name, ignore_errors=True)
    content = tiny(arguments.runs, arguments.kills)
    if arguments.family != "hjepa":
        content |= FAMILIES[arguments.family]
        content["data"] |= {"image_size": 32, "augmentation": {"erase": 0.25, "three_augment": True}}
    content["training"]["parallel"] = arguments.parallel
    whole, pieces = (write_config(content, arguments.runs / name) for name in ("whole", "pieces"))
    run_to_the_end(command(whole), whole)
    num_steps = len(read_metrics(journal_of(whole)))
    points = spread(num_steps, arguments.kills, arguments.seed)
    if arguments.ranks:
        worlds = [int(number) for number in arguments.ranks.split(",")]
        kill_ranks(pieces, points, worlds, random.Random(arguments.seed))
        wrong, largest = compare_ranks(whole, pieces)
        facts: dict[str, Any] = {
            "ranks": worlds,
            "parallel": arguments.parallel,
            "largest_relative_difference_of_a_loss": largest,
        }
    else:
        kills = kill_again_and_again(pieces, points, say=partial(print, flush=True))
        wrong = compare(whole, pieces)
        facts = {"in_a_save": sum(bool(kill.left) for kill in kills)}
    print(json.dumps({"kills": len(points), "steps": num_steps, **facts, "differs": wrong}))
    sys.exit(1 if wrong else 0)


def tiny(folder: Path, kills: int) -> dict[str, Any]:
    """A configuration with some steps between two kills, its shards built from images that come with scikit-learn."""
    root = folder / "shards"
    for source in ("digits", "photos"):
        build(source, raw=None, out=root, splits=("train",), options=BuildOptions(samples_per_shard=40, limit=300))
    return {
        "data": {
            "root": str(root),
            "strategy": "weighted",
            "sources": [{"name": "digits", "weight": 0.75}, {"name": "photos", "weight": 0.25}],
            "epoch_samples": 16 * STEPS_BETWEEN * (kills + 1) // 2,
            "image_size": 16,
            "threads": 2,
        },
        "backbone": {"vit": {"width": 64, "depth": 2, "heads": 2, "patch": 2}},
        "objective": {"hjepa": {"levels": 2, "momentum": 0.8, "predictor": {"width": 32, "depth": 1, "heads": 2}}},
        "training": {"epochs": 2, "global_batch": 16, "save_every_steps": SAVE_EVERY, "ranks_timeout_s": 60}
        | {"device": "cpu", "threads": 1},
    }


def write_config(content: dict[str, Any], folder: Path) -> Path:
    """`folder`/run.yaml of a run in `folder`/run: each step logged, one thread."""
    content = content | {
        "run": {"name": "run", "seed": 0, "folder": str(folder)},
        "logging": {"every_steps": 1, "tensorboard": False},
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def spread(num_steps: int, kills: int, seed: int) -> list[Point]:
    """Kill points over the whole run, one in each equal part of it, at a step and of a kind that the seed decides."""
    moments = [MOMENTS[number % len(MOMENTS)] for number in range(kills)]
    chance = random.Random(seed)
    chance.shuffle(moments)
    parts = [(number * num_steps // (kills + 1), (number + 1) * num_steps // (kills + 1)) for number in range(kills)]
    return [Point(step=chance.randrange(*part), moment=moment) for part, moment in zip(parts, moments, strict=True)]


def command(config: Path, world: int = 1) -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)] if world > 1 else []
    return [sys.executable, *launcher, "-m", "hjepa_train", "run", str(config), "--resume", "auto"]


def journal_of(config: Path) -> Path:
    return config.parent / "run" / "metrics.jsonl"


def checkpoints_of(config: Path) -> Path:
    return config.parent / "run" / "checkpoints"


def run_to_the_end(words: Sequence[str], config: Path) -> None:
    with started(words, config) as process:
        code = process.wait()
    assert code == 0, f"exit code {code}; see {config.parent / 'said'}"


@contextmanager
def started(words: Sequence[str], config: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A run in a session of its own; what it says goes to the file `said`."""
    with (
        (config.parent / "said").open("ab") as said,
        subprocess.Popen(words, stdout=said, stderr=said, start_new_session=True) as process,
    ):
        try:
            yield process
        finally:
            if process.poll() is None:
                for rank in children(process.pid):  # torchrun gives each a session of its own
                    os.kill(rank, signal.SIGKILL)
                os.killpg(process.pid, signal.SIGKILL)


def kill_again_and_again(config: Path, points: Sequence[Point], *, say: Callable[[str], None]) -> list[Kill]:
    """Begin a run, kill it with -9 at each point in turn, and let it finish."""
    kills = []
    for number, point in enumerate(points):
        with started(command(config), config) as process:
            wait_for(point, config, process)
            assert process.poll() is None, f"{point}: the run ended before; see {config.parent / 'said'}"
            os.killpg(process.pid, signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
        kills.append(Kill(point=point, logged=last_logged(config), saved=last_saved(config), left=unfinished(config)))
        say(f"{number + 1:3}  {described(kills[-1])}")
    run_to_the_end(command(config), config)
    return kills


def described(kill: Kill) -> str:
    return (
        f"{kill.point.moment:17}  wanted at step {kill.point.step:4}, logged {kill.logged:4}, saved {kill.saved:4}  "
        f"{kill.left or '-'}"
    )


def wait_for(point: Point, config: Path, process: subprocess.Popen[bytes]) -> None:
    """Until the point is there, or the process has ended."""
    resolved, folder = config.parent / "run" / "config.yaml", checkpoints_of(config)
    if point.moment == "begin":  # config.yaml is written again after the journal
        before = identity(resolved)
        while process.poll() is None and identity(resolved) == before:
            time.sleep(0.001)
        return
    while process.poll() is None and last_logged(config) < point.step:
        time.sleep(0.001)
    if point.moment == "step":
        return
    before = standing(folder)
    while process.poll() is None:
        if point.moment == "renamed":
            if standing(folder) - before:
                return
            continue
        for name in listed(folder):
            inside = folder / name
            if name.endswith(".saving") and (point.moment == "folder" or (inside / point.moment).exists()):
                return


def identity(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except FileNotFoundError:
        return 0, 0
    return found.st_ino, found.st_mtime_ns


def listed(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []


def standing(folder: Path) -> set[str]:
    return {name for name in listed(folder) if name.startswith("step-")}


def last_logged(config: Path) -> int:
    """From the end of the journal, because it is needed often."""
    try:
        with journal_of(config).open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 8192))
            lines = file.read().split(b"\n")[:-1]
    except FileNotFoundError:
        return -1
    return json.loads(lines[-1])["step"] if lines else -1


def last_saved(config: Path) -> int:
    newest = latest(checkpoints_of(config))
    return read_state(newest)["step"] if newest else 0


def unfinished(config: Path) -> str:
    """What a save that was killed left: an unfinished folder and the files in it, or more checkpoints than are kept."""
    folder, keep = checkpoints_of(config), 2
    found = []
    for name in sorted(listed(folder)):
        if name.startswith("."):
            files = sorted((folder / name).iterdir(), key=lambda path: path.stat().st_mtime_ns)
            found.append(f"{name}: {', '.join(f'{path.name} {path.stat().st_size:,}' for path in files) or 'empty'}")
    if len(standing(folder)) > keep:
        found.append(f"{len(standing(folder))} checkpoints, {keep} are kept")
    return "; ".join(found)


def compare(whole: Path, pieces: Path) -> list[str]:
    """What differs by a bit between two finished runs."""
    journals = [
        [{name: value for name, value in row.items() if name not in CLOCK} for row in read_metrics(journal_of(config))]
        for config in (whole, pieces)
    ]
    wrong = [f"step {one['step']}" for one, other in zip(*journals, strict=False) if one != other]
    if len(journals[0]) != len(journals[1]):
        wrong.append(f"{len(journals[0])} and {len(journals[1])} logged steps")
    ends = [latest(checkpoints_of(config)) for config in (whole, pieces)]
    assert all(ends), ends
    first, second = (end for end in ends if end)
    if first.name != second.name or read_state(first)["loader"] != read_state(second)["loader"]:
        wrong.append("the loader's state with its order proof")
    if (first / "model.safetensors").read_bytes() != (second / "model.safetensors").read_bytes():
        wrong.append("model.safetensors")
    return wrong


def kill_ranks(config: Path, points: Sequence[Point], worlds: Sequence[int], chance: random.Random) -> None:
    """Begin a run on the first number of ranks, end it at random at each point, and continue as the next number."""
    kinds = [SIGNALS[number % len(SIGNALS)] for number in range(len(points))]
    chance.shuffle(kinds)
    for number, (point, how) in enumerate(zip(points, kinds, strict=True)):
        world = worlds[number % len(worlds)]
        with started(command(config, world), config) as process:
            wait_for(Point(step=point.step, moment="step"), config, process)
            time.sleep(chance.random() * 0.05)
            assert process.poll() is None, f"{point}: the run ended before; see {config.parent / 'said'}"
            ranks = children(process.pid) if world > 1 else [process.pid]
            assert len(ranks) == world, f"{world} ranks expected, {len(ranks)} found"
            send(how, process.pid, ranks, chance)
            code = process.wait(timeout=120)
            ended = time.monotonic() + 60
            while any(is_alive(rank) for rank in ranks):
                assert time.monotonic() < ended, f"{how}: ranks {ranks} live on"
                time.sleep(0.05)
        print(
            f"{number + 1:3}  {world} ranks, {how:23}  exit code {code:4}, wanted at step {point.step:4}, logged "
            f"{last_logged(config):4}, saved {last_saved(config):4}  {unfinished(config) or '-'}",
            flush=True,
        )
    run_to_the_end(command(config, worlds[len(points) % len(worlds)]), config)


def send(how: str, launcher: int, ranks: Sequence[int], chance: random.Random) -> None:
    """A signal to one rank or to all that was started."""
    number = signal.SIGKILL if how.startswith("-9") else signal.SIGTERM
    if how.endswith("a rank"):
        os.kill(chance.choice(ranks), number)
    elif how == "-9 to all":
        for process in {launcher, *ranks}:
            os.kill(process, number)
    else:
        os.kill(launcher, number)


def children(process: int) -> list[int]:
    """The processes that it started, by Linux's /proc."""
    tasks = Path(f"/proc/{process}/task").glob("*/children")
    return [int(child) for task in tasks for child in task.read_text().split()]


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def compare_ranks(whole: Path, pieces: Path) -> tuple[list[str], float]:
    """(what differs beyond the rounding of sums, the largest relative difference of a loss)"""
    one, other = (read_metrics(journal_of(config)) for config in (whole, pieces))
    wrong = []
    if [(row["step"], row["proof"]) for row in one] != [(row["step"], row["proof"]) for row in other]:
        wrong.append("steps or order proofs")
    apart = [abs(ours["loss"] - theirs["loss"]) / abs(ours["loss"]) for ours, theirs in zip(one, other, strict=False)]
    if max(apart) > TOLERANCE:
        wrong.append(f"losses, first at step {next(step for step, far in enumerate(apart) if far > TOLERANCE)}")
    return wrong, max(apart)


if __name__ == "__main__":
    main()
