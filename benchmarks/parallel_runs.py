"""Runs on CIFAR-10 in processes of their own, some at a time: what the benchmarks of learning share."""

import argparse
import datetime
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from hjepa_shards import build
from hjepa_train.checkpoints.checkpoint_files import recipe_facts


def parser_of(doc: str | None, runs: str) -> argparse.ArgumentParser:
    """doc: the script's docstring.  runs: where its runs are by default."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", type=Path, help="folder of the raw CIFAR-10")
    parser.add_argument("--out", type=Path, default=Path("data/shards"))
    parser.add_argument("--runs", type=Path, default=Path(runs))
    parser.add_argument("--parallel", type=int, default=2, help="runs at a time, one thread each")
    parser.add_argument("--job", nargs=2, metavar=("VARIANT", "SEED"), help="only this one, in this process")
    return parser


def is_job(arguments: argparse.Namespace, run_one: Callable[[str, int, Path, Path], None]) -> bool:
    """Whether this process is to do one run; then it is done, on one thread. run_one: (variant, seed, shards, runs)."""
    if not arguments.job:
        return False
    torch.set_num_threads(1)
    run_one(arguments.job[0], int(arguments.job[1]), arguments.out, arguments.runs)
    return True


def run_all(
    jobs: Sequence[tuple[str, int]],
    arguments: argparse.Namespace,
    folder_of: Callable[[Path, str, int], Path],
    last: str,
) -> None:
    """Each of the jobs, but those whose folder has the file `last` already. What one says is in <folder>.log."""
    build("cifar10", raw=arguments.raw, out=arguments.out)

    def run(job: tuple[str, int]) -> None:
        folder = folder_of(arguments.runs, *job)
        if (folder / last).exists():
            return
        command = [sys.executable, sys.argv[0], "--job", job[0], str(job[1])]
        command += ["--out", str(arguments.out), "--runs", str(arguments.runs)]
        folder.parent.mkdir(parents=True, exist_ok=True)
        with Path(f"{folder}.log").open("w") as log:
            subprocess.run(command, check=True, stdout=log, stderr=log)

    with ThreadPoolExecutor(arguments.parallel) as pool:
        list(pool.map(run, jobs))


def write_results(name: str, content: dict[str, Any]) -> None:
    """benchmarks/results/<name>_cpu_<date>.json, with the machine."""
    facts = recipe_facts(device=torch.device("cpu"), world_size=1, eager=True) | {"threads": 1}
    path = Path("benchmarks/results") / f"{name}_cpu_{datetime.date.today().isoformat()}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({"hardware": facts, **content}, indent=1) + "\n")
    print(f"written to {path}")
