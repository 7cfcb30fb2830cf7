"""Is a run that was killed with -9 the run that was not? On CIFAR-10, at random steps, to the last bit.

    python benchmarks/resume.py --raw data/raw/cifar10 [--kills 5]

Runs configs/cifar10_cpu.yaml (shortened) once in one piece and once killed at random moments and resumed each time,
then compares the loss column and the order proofs of the two metrics.jsonl. Exit code 1 if anything differs.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import yaml

from hjepa_shards import build
from hjepa_train.journal import read_metrics

CONFIG = Path("configs/cifar10_cpu.yaml")
STEPS = 300


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--raw", type=Path)
    parser.add_argument("--out", type=Path, default=Path("data/shards"))
    parser.add_argument("--runs", type=Path, default=Path("runs/resume"))
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    arguments = parser.parse_args()
    build("cifar10", raw=arguments.raw, out=arguments.out)
    whole = write_config(arguments, "whole")
    pieces = write_config(arguments, "pieces")
    subprocess.run(command(whole), check=True, stdout=subprocess.DEVNULL)
    moments = random.Random(arguments.seed)
    num_steps = read_metrics(arguments.runs / "whole" / "metrics.jsonl")[-1]["step"]
    for target in sorted(moments.randrange(1, num_steps) for _ in range(arguments.kills)):
        reached = run_and_kill(command(pieces), arguments.runs / "pieces" / "metrics.jsonl", target)
        print(f"killed behind step {reached} (asked for {target})", flush=True)
    subprocess.run(command(pieces), check=True, stdout=subprocess.DEVNULL)
    columns = [
        [(row["step"], row["loss"], row["proof"]) for row in read_metrics(arguments.runs / name / "metrics.jsonl")]
        for name in ("whole", "pieces")
    ]
    equal = columns[0] == columns[1]
    print(json.dumps({"kills": arguments.kills, "logged_steps": len(columns[0]), "equal": equal}))
    sys.exit(0 if equal else 1)


def write_config(arguments: argparse.Namespace, name: str) -> Path:
    """The CIFAR-10 setting, shortened to STEPS steps, logging each, saving often."""
    content = yaml.safe_load(CONFIG.read_text())
    content["run"] = {"name": name, "seed": 0, "folder": str(arguments.runs)}
    content["data"] |= {"root": str(arguments.out), "epoch_samples": STEPS * 64}
    content["training"] |= {"epochs": 1, "save_every_steps": 37, "threads": 1}
    content["objective"]["hjepa"]["momentum"] = 0.98
    content["logging"] = {"every_steps": 1, "tensorboard": False}
    path = arguments.runs / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(content))
    return path


def command(config: Path) -> list[str]:
    return [str(Path(sys.executable).parent / "hjepa-train"), "run", str(config), "--resume", "auto"]


def run_and_kill(command: list[str], journal: Path, target: int) -> int:
    """Start a run and kill it as soon as it has logged step `target`. Returns the last step logged."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)
    while process.poll() is None:
        if journal.exists() and any(row["step"] >= target for row in read_metrics(journal)):
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        else:
            time.sleep(0.02)
    return read_metrics(journal)[-1]["step"]


if __name__ == "__main__":
    main()
